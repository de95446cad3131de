//! What KMS refuses after it had allowed it: over the real SDK and the fake, on a clock that the test
//! moves.

mod probes;
mod replicas;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use keybroker::clock::Manual;
use keybroker::grpc::pb;
use keybroker::kms::Arn;
use keybroker::metrics::Retirement;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::pairs;
use crate::harness::soon;
use crate::harness::until;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Operation;
use crate::support::figures;

/// A way for KMS to refuse a key, how to take it back, and the callers' reason.
type Flip = (&'static str, fn(&FakeKms, &Arn), fn(&FakeKms, &Arn));

const FLIPS: [Flip; 3] = [
    (
        "KMS_ACCESS_DENIED",
        |fake, arn| USES.iter().for_each(|one| fake.deny(BROKER, *one, arn)),
        |fake, arn| USES.iter().for_each(|one| fake.allow(BROKER, *one, arn)),
    ),
    ("KEY_DISABLED", FakeKms::disable, FakeKms::enable),
    (
        "KEY_PENDING_DELETION",
        FakeKms::schedule_deletion,
        FakeKms::enable,
    ),
];

#[tokio::test]
async fn what_kms_refuses_after_a_success_is_refused_at_once_and_asked_once_a_second_at_most() {
    let mut most = 0.0_f64;
    for (expected, refuse, allow) in FLIPS {
        let clock = Arc::new(Manual::new(Timestamp::now()));
        let fake = FakeKms::start_on(clock.clone()).await;
        let arn = fake.key(REGION);
        let broker = broker(&fake, &arn, &clock).await;
        let mut web = broker.caller(WEB).await;
        let sealed = seal_all(&mut web).await;

        refuse(&fake, &arn);
        let calls = fake.log().len();
        assert_eq!(answer(&mut web, "new").await, Err(expected.to_owned()));
        let retired = || broker.metrics.retirements(Retirement::Denied);
        until(|| retired() == CONTEXTS as u64).await;
        for place in 0..CONTEXTS {
            let table = place.to_string();
            assert_eq!(answer(&mut web, &table).await, Err(expected.to_owned()));
        }
        for second in 0..SECONDS {
            // All at once, since that is where a memory that has just ended could let many through.
            let calls = (0..CONTEXTS).map(|place| {
                let (mut web, sealed) = (web.clone(), sealed[place].clone());
                async move {
                    let table = format!("{second} {place}");
                    let refusals = [answer(&mut web, &table).await, open(&mut web, sealed).await];
                    refusals.map(Result::unwrap_err)
                }
            });
            for refusals in join_all(calls).await {
                assert_eq!(refusals, [expected, expected]);
            }
            clock.advance(Duration::from_secs(1));
        }
        let rate = (fake.log().len() - calls) as f64 / SECONDS as f64;
        assert!(rate <= 1.0, "{expected}: {rate} a second");
        most = most.max(rate);

        allow(&fake, &arn);
        clock.advance(Duration::from_secs(6));
        assert_eq!(answer(&mut web, "0").await, Ok(()));
        assert_eq!(open(&mut web, sealed[1].clone()).await, Ok(()));
    }
    figures::record("upstream", [("refused_key_calls_per_second", most)]);
}

#[tokio::test]
async fn a_disabled_kms_key_is_asked_for_once_for_all_tenants() {
    let clock = Arc::new(Manual::new(Timestamp::now()));
    let fake = FakeKms::start().await;
    let arn = fake.key(REGION);
    let broker = broker(&fake, &arn, &clock).await;
    let mut web = broker.caller(WEB).await;
    let mut globex = broker.caller(GLOBEX).await;
    assert_eq!(answer(&mut web, "a").await, Ok(()));
    assert_eq!(answer(&mut globex, "a").await, Ok(()));
    fake.disable(&arn);
    let calls = fake.log().len();
    for table in ["b", "a"] {
        for caller in [&mut web, &mut globex] {
            let refused = answer(caller, table).await;
            assert_eq!(refused, Err("KEY_DISABLED".to_owned()));
        }
    }
    assert_eq!(fake.log().len(), calls + 1);
}

async fn broker(fake: &FakeKms, arn: &Arn, clock: &Arc<Manual>) -> Broker {
    let tenants = [("acme", WEB), ("globex", GLOBEX)].map(|(tenant, user)| {
        format!(
            "[[tenant]]\nid = \"{tenant}\"\n[[tenant.key]]\nid = \"orders\"\nkms = \"{arn}\"\n\
             users = [\"{user}\"]\n"
        )
    });
    Broker::start()
        .with(|setup| {
            setup.tenants = tenants.concat();
            setup.clock = clock.clone();
            setup.kms = Some(Arc::new(fake.aws()));
            setup.guard = Some(fake.config());
        })
        .await
}

/// A message in each of [`CONTEXTS`], whose data keys stay in the cache.
async fn seal_all(web: &mut Client) -> Vec<pb::DecryptRequest> {
    let mut sealed = Vec::new();
    for place in 0..CONTEXTS {
        let context = pairs([("table", place.to_string().as_str())]);
        let request = pb::EncryptRequest {
            encryption_context: context.clone(),
            ..encrypt("keys/orders", "x")
        };
        let message = soon(web.encrypt(request)).await.unwrap().into_inner();
        sealed.push(pb::DecryptRequest {
            encryption_context: context,
            ..decrypt(&message.ciphertext)
        });
    }
    sealed
}

/// Encrypts in the context `table`; the reason if that is refused.
async fn answer(web: &mut Client, table: &str) -> Result<(), String> {
    let request = pb::EncryptRequest {
        encryption_context: pairs([("table", table)]),
        ..encrypt("keys/orders", "x")
    };
    let answer = soon(web.encrypt(request)).await;
    answer
        .map(drop)
        .map_err(|status| Refusal::of(&status).reason)
}

async fn open(web: &mut Client, sealed: pb::DecryptRequest) -> Result<(), String> {
    let answer = soon(web.decrypt(sealed)).await;
    answer
        .map(drop)
        .map_err(|status| Refusal::of(&status).reason)
}

const REGION: &str = "eu-west-1";
const USES: [Operation; 2] = [Operation::Decrypt, Operation::GenerateDataKey];
/// Data keys in use.
const CONTEXTS: usize = 10;
/// For so long callers insist.
const SECONDS: usize = 60;
