//! The data-key cache over the wire: who has data keys, until when, and why no longer.

mod expiry;
mod purge;
mod refresh;
mod refusals;
mod shares;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keybroker::clock::Manual;
use keybroker::grpc::pb;
use keybroker::kms;
use keybroker::metrics::Retirement;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::Start;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::pairs;
use crate::harness::rpcs::seal;

/// A broker on a clock that stands still, and the clock.
fn on_a_clock() -> (Start, Arc<Manual>) {
    let clock = Arc::new(Manual::new(Timestamp::now()));
    let theirs = Arc::clone(&clock);
    let start = Broker::start().with(|setup| setup.clock = theirs);
    (start, clock)
}

/// A broker whose key `orders` of acme has these cache limits.
fn limited(start: Start, limits: &str) -> Start {
    let tenants = TENANTS.replacen(
        "kms = \"local:acme-orders\"",
        &format!("kms = \"local:acme-orders\"\ncache = {{ {limits} }}"),
        1,
    );
    start.with(|setup| setup.tenants = tenants)
}

/// An Encrypt under `orders` whose context holds `table`.
fn in_table(table: &str) -> pb::EncryptRequest {
    pb::EncryptRequest {
        encryption_context: pairs([("table", table)]),
        ..encrypt("keys/orders", "x")
    }
}

/// Encrypts under `orders` now and every 50 s, so that the key never idles.
async fn use_for(web: &mut Client, clock: &Manual, seconds: u64) {
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let mut left = seconds;
    while left > 0 {
        let step = left.min(50);
        clock.advance(Duration::from_secs(step));
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
        left -= step;
    }
}

#[tokio::test]
async fn why_a_key_was_retired_is_counted() {
    let (start, clock) = on_a_clock();
    let broker = limited(start, "max_messages = 2, max_bytes = 10").await;
    let mut web = broker.caller(WEB).await;
    let cache = broker.inner().data_keys();
    let retired = |why: Retirement| {
        let counts = Retirement::ALL.map(|one| broker.metrics.retirements(one));
        let at = Retirement::ALL.iter().position(|one| *one == why).unwrap();
        let total: u64 = counts.iter().sum();
        (counts[at], total)
    };
    // Two messages, and the third finds the key spent.
    for _ in 0..3 {
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    }
    assert_eq!(retired(Retirement::Messages), (1, 1));
    // Nine bytes after the one that the second key has sealed are one too many with the next.
    web.encrypt(encrypt("keys/orders", vec![0; 10]))
        .await
        .unwrap();
    assert_eq!(retired(Retirement::Bytes), (1, 2));
    clock.advance(Duration::from_secs(59));
    cache.sweep();
    assert_eq!(retired(Retirement::Idle), (0, 2));
    clock.advance(Duration::from_secs(2));
    cache.sweep();
    assert_eq!(retired(Retirement::Idle), (1, 3));
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    clock.advance(Duration::from_secs(301));
    cache.sweep();
    assert_eq!(retired(Retirement::Age), (1, 4));
}

#[tokio::test]
async fn a_machine_that_slept_wakes_with_dead_keys() {
    let (start, clock) = on_a_clock();
    let broker = start.await;
    let mut web = broker.caller(WEB).await;
    let sealed = seal(&mut web, "keys/orders", "x").await;
    broker.kms.fail(kms::Error::Unavailable("away".into()));
    clock.advance(Duration::from_secs(3600));
    let refused = web.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(refused), "KMS_UNAVAILABLE");
    let refused = web.decrypt(decrypt(&sealed)).await;
    assert_eq!(reason(refused), "KMS_UNAVAILABLE");
}

#[tokio::test]
async fn an_answer_that_comes_after_a_sleep_is_too_old() {
    let (start, clock) = on_a_clock();
    let broker = start.await;
    let web = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let mut caller = web.clone();
    let asking = tokio::spawn(async move { caller.encrypt(encrypt("keys/orders", "x")).await });
    broker.kms.reached(1).await;
    clock.advance(Duration::from_secs(3600));
    drop(held);
    assert_eq!(reason(asking.await.unwrap()), "KMS_UNAVAILABLE");
    web.clone()
        .encrypt(encrypt("keys/orders", "x"))
        .await
        .unwrap();
    assert_eq!(broker.kms_calls(), 2);
}

#[tokio::test]
async fn a_key_that_the_directory_binds_anew_is_retired_at_once() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    web.encrypt(encrypt("keys/invoices", "x")).await.unwrap();
    let rebound = TENANTS.replace(
        "kms = \"local:acme-orders\"",
        "kms = [\"local:acme-orders\", \"local:acme-orders-2\"]",
    );
    broker.reload_policy(&rebound);
    assert_eq!(broker.metrics.retirements(Retirement::Rotated), 1);
    web.encrypt(encrypt("keys/invoices", "x")).await.unwrap();
    assert_eq!(broker.kms_calls(), 2, "another key's data keys stay");
    broker.reload_policy(&TENANTS.replace("id = \"invoices\"", "id = \"bills\""));
    assert_eq!(
        broker.metrics.retirements(Retirement::Rotated),
        2,
        "and so is one that is no longer there"
    );
}

#[tokio::test]
async fn calls_that_kms_was_spared_are_counted_for_their_tenant() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    for _ in 0..5 {
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    }
    assert_eq!(broker.metrics.avoided(), 4);
    let lookups = broker.metrics.lookups();
    assert_eq!((lookups.misses, lookups.hits), (1, 4));
}
