//! Many data keys of one second: their successors do not come in one, and nobody waits for them.

use std::time::Duration;

use keybroker::grpc::pb;
use keybroker::grpc::pb::encrypt_batch_result::Outcome;

use super::in_table;
use super::limited;
use super::on_a_clock;
use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::WEB;
use crate::support::figures;

#[tokio::test]
async fn keys_that_were_filled_together_are_not_refreshed_together() {
    let (start, clock) = on_a_clock();
    let start = start.with(|setup| {
        setup.cache.tenant_entries = 100_000;
        setup.cache.tenant_bytes = 1 << 30;
    });
    let broker = limited(start, "max_age = \"60s\"").await;
    let mut web = broker.caller(WEB).await;
    for batch in 0..BATCHES {
        encrypt_in(&mut web, batch).await;
        clock.advance(Duration::from_secs(1) / BATCHES);
    }
    assert_eq!(broker.kms_calls(), KEYS);

    let misses = broker.metrics.lookups().misses;
    let mut per_second = Vec::new();
    for second in 0..LIFE {
        let before = broker.kms_calls();
        encrypt_in(&mut web, second % BATCHES).await;
        broker.inner().data_keys().sweep();
        settle(&broker).await;
        per_second.push(broker.kms_calls() - before);
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(broker.metrics.lookups().misses, misses, "nobody waited");
    let refreshed: usize = per_second.iter().sum();
    assert!(refreshed >= KEYS, "each key has a successor");
    let peak = *per_second.iter().max().unwrap() as f64;
    let ratio = peak / (refreshed as f64 / f64::from(WINDOW));
    println!("{peak} of {refreshed} successors in one second: {ratio:.2} times the mean");
    figures::record("upstream", [("mass_expiry_peak_to_mean", ratio)]);
    assert!(ratio <= 3.0, "{per_second:?}");
}

/// Encrypts once in each context of a batch.
async fn encrypt_in(web: &mut Client, batch: u32) {
    let contexts = (0..KEYS).skip(batch as usize).step_by(BATCHES as usize);
    let items = contexts.map(|n| in_table(&n.to_string())).collect();
    let answer = web.encrypt_batch(pb::EncryptBatchRequest { items }).await;
    for result in answer.unwrap().into_inner().results {
        assert!(matches!(result.outcome, Some(Outcome::Response(_))));
    }
}

/// A second is long: what has begun in it ends in it.
async fn settle(broker: &Broker) {
    let mut calls = None;
    while calls != Some(broker.kms_calls()) {
        calls = Some(broker.kms_calls());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
}

const KEYS: usize = 10_000;
/// Each key is used once in so many seconds.
const BATCHES: u32 = 10;
/// Of a key, in seconds.
const LIFE: u32 = 59;
/// The seconds of its life in which a key is succeeded: at 70 % to 90 % of its age.
const WINDOW: u32 = 12;
