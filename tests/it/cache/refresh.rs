//! Successors of data keys: fetched before they are needed, and what happens when they are not to
//! be had.

use std::time::Duration;

use keybroker::kms;
use keybroker::metrics::Retirement;
use tokio::sync::mpsc;

use super::in_table;
use super::limited;
use super::on_a_clock;
use super::use_for;
use crate::harness::Broker;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;
use crate::harness::until;

/// Past every soft limit of five minutes, and before the hard one.
const SOFT: u64 = 280;

#[tokio::test]
async fn callers_go_on_with_the_old_key_until_the_new_one_is_there() {
    let (start, clock) = on_a_clock();
    let broker = start.await;
    let mut web = broker.caller(WEB).await;
    use_for(&mut web, &clock, 200).await;
    assert_eq!(broker.kms_calls(), 1, "before the soft limit");
    let held = broker.kms.hold().await;
    use_for(&mut web, &clock, SOFT - 200).await;
    broker.kms.reached(2).await;
    for _ in 0..10 {
        web.encrypt(encrypt("keys/orders", "x"))
            .await
            .expect("nobody waits for the one that is under way");
    }
    assert_eq!(broker.kms_calls(), 2, "one successor, whoever asks");
    assert!(broker.metrics.lookups().stale >= 10);
    drop(held);
    until(|| broker.metrics.refreshes().done == 1).await;
    assert_eq!(broker.metrics.retirements(Retirement::Age), 1);
    // The old key is over now, and KMS out of reach: the successor serves.
    broker.kms.fail(kms::Error::Unavailable("away".into()));
    clock.advance(Duration::from_secs(30));
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(broker.metrics.lookups().misses, 1, "the very first call's");
}

#[tokio::test]
async fn a_key_that_nobody_uses_any_more_gets_no_successor() {
    let (start, clock) = on_a_clock();
    let broker = limited(start, "max_age = \"20s\"").await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    for _ in 0..100 {
        clock.advance(Duration::from_secs(1));
        broker.inner().data_keys().sweep();
        until(|| broker.metrics.refreshes().done + 1 >= broker.kms_calls() as u64).await;
    }
    assert!(broker.kms_calls() <= 2, "{} calls", broker.kms_calls());
}

#[tokio::test]
async fn an_idle_caller_finds_its_key_refreshed() {
    let (start, clock) = on_a_clock();
    let broker = start.await;
    let mut web = broker.caller(WEB).await;
    // Used every 50 s, so never within most seconds; the sweep sees to the successor.
    use_for(&mut web, &clock, 250).await;
    for _ in 0..49 {
        clock.advance(Duration::from_secs(1));
        broker.inner().data_keys().sweep();
    }
    until(|| broker.metrics.refreshes().done == 1).await;
    clock.advance(Duration::from_secs(1));
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(broker.metrics.lookups().misses, 1);
}

#[tokio::test]
async fn a_successor_that_is_not_to_be_had_leaves_the_key_to_its_hard_limit() {
    let (start, clock) = on_a_clock();
    let broker = start.await;
    let mut web = broker.caller(WEB).await;
    use_for(&mut web, &clock, 200).await;
    broker.kms.fail(kms::Error::Unavailable("away".into()));
    for _ in 200..299 {
        clock.advance(Duration::from_secs(1));
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
        broker.inner().data_keys().sweep();
        let failed = || broker.metrics.refreshes().failed + 1;
        until(|| failed() == broker.kms_calls() as u64).await;
    }
    let failed = broker.metrics.refreshes().failed;
    assert!((2..=12).contains(&failed), "{failed} tries in 30 to 90 s");
    broker.inner().data_keys().sweep();
    assert_eq!(broker.metrics.reasons(), ["kms"], "which shows");
    clock.advance(Duration::from_secs(1));
    let refused = web.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(refused), "KMS_UNAVAILABLE");
    broker.kms.heal();
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    broker.inner().data_keys().sweep();
    assert!(broker.metrics.reasons().is_empty(), "and stops to show");
}

#[tokio::test]
async fn a_successor_gives_way_to_callers_until_its_own_are_about_to_wait() {
    for (step, urgent) in [(1, false), (98, true)] {
        let (start, clock) = on_a_clock();
        let broker = start.await;
        let mut web = broker.caller(WEB).await;
        use_for(&mut web, &clock, 200).await;
        let (told, mut calls) = mpsc::unbounded_channel();
        broker.kms.rule(move |call| {
            told.send(call.urgent).unwrap();
            Ok(())
        });
        for _ in 0..99 / step {
            clock.advance(Duration::from_secs(step));
            web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
            if broker.kms_calls() > 1 {
                break;
            }
        }
        assert_eq!(soon(calls.recv()).await, Some(urgent));
    }
}

#[tokio::test]
async fn only_so_many_successors_of_a_tenant_are_fetched_at_once() {
    let (start, clock) = on_a_clock();
    let broker = start.with(|setup| setup.cache.refreshes = 8).await;
    let mut web = broker.caller(WEB).await;
    let tables: Vec<String> = (0..10).map(|table| table.to_string()).collect();
    for second in [0, 50, 100, 150, 200] {
        if second > 0 {
            clock.advance(Duration::from_secs(50));
        }
        for table in &tables {
            web.encrypt(in_table(table)).await.unwrap();
        }
    }
    assert_eq!(broker.kms_calls(), 10);
    let held = broker.kms.hold().await;
    clock.advance(Duration::from_secs(SOFT - 200));
    for table in tables.iter().chain(&tables) {
        web.encrypt(in_table(table)).await.unwrap();
    }
    broker.kms.reached(12).await;
    broker.inner().data_keys().sweep();
    assert_eq!(broker.kms_calls(), 12);
    drop(held);
    until(|| broker.metrics.refreshes().done == 10).await;
    assert_eq!(broker.kms_calls(), 20);
}

#[tokio::test]
async fn a_key_whose_messages_run_low_has_a_successor() {
    let broker = limited(Broker::start(), "max_messages = 2000").await;
    let mut web = broker.caller(WEB).await;
    for _ in 0..1900 {
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    }
    until(|| broker.metrics.refreshes().done == 1).await;
    assert_eq!(broker.metrics.retirements(Retirement::Messages), 1);
    for _ in 0..400 {
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    }
    assert_eq!(broker.metrics.lookups().misses, 1);
    assert_eq!(broker.kms_calls(), 2);
}

#[tokio::test]
async fn a_refused_successor_takes_the_key_with_it() {
    let (start, clock) = on_a_clock();
    let broker = start.await;
    let mut web = broker.caller(WEB).await;
    use_for(&mut web, &clock, 200).await;
    broker.kms.fail(kms::Error::Disabled);
    clock.advance(Duration::from_secs(SOFT - 200 - 30));
    web.encrypt(encrypt("keys/orders", "x")).await.ok();
    clock.advance(Duration::from_secs(30));
    web.encrypt(encrypt("keys/orders", "x")).await.ok();
    until(|| broker.metrics.refreshes().refused == 1).await;
    let refused = web.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(refused), "KEY_DISABLED");
    assert_eq!(broker.metrics.retirements(Retirement::Denied), 1);
}
