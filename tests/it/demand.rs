//! More calls to KMS than it takes: who waits, who passes first, and who is told to come later.

mod fairness;
mod herd;
mod quota;
mod tenants;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::SignedDuration;
use keybroker::kms::Demand;
use keybroker::kms::Error;
use keybroker::kms::Guarded;
use keybroker::kms::KeyRef;
use keybroker::kms::Kms as _;
use keybroker::kms::aws::Config;
use keybroker::message::EncryptionContext;
use keybroker::metrics::Metrics;
use keybroker::trace::Tracer;
use tokio::time::Instant;
use tonic::Code;
use tonic::IntoRequest as _;
use tonic_types::StatusExt as _;

use crate::harness::Broker;
use crate::harness::FakeKms;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::rpcs::encrypt;
use crate::harness::until;
use crate::support::http1::get;
use crate::support::prometheus;

const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/one";

/// A guard over a fake.
struct Scene {
    fake: Arc<FakeKms>,
    guarded: Guarded,
    key: KeyRef,
}

impl Scene {
    fn with(config: Config) -> Self {
        let fake = Arc::new(FakeKms::default());
        Self {
            guarded: Guarded::new(fake.clone(), &config, Metrics::unread(), Tracer::off()).unwrap(),
            fake,
            key: ARN.parse().unwrap(),
        }
    }

    /// With so many requests a second, each of which may take so many seconds.
    fn at(requests_per_second: u32, attempt: i64) -> Self {
        Self::with(Config {
            attempt_timeout: SignedDuration::from_secs(attempt),
            operation_timeout: SignedDuration::from_secs(30),
            requests_per_second,
            ..Config::default()
        })
    }

    async fn call(&self, demand: &Demand) -> Result<(), Error> {
        let context = EncryptionContext::default();
        let made = self.guarded.generate_data_key(&self.key, &context, demand);
        made.await.map(drop)
    }
}

/// Of a caller of `tenant` who waits for so many milliseconds.
fn demand(tenant: &str, millis: u64) -> Demand {
    let until = Instant::now() + Duration::from_millis(millis);
    Demand::new(tenant.parse().unwrap(), 1, until)
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_their_turn_or_are_told_when_to_come_again() {
    let scene = Scene::at(1, 10);
    let late = scene.call(&demand("a", 0)).await.unwrap_err();
    assert!(matches!(late, Error::Crowded { .. }), "{late}");
    scene.call(&demand("a", 30_000)).await.unwrap();
    let began = Instant::now();
    let error = scene.call(&demand("a", 100)).await.unwrap_err();
    assert!(matches!(error, Error::Crowded { .. }), "{error}");
    assert_eq!(scene.fake.calls(), 1);
    scene.call(&demand("a", 30_000)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_call_that_waits_has_it_wait_longer() {
    let scene = Scene::at(2, 10);
    scene.call(&demand("a", 30_000)).await.unwrap();
    let shared = demand("a", 1500);
    // They come later, and pass first: it is too late for who waits, and not for who joins.
    let others = ["b", "c", "d"].map(|tenant| demand(tenant, 30_000));
    let first = demand("a", 30_000);
    let join = async {
        tokio::task::yield_now().await;
        assert!(shared.join(Instant::now() + Duration::from_secs(30)));
    };
    let calls = [&first, &shared].into_iter().chain(&others);
    let calls = join_all(calls.map(|demand| scene.call(demand)));
    let (outcomes, ()) = tokio::join!(calls, join);
    for outcome in outcomes {
        outcome.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_attempt_goes_on_without_callers_and_another_does_not() {
    let scene = Scene::at(1000, 1);
    let _held = scene.fake.hold().await;
    let error = scene.call(&demand("a", 10)).await.unwrap_err();
    assert!(error.to_string().contains("no answer within 1s"), "{error}");
    assert_eq!(scene.fake.calls(), 1);

    let began = Instant::now();
    let error = scene.call(&demand("a", 1800)).await.unwrap_err();
    assert!(matches!(error, Error::Crowded { .. }), "{error}");
    assert!(began.elapsed() >= Duration::from_millis(1800));
    assert_eq!(scene.fake.calls(), 3);
}

#[tokio::test]
async fn a_caller_is_told_when_to_come_again() {
    let broker = Broker::start()
        .with(|setup| {
            setup.tenants = format!(
                "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\nkms = \"{ARN}\"\n\
                 users = [\"{WEB}\"]\n"
            );
            setup.guard = Some(Config {
                requests_per_second: 1,
                ..Config::default()
            });
            setup.listen.admin = Some(([127, 0, 0, 1], 0).into());
        })
        .await;
    let mut web = broker.caller(WEB).await;
    let in_table = |table: &str| {
        let mut request = encrypt("keys/orders", "x");
        let pair = ("table".to_owned(), table.to_owned());
        request.encryption_context = [pair].into();
        request
    };
    web.encrypt(in_table("one")).await.unwrap();
    let _waiting: Vec<_> = ["two", "three", "four", "five"]
        .map(|table| {
            let (mut web, request) = (web.clone(), in_table(table));
            tokio::spawn(async move { web.encrypt(request).await.map(drop) })
        })
        .into();
    let tally = broker.metrics.kms("eu-west-1");
    until(|| tally.queue_length() >= 3).await;
    let mut request = in_table("six").into_request();
    request.set_timeout(Duration::from_millis(500));
    let status = web.encrypt(request).await.unwrap_err();
    let refusal = Refusal::of(&status);
    assert_eq!(refusal.code, Code::Unavailable);
    assert_eq!(refusal.reason, "KMS_THROTTLED");
    let pause = status
        .get_details_retry_info()
        .unwrap()
        .retry_delay
        .unwrap();
    let range = Duration::from_secs(1)..Duration::from_secs(6);
    assert!(range.contains(&pause), "{pause:?}");
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
    assert_eq!(pushback, pause.as_millis().to_string().as_str());

    let scrape = get(broker.admin_address().unwrap(), "/metrics").await;
    let series = prometheus::parse(&scrape.body);
    let of_region = |name: &str| series[&format!("{name}{{region=\"eu-west-1\"}}")];
    assert_eq!(of_region("keybroker_kms_shed_total"), 1.0);
    assert!(series.contains_key("keybroker_kms_queue_length{region=\"eu-west-1\"}"));
    assert_eq!(of_region("keybroker_kms_requests_per_second"), 1.0);
    assert!(series.contains_key("keybroker_key_cache_waiters"));
}
