//! What stands before a KMS: when calls end, which are made again and how often, and when KMS is
//! left alone.

mod storms;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::SignedDuration;
use keybroker::kms::Error;
use keybroker::kms::Guarded;
use keybroker::kms::KeyRef;
use keybroker::kms::Kms;
use keybroker::kms::aws::Config;
use keybroker::message::EncryptionContext;
use keybroker::metrics::KmsOperation;
use keybroker::metrics::KmsOutcome;
use keybroker::metrics::Metrics;
use keybroker::trace::Tracer;

use crate::harness::FakeKms;
use crate::harness::demand;
use crate::harness::soon;

/// A guard over a fake.
struct Scene {
    fake: Arc<FakeKms>,
    guarded: Arc<Guarded>,
    metrics: Metrics,
    key: KeyRef,
}

impl Scene {
    fn set() -> Self {
        Self::with(Config {
            requests_per_second: 100_000,
            ..Config::default()
        })
    }

    fn with(config: Config) -> Self {
        let fake = Arc::new(FakeKms::default());
        let metrics = Metrics::unread();
        let guarded = Guarded::new(fake.clone(), &config, metrics.clone(), Tracer::off()).unwrap();
        Self {
            fake,
            guarded: Arc::new(guarded),
            metrics,
            key: key(0),
        }
    }

    /// With these timeouts, in milliseconds.
    fn timed(attempt: i64, operation: i64) -> Self {
        Self::with(Config {
            attempt_timeout: SignedDuration::from_millis(attempt),
            operation_timeout: SignedDuration::from_millis(operation),
            ..Config::default()
        })
    }

    async fn call(&self) -> Result<(), Error> {
        self.call_of(&self.key).await
    }

    async fn call_of(&self, key: &KeyRef) -> Result<(), Error> {
        let context = EncryptionContext::default();
        let made = self
            .guarded
            .generate_data_key(key, &context, &demand())
            .await;
        made.map(drop)
    }

    /// Has calls fail until the key's KMS is not asked any more.
    async fn open(&self) {
        let mut calls = 0;
        while self.fake.calls() < 20 && calls < 20 {
            self.call().await.unwrap_err();
            calls += 1;
        }
        let before = self.fake.calls();
        let error = self.call().await.unwrap_err();
        assert!(error.to_string().contains("not asked"), "{error}");
        assert_eq!(self.fake.calls(), before);
    }
}

fn key(number: usize) -> KeyRef {
    let arn = format!("arn:aws:kms:eu-west-1:111122223333:key/key-{number}");
    arn.parse().unwrap()
}

fn away() -> Error {
    Error::Unavailable("away".into())
}

#[tokio::test(start_paused = true)]
async fn a_success_after_one_failure_takes_two_requests() {
    for error in [away(), Error::Throttled] {
        let scene = Scene::set();
        let requests = AtomicUsize::new(0);
        let failing = error.clone();
        scene
            .fake
            .rule(move |_| match requests.fetch_add(1, Ordering::SeqCst) {
                0 => Err(failing.clone()),
                _ => Ok(()),
            });
        scene.call().await.unwrap();
        assert_eq!(scene.fake.calls(), 2, "{error}");
        assert_eq!(scene.metrics.kms("eu-west-1").retries(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_has_three_attempts_at_most() {
    let scene = Scene::set();
    scene.fake.fail(away());
    assert_eq!(scene.call().await, Err(away()));
    assert_eq!(scene.fake.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_outage_is_not_tried_again_and_opens_nothing() {
    let refusals = [
        Error::AccessDenied("no".into()),
        Error::Disabled,
        Error::IncorrectKey,
        Error::Invalid("garbage".into()),
        Error::InvalidCiphertext,
        Error::NotFound("no".into()),
        Error::PendingDeletion("soon".into()),
    ];
    for error in refusals {
        let scene = Scene::set();
        scene.fake.fail(error.clone());
        for calls in 1..=50 {
            assert_eq!(scene.call().await, Err(error.clone()));
            assert_eq!(scene.fake.calls(), calls, "{error}");
        }
        assert_eq!(scene.metrics.kms("eu-west-1").circuit_state(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_would_not_end_in_time_is_not_begun() {
    let scene = Scene::timed(1000, 1000);
    scene.fake.fail(away());
    assert_eq!(scene.call().await, Err(away()));
    assert_eq!(scene.fake.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn another_key_of_the_region_is_still_asked() {
    let scene = Scene::set();
    let broken = scene.key.to_string();
    scene.fake.rule(move |call| match call.key == broken {
        true => Err(away()),
        false => Ok(()),
    });
    scene.open().await;
    scene.call_of(&key(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_a_probe_wedges_nothing_and_its_success_lets_all_pass() {
    let scene = Scene::timed(10_000, 30_000);
    scene.fake.fail(away());
    scene.open().await;
    scene.fake.heal();
    for abandoned in [true, false] {
        let asked = scene.fake.calls();
        let held = scene.fake.hold().await;
        // Refused until a probe may begin, which is held.
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        let mut probing = None;
        soon(async {
            while probing.is_none() {
                ticks.tick().await;
                let guarded = Arc::clone(&scene.guarded);
                let key = scene.key.clone();
                let mut probe = tokio::spawn(async move {
                    let context = EncryptionContext::default();
                    guarded
                        .generate_data_key(&key, &context, &demand())
                        .await
                        .map(drop)
                });
                tokio::select! {
                    ended = &mut probe => assert!(ended.unwrap().is_err()),
                    () = scene.fake.reached(asked + 1) => probing = Some(probe),
                }
            }
        })
        .await;
        let probe = probing.unwrap();
        for _ in 0..10 {
            scene.call().await.unwrap_err();
        }
        assert_eq!(scene.fake.calls(), asked + 1, "one probe at a time");
        if abandoned {
            probe.abort();
            assert!(probe.await.unwrap_err().is_cancelled());
        } else {
            drop(held);
            probe.await.unwrap().unwrap();
        }
    }
    join_all((0..10).map(|_| scene.call()))
        .await
        .into_iter()
        .for_each(Result::unwrap);
    let tally = scene.metrics.kms("eu-west-1");
    let count = |outcome| tally.requests(KmsOperation::GenerateDataKey, outcome);
    assert_eq!(count(KmsOutcome::Abandoned), 1);
    assert_eq!(count(KmsOutcome::Done), 11);
    assert_eq!(tally.circuit_state(), 0);
}
