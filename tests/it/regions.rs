//! A key with replicas in several Regions: which one is called, when another is, and when the
//! preferred one again. In virtual time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::SignedDuration;
use keybroker::kms::Arn;
use keybroker::kms::Demand;
use keybroker::kms::Error;
use keybroker::kms::Guarded;
use keybroker::kms::KeyRef;
use keybroker::kms::Kms as _;
use keybroker::kms::Replicas;
use keybroker::kms::aws::Config;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::metrics::Metrics;
use keybroker::trace::Tracer;
use tokio::time::Instant;

use crate::harness::demand;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::figures;

const NEAR: &str = "eu-west-1";
const FAR: &str = "us-east-1";

/// A key with a replica, both behind a guard, through the real SDK.
struct Scene {
    fake: FakeKms,
    guarded: Guarded,
    metrics: Metrics,
    near: Arn,
    far: Arn,
    key: KeyRef,
}

impl Scene {
    async fn set() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let fake = FakeKms::in_virtual_time();
        let near = fake.multi_region_key(NEAR);
        let far = fake.replica(&near, FAR);
        let mut config = Config {
            attempt_timeout: SignedDuration::from_millis(500),
            operation_timeout: SignedDuration::from_secs(5),
            ..fake.config()
        };
        change(&mut config);
        let metrics = Metrics::unread();
        let aws = Arc::new(fake.aws_with(config.clone()));
        let guarded = Guarded::new(aws, &config, metrics.clone(), Tracer::off()).unwrap();
        let key = KeyRef::MultiRegion(Replicas::new(near.clone(), [FAR]).unwrap());
        Self {
            fake,
            guarded,
            metrics,
            near,
            far,
            key,
        }
    }

    async fn generate(&self) -> Result<EncryptedDataKey, Error> {
        self.generate_for(demand()).await
    }

    async fn generate_for(&self, demand: Demand) -> Result<EncryptedDataKey, Error> {
        let context = EncryptionContext::default();
        let made = self.guarded.generate_data_key(&self.key, &context, &demand);
        Ok(made.await?.wrapped)
    }

    async fn decrypt(&self, wrapped: &EncryptedDataKey) -> Result<(), Error> {
        let (context, demand) = (EncryptionContext::default(), demand());
        let opened = self.guarded.decrypt(&self.key, wrapped, &context, &demand);
        opened.await.map(drop)
    }

    fn calls(&self, key: &Arn) -> usize {
        let operations = [Operation::Decrypt, Operation::GenerateDataKey];
        operations
            .map(|operation| self.fake.calls_of(key, operation))
            .iter()
            .sum()
    }
}

#[tokio::test(start_paused = true)]
async fn the_preferred_region_is_called_while_it_is_well() {
    let scene = Scene::set().await;
    let wrapped = scene.generate().await.unwrap();
    assert_eq!(wrapped.provider_info, scene.near.to_string());
    scene.decrypt(&wrapped).await.unwrap();
    assert_eq!((scene.calls(&scene.near), scene.calls(&scene.far)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn what_one_region_cannot_do_now_another_does() {
    type Trouble = fn(&FakeKms);
    let troubles: [(&str, Trouble); 4] = [
        ("failing", |fake| {
            fake.region(NEAR)
                .fail_all(Fault::Code("KMSInternalException", 500));
        }),
        ("hanging", |fake| fake.region(NEAR).fail_all(Fault::Hang)),
        ("throttling", |fake| {
            fake.region(NEAR).fail_all(Fault::Throttle(Duration::ZERO))
        }),
        ("closing", |fake| fake.region(NEAR).fail_all(Fault::Close)),
    ];
    for (name, trouble) in troubles {
        let scene = Scene::set().await;
        let before = scene.generate().await.unwrap();
        trouble(&scene.fake);
        let made = scene.generate().await.unwrap();
        assert_eq!(made.provider_info, scene.far.to_string(), "{name}");
        scene.decrypt(&before).await.unwrap();
        scene.decrypt(&made).await.unwrap();
        assert_eq!(scene.metrics.kms(NEAR).failovers(), 3, "{name}");
        scene.fake.heal();
        scene.decrypt(&made).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_region_is_not_blamed_for_callers_who_left_before_it_was_asked() {
    let scene = Scene::set().await;
    scene.fake.region(NEAR).fail_all(Fault::Hang);
    let briefly = || {
        let until = Instant::now() + Duration::from_millis(250);
        scene.generate_for(Demand::new("acme".parse().unwrap(), 1, until))
    };
    for _ in 0..3 {
        let answer = briefly().await;
        assert!(matches!(answer, Err(Error::Crowded { .. })), "{answer:?}");
    }
    assert_eq!((scene.calls(&scene.near), scene.calls(&scene.far)), (3, 0));
    let made = briefly().await.unwrap();
    assert_eq!(made.provider_info, scene.far.to_string());
}

#[tokio::test(start_paused = true)]
async fn what_one_region_refuses_no_other_is_asked() {
    for operation in [Operation::GenerateDataKey, Operation::Decrypt] {
        let scene = Scene::set().await;
        let wrapped = scene.generate().await.unwrap();
        scene.fake.region(NEAR).deny(BROKER, operation);
        let answer = match operation {
            Operation::Decrypt => scene.decrypt(&wrapped).await,
            _ => scene.generate().await.map(drop),
        };
        assert!(matches!(answer, Err(Error::AccessDenied(_))), "{answer:?}");
        scene.fake.disable(&scene.near);
        scene.fake.region(NEAR).allow(BROKER, operation);
        assert_eq!(scene.generate().await, Err(Error::Disabled));
        assert_eq!(scene.calls(&scene.far), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_region_that_answers_garbage_is_not_believed_and_not_passed_over() {
    let scene = Scene::set().await;
    scene.fake.region(NEAR).fail_all(Fault::Garbage);
    let answer = scene.generate().await;
    assert!(matches!(answer, Err(Error::Invalid(_))), "{answer:?}");
    assert_eq!(scene.calls(&scene.far), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_fails_when_every_region_does() {
    let scene = Scene::set().await;
    for region in [NEAR, FAR] {
        scene
            .fake
            .region(region)
            .fail_all(Fault::Code("KMSInternalException", 500));
    }
    let answer = scene.generate().await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
    assert_eq!((scene.calls(&scene.near), scene.calls(&scene.far)), (1, 3));
}

/// The preferred Region is lost under load and comes back: no call fails, and some time after its
/// return it serves again.
#[tokio::test(start_paused = true)]
async fn no_call_fails_when_the_preferred_region_is_lost_and_it_is_taken_back() {
    let scene = Arc::new(Scene::set().await);
    let wrapped = scene.generate().await.unwrap();
    let lost = Instant::now() + Duration::from_secs(1);
    let found = lost + Duration::from_secs(60);
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let mut calls = Vec::new();
    let (mut is_lost, mut is_found) = (false, false);
    let mut back = None;
    while back.is_none() {
        let now = ticks.tick().await;
        if now >= lost && !is_lost {
            scene.fake.region(NEAR).cut_off().await;
            is_lost = true;
        }
        if now >= found && !is_found {
            scene.fake.region(NEAR).heal();
            is_found = true;
        }
        let (one, other) = (Arc::clone(&scene), Arc::clone(&scene));
        let wrapped = wrapped.clone();
        calls.push(tokio::spawn(async move { one.decrypt(&wrapped).await }));
        calls.push(tokio::spawn(
            async move { other.generate().await.map(drop) },
        ));
        if is_found {
            let latest = scene.fake.log().into_iter().rev().take(20);
            if latest.filter(|call| call.region == NEAR).count() == 20 {
                back = Some(found.elapsed());
            }
            assert!(found.elapsed() < Duration::from_secs(60), "not taken back");
        }
    }
    let made = calls.len();
    let outcomes = join_all(calls).await;
    let failed: Vec<_> = outcomes
        .into_iter()
        .filter_map(|call| call.unwrap().err())
        .collect();
    println!(
        "{made} calls, {} failed over, back after {back:?}",
        scene.metrics.kms(NEAR).failovers()
    );
    figures::record("upstream", [("region_loss_failed", failed.len())]);
    let seconds = back.unwrap_or_default().as_secs_f64();
    figures::record("upstream", [("region_return_seconds", seconds)]);
    assert_eq!(failed, []);
}

#[tokio::test(start_paused = true)]
async fn a_region_without_room_in_time_leaves_the_call_to_the_next() {
    let scene = Scene::with(|config| config.requests_per_second = 1).await;
    scene.generate().await.unwrap();
    let until = Instant::now() + Duration::from_millis(400);
    let demand = Demand::new("acme".parse().unwrap(), 1, until);
    scene.generate_for(demand.clone()).await.unwrap();
    assert_eq!((scene.calls(&scene.near), scene.calls(&scene.far)), (1, 1));
    assert!(demand.join(until), "who comes now may still join it");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_of_no_use_makes_no_refusal_of_an_outage() {
    let scene = Scene::set().await;
    scene.fake.region(NEAR).fail_all(Fault::Close);
    scene.fake.disable(&scene.far);
    let answer = scene.generate().await;
    let Err(Error::Unavailable(why)) = answer else {
        panic!("{answer:?}");
    };
    assert!(
        why.contains("us-east-1") && why.contains("disabled"),
        "{why}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_of_no_use_makes_no_outage_of_a_region_without_room() {
    let scene = Scene::set().await;
    let throttle = Fault::Throttle(Duration::ZERO);
    scene.fake.region(NEAR).fail_all(throttle);
    scene.fake.disable(&scene.far);
    assert_eq!(scene.generate().await.err(), Some(Error::Throttled));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_of_no_use_leaves_the_call_to_the_next() {
    const THIRD: &str = "ap-south-1";
    let mut scene = Scene::set().await;
    let third = scene.fake.replica(&scene.near, THIRD);
    scene.key = KeyRef::MultiRegion(Replicas::new(scene.near.clone(), [FAR, THIRD]).unwrap());
    scene.fake.region(NEAR).fail_all(Fault::Close);
    scene.fake.disable(&scene.far);
    let made = scene.generate().await.unwrap();
    assert_eq!(made.provider_info, third.to_string());
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_a_region_that_is_well_is_tried_again_there() {
    let scene = Scene::set().await;
    scene.fake.region(NEAR).cut_off().await;
    scene.generate().await.unwrap();
    let fault = Fault::Code("KMSInternalException", 500);
    scene.fake.fail_next(1, Operation::GenerateDataKey, fault);
    scene.generate().await.unwrap();
    assert_eq!(scene.calls(&scene.far), 3);
}
