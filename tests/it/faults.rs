//! What the fake KMS can do to a client, shown by the real SDK's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use keybroker::clock::Manual;
use keybroker::kms::Arn;
use keybroker::kms::DataKey;
use keybroker::kms::Error;
use keybroker::kms::KeyRef;
use keybroker::kms::Kms as _;
use keybroker::kms::aws::Aws;
use keybroker::kms::aws::Config;
use keybroker::message::EncryptionContext;

use crate::harness::demand;
use crate::harness::soon;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::Counts;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::fake_kms::Outcome;
use crate::support::fake_kms::State;
use crate::support::fake_kms::sdk_config;
use crate::support::http1;

const NEAR: &str = "eu-west-1";
const FAR: &str = "us-east-1";

fn context(tenant: &str) -> EncryptionContext {
    EncryptionContext::new([("keybroker:tenant".to_owned(), tenant.to_owned())]).unwrap()
}

async fn generate(aws: &Aws, arn: &Arn) -> Result<DataKey, Error> {
    let key = KeyRef::Aws(arn.clone());
    soon(aws.generate_data_key(&key, &context("acme"), &demand())).await
}

/// The error of a call whose success cannot be printed.
async fn refused(aws: &Aws, arn: &Arn) -> Error {
    generate(aws, arn).await.err().expect("a refusal")
}

async fn works(aws: &Aws, arn: &Arn) -> bool {
    generate(aws, arn).await.is_ok()
}

fn is_outage(error: &Error, what: &str) -> bool {
    matches!(error, Error::Unavailable(why) if why.contains(what))
}

/// A fake with one key in each of two Regions, on a clock that a test moves.
struct Scene {
    clock: Arc<Manual>,
    fake: FakeKms,
    aws: Aws,
    near: Arn,
    far: Arn,
}

impl Scene {
    async fn set() -> Self {
        let clock = Arc::new(Manual::new(Timestamp::now()));
        let fake = FakeKms::start_on(Arc::clone(&clock) as _).await;
        Self {
            aws: fake.aws(),
            near: fake.key(NEAR),
            far: fake.key(FAR),
            fake,
            clock,
        }
    }

    /// How the last call ended, when it has.
    async fn outcome(&self) -> Outcome {
        let ended = self
            .fake
            .until(|log| log.iter().all(|call| call.outcome.is_some()));
        soon(ended).await;
        self.fake.log().pop().unwrap().outcome.unwrap()
    }
}

#[tokio::test]
async fn calls_above_a_regions_quota_are_throttled_until_its_clock_has_moved() {
    let scene = Scene::set().await;
    let (fake, aws, near) = (&scene.fake, &scene.aws, &scene.near);
    fake.region(NEAR).throttle_above(5);
    for _ in 0..5 {
        assert!(works(aws, near).await);
    }
    for _ in 0..3 {
        assert_eq!(refused(aws, near).await, Error::Throttled);
    }
    assert!(works(aws, &scene.far).await);
    let described = aws.describe_key(&KeyRef::Aws(near.clone())).await;
    assert_eq!(described, Ok(()));

    scene.clock.advance(Duration::from_millis(199));
    assert_eq!(refused(aws, near).await, Error::Throttled);
    scene.clock.advance(Duration::from_millis(1));
    assert!(works(aws, near).await);
    assert_eq!(refused(aws, near).await, Error::Throttled);
    // A pause of any length earns a second's worth.
    scene.clock.advance(Duration::from_secs(3600));
    for _ in 0..5 {
        assert!(works(aws, near).await);
    }
    assert_eq!(refused(aws, near).await, Error::Throttled);
    fake.region(NEAR).heal();
    assert!(works(aws, near).await);
}

#[tokio::test]
async fn a_throttled_client_is_told_how_long_to_wait() {
    let fake = FakeKms::start().await;
    let wait = Duration::from_millis(1500);
    fake.region(NEAR).throttle_above_asking(0, wait);
    fake.region(FAR).fail_all(Fault::Throttle(wait));
    let address = fake.endpoint().replace("http://", "");
    let address: SocketAddr = address.parse().unwrap();
    for region in [NEAR, FAR] {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: kms\r\nconnection: close\r\ncontent-length: 2\r\n\
             x-amz-target: TrentService.GenerateRandom\r\nx-amz-date: {}\r\n\
             authorization: AWS4-HMAC-SHA256 Credential={BROKER}/d/{region}/kms/aws4_request, x\r\n\
             \r\n{{}}",
            Timestamp::now().strftime("%Y%m%dT%H%M%SZ")
        );
        let answer = http1::send(address, request.as_bytes()).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.header("x-amz-retry-after"), Some("1500"));
        assert!(answer.body.contains("ThrottlingException"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_connection_ends_before_within_or_after_the_head() {
    let scene = Scene::set().await;
    let region = scene.fake.region(NEAR);
    for (calls, fault) in [
        Fault::Close,
        Fault::Reset,
        Fault::HalfHead,
        Fault::HeadAlone,
        Fault::Truncate,
    ]
    .into_iter()
    .enumerate()
    {
        region.fail(Operation::GenerateDataKey, fault.clone());
        let error = refused(&scene.aws, &scene.near).await;
        assert!(is_outage(&error, ""), "{fault:?}: {error}");
        assert_eq!(scene.outcome().await, Outcome::Broken);
        assert_eq!(scene.fake.log().len(), 2 * calls + 1, "{fault:?}");
        region.heal();
        assert!(works(&scene.aws, &scene.near).await, "{fault:?}");
    }
}

#[tokio::test]
async fn an_answer_that_drips_is_whole_in_the_end() {
    let scene = Scene::set().await;
    let region = scene.fake.region(NEAR);
    region.fail_all(Fault::Drip(Duration::ZERO));
    assert!(works(&scene.aws, &scene.near).await);
    assert_eq!(scene.outcome().await, Outcome::Answered);

    // Each byte comes in time, and all of them don't.
    region.heal();
    region.fail_all(Fault::Drip(Duration::from_millis(50)));
    let impatient = scene.fake.aws_with(Config {
        attempt_timeout: SignedDuration::from_millis(400),
        operation_timeout: SignedDuration::from_millis(400),
        ..scene.fake.config()
    });
    let error = refused(&impatient, &scene.near).await;
    assert!(
        is_outage(&error, "timed out") || is_outage(&error, "timeout"),
        "{error}"
    );
    assert_eq!(scene.outcome().await, Outcome::Abandoned);
}

#[tokio::test]
async fn a_body_without_measure_is_given_up_after_its_first_bytes() {
    let scene = Scene::set().await;
    scene.fake.region(NEAR).fail_all(Fault::Huge(1 << 50));
    let error = refused(&scene.aws, &scene.near).await;
    assert!(is_outage(&error, "length limit"), "{error}");
    assert_eq!(scene.outcome().await, Outcome::Abandoned);
}

#[tokio::test]
async fn a_silent_region_leaves_the_others_alone() {
    let scene = Scene::set().await;
    let region = scene.fake.region(NEAR);
    region.fail_all(Fault::Hang);
    let call = refused(&scene.aws, &scene.near);
    let meanwhile = async {
        scene.fake.arrived(Operation::GenerateDataKey, 1).await;
        assert!(works(&scene.aws, &scene.far).await);
        region.cut_off().await;
    };
    let (error, ()) = tokio::join!(call, meanwhile);
    assert!(is_outage(&error, ""), "{error}");
}

#[tokio::test]
async fn a_region_that_is_cut_off_refuses_connections_until_it_is_healed() {
    let scene = Scene::set().await;
    let (fake, aws, near) = (&scene.fake, &scene.aws, &scene.near);
    // A connection that is idle goes with the Region.
    assert!(works(aws, near).await);
    let region = fake.region(NEAR);
    region.cut_off().await;
    region.cut_off().await;
    for _ in 0..3 {
        let error = refused(aws, near).await;
        assert!(is_outage(&error, ""), "{error}");
    }
    // By then the connection is forgotten.
    let error = refused(aws, near).await;
    assert!(is_outage(&error, "refused"), "{error}");
    assert!(works(aws, &scene.far).await);
    assert_eq!(fake.log().len(), 2);

    let shared = Aws::new(&sdk_config(BROKER), fake.config()).unwrap();
    assert!(is_outage(&refused(&shared, near).await, ""));
    assert!(works(&shared, &scene.far).await);
    assert_eq!(fake.log().len(), 3);

    let endpoint = region.endpoint();
    fake.heal();
    assert_eq!(region.endpoint(), endpoint);
    assert!(works(aws, near).await);
    assert!(works(&shared, near).await);
}

#[tokio::test]
async fn a_region_that_is_dark_lets_clients_wait_for_a_connection() {
    let scene = Scene::set().await;
    let (fake, aws, near) = (&scene.fake, &scene.aws, &scene.near);
    let region = fake.region(NEAR);
    region.go_dark().await;
    let error = refused(aws, near).await;
    assert!(is_outage(&error, "connect timeout"), "{error}");
    assert!(works(aws, &scene.far).await);
    region.cut_off().await;
    let error = refused(aws, near).await;
    assert!(is_outage(&error, "refused"), "{error}");
    region.go_dark().await;
    region.heal();
    assert!(works(aws, near).await);
    assert_eq!(fake.log().len(), 2);
}

#[tokio::test]
async fn a_replica_has_states_and_denials_of_its_own_region() {
    let fake = FakeKms::start().await;
    let aws = fake.aws();
    let near = fake.multi_region_key(NEAR);
    let far = fake.replica(&near, FAR);
    let region = fake.region(NEAR);
    region.set_state(State::Disabled);
    assert_eq!(refused(&aws, &near).await, Error::Disabled);
    assert!(works(&aws, &far).await);
    region.set_state(State::Enabled);
    region.deny(BROKER, Operation::GenerateDataKey);
    let error = refused(&aws, &near).await;
    assert!(matches!(error, Error::AccessDenied(_)), "{error}");
    assert!(works(&aws, &far).await);
    region.allow(BROKER, Operation::GenerateDataKey);
    assert!(works(&aws, &near).await);
}

#[tokio::test]
async fn a_skewed_clock_costs_one_call_of_each_client() {
    for minutes in [-6, 6] {
        let scene = Scene::set().await;
        let (aws, near) = (&scene.aws, &scene.near);
        let region = scene.fake.region(NEAR);
        region.skew(SignedDuration::from_mins(minutes));
        let skewed = Error::Credentials("InvalidSignatureException".to_owned());
        assert_eq!(refused(aws, near).await, skewed, "{minutes}");
        assert!(works(aws, &scene.far).await);
        // The SDK has read the server's date.
        assert!(works(aws, near).await, "{minutes}");
        region.heal();
        assert_eq!(refused(aws, near).await, skewed, "{minutes}");
        assert!(works(aws, near).await, "{minutes}");
    }
    let scene = Scene::set().await;
    let region = scene.fake.region(NEAR);
    region.skew(SignedDuration::from_mins(4));
    assert!(works(&scene.aws, &scene.near).await);
}

#[tokio::test]
async fn calls_are_counted_by_tenant_region_second_and_end() {
    let scene = Scene::set().await;
    let (fake, aws) = (&scene.fake, &scene.aws);
    let calls = async |arn: &Arn, tenant: &str, times: usize| {
        let key = KeyRef::Aws(arn.clone());
        for _ in 0..times {
            // Some are to fail.
            let _ = aws
                .generate_data_key(&key, &context(tenant), &demand())
                .await;
        }
    };
    fake.region(NEAR).throttle_above(4);
    calls(&scene.near, "acme", 3).await;
    calls(&scene.near, "globex", 2).await;
    calls(&scene.far, "acme", 1).await;
    scene.clock.advance(Duration::from_secs(1));
    calls(&scene.near, "acme", 2).await;
    fake.disable(&scene.far);
    calls(&scene.far, "globex", 1).await;
    fake.region(FAR).fail_all(Fault::Garbage);
    calls(&scene.far, "globex", 1).await;

    let tenants = fake.counts(|call| call.tenant().unwrap().to_owned());
    let acme = Counts {
        calls: 6,
        answered: 6,
        ..Counts::default()
    };
    let globex = Counts {
        calls: 4,
        answered: 1,
        throttled: 1,
        refused: 1,
        broken: 1,
        abandoned: 0,
    };
    assert_eq!(
        tenants,
        [("acme".into(), acme), ("globex".into(), globex)].into()
    );
    let seconds = fake.counts(|call| (call.region.clone(), call.at.as_secs()));
    let calls: Vec<_> = seconds
        .iter()
        .map(|(when, counts)| (when.clone(), counts.calls))
        .collect();
    let when = |region: &str, second| (region.to_owned(), second);
    assert_eq!(
        calls,
        [
            (when(NEAR, 0), 5),
            (when(NEAR, 1), 2),
            (when(FAR, 0), 1),
            (when(FAR, 1), 2),
        ]
    );
    assert_eq!(fake.most_at_once(|_| true), 1);
}

#[tokio::test]
async fn the_most_calls_at_once_are_counted() {
    let scene = Scene::set().await;
    let (near, far) = (
        KeyRef::Aws(scene.near.clone()),
        KeyRef::Aws(scene.far.clone()),
    );
    let hold = scene.fake.hold();
    let call = async |key: &KeyRef, tenant: &str| {
        let context = context(tenant);
        soon(scene.aws.generate_data_key(key, &context, &demand()))
            .await
            .is_ok()
    };
    let release = async {
        scene.fake.arrived(Operation::GenerateDataKey, 3).await;
        drop(hold);
    };
    let (one, two, three, ()) = tokio::join!(
        call(&near, "acme"),
        call(&near, "globex"),
        call(&far, "acme"),
        release
    );
    assert!(one && two && three);
    assert!(call(&near, "acme").await);
    let fake = &scene.fake;
    assert_eq!(fake.most_at_once(|_| true), 3);
    assert_eq!(fake.most_at_once(|call| call.tenant() == Some("acme")), 2);
    assert_eq!(fake.most_at_once(|call| call.region == FAR), 1);
    assert_eq!(fake.most_at_once(|call| call.tenant().is_none()), 0);
}
