//! A KMS that hangs or fails for all, behind the real SDK and in virtual time: how long callers take
//! to know, and how much more it is asked than they ask.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use keybroker::kms::Demand;
use keybroker::kms::Error;
use keybroker::kms::Guarded;
use keybroker::kms::KeyRef;
use keybroker::kms::Kms as _;
use keybroker::kms::Replicas;
use keybroker::kms::aws::Config;
use keybroker::message::EncryptionContext;
use keybroker::metrics::Metrics;
use keybroker::trace::Tracer;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::figures;
use crate::support::scale::scaled;

const REGION: &str = "eu-west-1";
const REPLICA: &str = "us-east-1";

struct Scene {
    fake: FakeKms,
    guarded: Arc<Guarded>,
    metrics: Metrics,
}

impl Scene {
    /// A guard over a KMS that answers everything with `fault`.
    fn of(fault: Fault) -> Self {
        Self::with(fault, |_| {})
    }

    fn with(fault: Fault, change: impl FnOnce(&mut Config)) -> Self {
        let fake = FakeKms::in_virtual_time();
        fake.fail(Operation::GenerateDataKey, fault);
        let mut config = Config {
            endpoint: Some(fake.endpoint()),
            ..Config::default()
        };
        change(&mut config);
        let metrics = Metrics::unread();
        let aws = Arc::new(fake.aws_with(config.clone()));
        let guarded = Guarded::new(aws, &config, metrics.clone(), Tracer::off()).unwrap();
        Self {
            fake,
            guarded: Arc::new(guarded),
            metrics,
        }
    }

    /// A key with replicas there.
    fn key(&self, replicas: &[&str]) -> KeyRef {
        if replicas.is_empty() {
            return KeyRef::Aws(self.fake.key(REGION));
        }
        let preferred = self.fake.multi_region_key(REGION);
        for region in replicas {
            self.fake.replica(&preferred, region);
        }
        let replicas = Replicas::new(preferred, replicas.iter().copied());
        KeyRef::MultiRegion(replicas.unwrap())
    }

    /// A call of a caller who waits for so long, and how long it took.
    async fn call(&self, key: &KeyRef, patience: Duration) -> (Result<(), Error>, Duration) {
        let began = Instant::now();
        let demand = Demand::new("acme".parse().unwrap(), 1, began + patience);
        let context = EncryptionContext::default();
        let made = self.guarded.generate_data_key(key, &context, &demand);
        (made.await.map(drop), began.elapsed())
    }

    fn requests(&self) -> usize {
        self.fake.calls(Operation::GenerateDataKey)
    }
}

/// D-1.
#[tokio::test(start_paused = true)]
async fn a_kms_that_hangs_is_given_up_and_then_left_alone() {
    let scene = Scene::of(Fault::Hang);
    let key = scene.key(&[]);
    let (answer, took) = scene.call(&key, PATIENCE).await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
    let (three, pauses) = (Duration::from_millis(2250), Duration::from_millis(150));
    assert!((three..=three + pauses).contains(&took), "{took:?}");
    assert_eq!(scene.requests(), 3);
    // Whose caller's deadline is before the timeout: what is tried again ends with it.
    let deadline = Duration::from_millis(1100);
    let (answer, took) = scene.call(&key, deadline).await;
    answer.unwrap_err();
    assert!(took <= deadline + Duration::from_millis(50), "{took:?}");
    assert_eq!(scene.requests(), 5);

    join_all((0..20).map(|_| scene.call(&key, PATIENCE))).await;
    let asked = scene.requests();
    for _ in 0..1000 {
        let (answer, took) = scene.call(&key, PATIENCE).await;
        answer.unwrap_err();
        assert_eq!(took, Duration::ZERO);
    }
    assert_eq!(scene.requests(), asked);
    assert_eq!(scene.metrics.kms(REGION).circuit_state(), 2);
}

/// D-2: 200 calls a second, of which none succeeds.
#[tokio::test(start_paused = true)]
async fn retries_stay_within_their_budget_when_everything_fails() {
    let calls = scaled(10_000, 100_000);
    // Over so many keys no breaker opens: the budget is on its own.
    let (spread, one) = (calls / 10, 1);
    let failing = || Fault::Code("KMSInternalException", 500);
    let throttling = || Fault::Throttle(Duration::ZERO);
    let mut ratios = Vec::new();
    for (fault, keys) in [(failing(), spread), (throttling(), one), (failing(), one)] {
        for replicas in [&[][..], &[REPLICA]] {
            ratios.push(requests_per_call(fault.clone(), calls, keys, replicas).await);
        }
    }
    println!("{ratios:?} requests a call");
    for ratio in &ratios {
        assert!(*ratio <= 1.1, "{ratios:?}");
    }
    assert!(ratios[..4].iter().all(|ratio| *ratio > 1.0), "{ratios:?}");
    assert!(
        ratios[4] < 0.1 && ratios[5] < 0.1,
        "breakers are open: {ratios:?}"
    );
    let worst = ratios.into_iter().fold(0.0, f64::max);
    figures::record("upstream", [("requests_per_call", worst)]);
}

/// Has so many `calls` of so many `keys` fail, which have replicas there.
async fn requests_per_call(fault: Fault, calls: usize, keys: usize, replicas: &[&str]) -> f64 {
    let scene = Scene::with(fault, |config| config.requests_per_second = 100_000);
    let scene = Arc::new(scene);
    let keys: Vec<KeyRef> = (0..keys).map(|_| scene.key(replicas)).collect();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let mut running = JoinSet::new();
    for number in 0..calls {
        ticks.tick().await;
        let (scene, key) = (Arc::clone(&scene), keys[number % keys.len()].clone());
        running.spawn(async move { scene.call(&key, PATIENCE).await.0 });
    }
    for answer in running.join_all().await {
        answer.unwrap_err();
    }
    scene.requests() as f64 / calls as f64
}

/// What all Regions failed is no reason to fail what one of them can do.
#[tokio::test(start_paused = true)]
async fn a_replica_that_has_failed_too_is_there_for_all_when_it_is_well() {
    let scene = Scene::of(Fault::Code("KMSInternalException", 500));
    // So many that no breaker opens.
    let keys: Vec<KeyRef> = (0..100).map(|_| scene.key(&[REPLICA])).collect();
    let failed = async |calls: usize| {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        let mut failed = 0;
        for number in 0..calls {
            ticks.tick().await;
            let key = &keys[number % keys.len()];
            failed += usize::from(scene.call(key, PATIENCE).await.0.is_err());
        }
        failed
    };
    assert_eq!(failed(400).await, 400);
    // The preferred Region stays away, and the other one is well.
    scene.fake.heal();
    scene.fake.region(REGION).fail_all(Fault::Close);
    let again = failed(400).await;
    assert!(
        again < 400,
        "it is asked by some, which are enough to find out"
    );
    assert_eq!(failed(400).await, 0);

    scene.fake.heal();
    scene.fake.region(REPLICA).fail_all(Fault::Close);
    failed(400).await;
    scene.fake.region(REGION).fail_all(Fault::Close);
    assert_eq!(failed(400).await, 400);
    // Long after, the preferred Region is lost alone.
    scene.fake.heal();
    assert_eq!(failed(4000).await, 0);
    scene.fake.region(REGION).fail_all(Fault::Close);
    assert_eq!(failed(400).await, 0);
}

/// Of a caller who waits for what there is.
const PATIENCE: Duration = Duration::from_secs(30);
