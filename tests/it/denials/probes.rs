//! What finds out whether KMS refuses a key or one context of it, in virtual time.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keybroker::error::Error;
use keybroker::kms;
use keybroker::metrics::Metrics;

use crate::harness::FakeKms;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::unwired::Caller;
use crate::harness::unwired::Unwired;

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_lost_is_made_again() {
    let scene = Scene::set();
    let web = scene.broker.caller(WEB);
    encrypt(&web, "used").await.unwrap();
    let probes = AtomicUsize::new(0);
    scene
        .kms
        .rule(move |call| match call.context.value("table") {
            Some(_) => Err(denied()),
            None if probes.fetch_add(1, Ordering::SeqCst) < 2 => Err(kms::Error::Throttled),
            None => Err(denied()),
        });
    is_denied(encrypt(&web, "new").await);
    encrypt(&web, "used").await.expect("nothing is known yet");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(scene.kms.dry_runs(), 3);
    is_denied(encrypt(&web, "used").await);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_lost_again_and_again_is_given_up() {
    let scene = Scene::set();
    let web = scene.broker.caller(WEB);
    encrypt(&web, "used").await.unwrap();
    scene.kms.rule(|call| match call.context.value("table") {
        Some(_) => Err(denied()),
        None => Err(kms::Error::Unavailable("away".into())),
    });
    is_denied(encrypt(&web, "new").await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(scene.kms.dry_runs(), 3);
    encrypt(&web, "used")
        .await
        .expect("it is not known to be refused");
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_all_whether_a_refusal_holds_may_leave() {
    let scene = Scene::set();
    let web = scene.broker.caller(WEB);
    scene.kms.fail(denied());
    is_denied(encrypt(&web, "a").await);
    // Longer than it is remembered.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let asked = scene.kms.dry_runs();
    scene.kms.heal();
    let held = scene.kms.hold().await;
    let leaving = web.encrypt("keys/orders", &[("table", "b")], Duration::from_millis(1));
    assert!(matches!(leaving.await.map(drop), Err(Error::Expired)));
    drop(held);
    tokio::time::sleep(Duration::from_millis(1)).await;
    encrypt(&web, "b").await.expect("it was found out for all");
    assert_eq!(scene.kms.dry_runs(), asked + 1);
}

/// A broker of acme and globex.
struct Scene {
    kms: Arc<FakeKms>,
    broker: Unwired,
}

impl Scene {
    fn set() -> Self {
        let kms = Arc::new(FakeKms::default());
        let broker = Unwired::over(kms.clone(), Metrics::unread(), TENANTS);
        Self { kms, broker }
    }
}

async fn encrypt(web: &Caller, table: &str) -> Result<(), Error> {
    let pairs = [("table", table)];
    let sealed = web.encrypt("keys/orders", &pairs, Duration::from_secs(5));
    sealed.await.map(drop)
}

fn denied() -> kms::Error {
    kms::Error::AccessDenied("no kms:GenerateDataKey".into())
}

fn is_denied(answer: Result<(), Error>) {
    assert!(
        matches!(answer, Err(Error::KmsAccessDenied(_))),
        "{answer:?}"
    );
}
