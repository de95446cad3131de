//! Data keys: one KMS call serves many, within limits that hold, and nobody's fate is another's.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keybroker::clock;
use keybroker::grpc::pb;
use keybroker::kms;
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::GLOBEX;
use crate::harness::Start;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::pairs;
use crate::harness::rpcs::seal;

/// A broker whose key `orders` of acme has these cache limits.
fn limited(limits: &str) -> Start {
    let tenants = TENANTS.replacen(
        "kms = \"local:acme-orders\"",
        &format!("kms = \"local:acme-orders\"\ncache = {{ {limits} }}"),
        1,
    );
    Broker::start().with(|setup| setup.tenants = tenants)
}

#[tokio::test]
async fn a_thousand_messages_make_one_kms_call() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    for _ in 0..1000 {
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    }
    assert_eq!(broker.kms_calls(), 1);
    let stats = broker.inner().data_keys().stats();
    assert_eq!((stats.misses, stats.hits, stats.kms_calls), (1, 999, 1));
}

#[tokio::test]
async fn what_this_broker_sealed_opens_without_kms_and_elsewhere_with_one_call() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let sealed = seal(&mut web, "keys/orders", "x").await;
    for _ in 0..3 {
        web.decrypt(decrypt(&sealed)).await.unwrap();
    }
    assert_eq!(broker.kms.decrypt_calls(), 0);

    let other = Broker::start()
        .with(|setup| setup.kms = Some(broker.kms.clone()))
        .await;
    let mut web = other.caller(WEB).await;
    for _ in 0..3 {
        web.decrypt(decrypt(&sealed)).await.unwrap();
    }
    assert_eq!(broker.kms.decrypt_calls(), 1);
}

#[tokio::test]
async fn a_thousand_cold_misses_at_once_make_one_kms_call() {
    let broker = Broker::start().await;
    let held = broker.kms.hold().await;
    let mut calls = JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..20 {
        let web = broker.caller(WEB).await;
        for _ in 0..50 {
            let mut web = web.clone();
            calls.spawn(async move { web.encrypt(encrypt("keys/orders", "x")).await });
        }
        connections.push(web);
    }
    broker.kms.reached(1).await;
    for web in &mut connections {
        // Answered after the fifty before it on the same connection were taken in.
        let request = pb::GenerateRandomRequest { number_of_bytes: 1 };
        web.generate_random(request).await.unwrap();
    }
    drop(held);
    while let Some(call) = calls.join_next().await {
        call.unwrap().unwrap();
    }
    assert_eq!(broker.kms_calls(), 1);
    let stats = broker.inner().data_keys().stats();
    assert_eq!(stats.misses, 1);
    assert_eq!(stats.coalesced + stats.hits, 999);
    assert!(stats.coalesced > 0);
}

#[tokio::test]
async fn a_leader_who_goes_away_harms_nobody() {
    let broker = Broker::start().await;
    let leader = broker.caller(WEB).await;
    let mut follower = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let leading = spawn_encrypt(&leader, "keys/orders");
    broker.kms.reached(1).await;
    let following = spawn_encrypt(&follower, "keys/orders");
    let request = pb::GenerateRandomRequest { number_of_bytes: 1 };
    follower.generate_random(request).await.unwrap();
    leading.abort();
    broker.trail.reached(2).await;
    drop(held);
    following.await.unwrap().unwrap();
    assert_eq!(broker.kms_calls(), 1);
}

fn spawn_encrypt(
    client: &Client,
    key: &'static str,
) -> tokio::task::JoinHandle<Result<(), tonic::Status>> {
    let mut client = client.clone();
    tokio::spawn(async move { client.encrypt(encrypt(key, "x")).await.map(drop) })
}

#[tokio::test]
async fn all_who_wait_get_the_failure_and_the_next_asks_anew() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let calls: Vec<_> = (0..10)
        .map(|_| spawn_encrypt(&web, "keys/orders"))
        .collect();
    broker.kms.reached(1).await;
    let request = pb::GenerateRandomRequest { number_of_bytes: 1 };
    web.generate_random(request).await.unwrap();
    broker.kms.fail(kms::Error::Throttled);
    drop(held);
    for call in calls {
        assert_eq!(reason(call.await.unwrap()), "KMS_THROTTLED");
    }
    assert_eq!(broker.kms_calls(), 1);
    broker.kms.heal();
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(broker.kms_calls(), 2);
}

#[tokio::test]
async fn a_panic_in_kms_fails_its_waiters_alone() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/invoices", "x")).await.unwrap();
    broker.kms.panic();
    let refused = web.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(refused), "INTERNAL");
    web.encrypt(encrypt("keys/invoices", "x"))
        .await
        .expect("another key's calls go on, on the same connection");
    broker.kms.heal();
    web.encrypt(encrypt("keys/orders", "x"))
        .await
        .expect("and so do this key's");
}

#[tokio::test]
async fn a_kms_that_hangs_for_one_key_holds_up_no_other() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/invoices", "x")).await.unwrap();
    let held = broker.kms.hold().await;
    let waiting = spawn_encrypt(&web, "keys/orders");
    broker.kms.reached(2).await;
    web.encrypt(encrypt("keys/invoices", "x")).await.unwrap();
    drop(held);
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_data_key_seals_so_many_messages_and_no_more() {
    let broker = limited("max_messages = 3").await;
    let mut web = broker.caller(WEB).await;
    let mut calls = Vec::new();
    for _ in 0..7 {
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
        calls.push(broker.kms_calls());
    }
    assert_eq!(calls, [1, 1, 1, 2, 2, 2, 3]);
}

#[tokio::test]
async fn callers_at_once_keep_within_the_limit_of_messages() {
    let broker = limited("max_messages = 3").await;
    let web = broker.caller(WEB).await;
    let calls: Vec<_> = (0..30)
        .map(|_| spawn_encrypt(&web, "keys/orders"))
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert!(broker.kms_calls() >= 10, "{} data keys", broker.kms_calls());
    assert!(broker.kms_calls() <= 30);
}

#[tokio::test]
async fn a_data_key_seals_so_many_bytes_and_no_more() {
    let broker = limited("max_bytes = 100").await;
    let mut web = broker.caller(WEB).await;
    let mut calls = Vec::new();
    for size in [60, 40, 1, 99, 100] {
        web.encrypt(encrypt("keys/orders", vec![0; size]))
            .await
            .unwrap();
        calls.push(broker.kms_calls());
    }
    assert_eq!(calls, [1, 1, 2, 2, 3]);
}

#[tokio::test]
async fn a_message_over_the_limit_of_bytes_has_a_data_key_of_its_own() {
    let broker = limited("max_bytes = 100").await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    for calls in [2, 3] {
        let large = encrypt("keys/orders", vec![0; 101]);
        let sealed = web.encrypt(large).await.unwrap().into_inner();
        assert_eq!(broker.kms.generate_calls(), calls);
        let opened = web.decrypt(decrypt(&sealed.ciphertext)).await.unwrap();
        assert_eq!(opened.into_inner().plaintext.len(), 101);
    }
    assert_eq!(broker.kms.decrypt_calls(), 0, "what was wrapped here");
    let generated = broker.kms.generate_calls();
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(
        broker.kms.generate_calls(),
        generated,
        "the shared data key is as it was"
    );
}

#[tokio::test]
async fn a_data_key_serves_no_longer_than_its_age() {
    let clock = Arc::new(clock::Manual::new(Timestamp::now()));
    let theirs = clock.clone();
    let broker = limited("max_age = \"5m\"")
        .with(|setup| setup.clock = theirs)
        .await;
    let mut web = broker.caller(WEB).await;
    let sealed = seal(&mut web, "keys/orders", "x").await;
    clock.advance(Duration::from_secs(50));
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    web.decrypt(decrypt(&sealed)).await.unwrap();
    assert_eq!(broker.kms_calls(), 1);
    clock.advance(Duration::from_secs(250));
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(broker.kms.generate_calls(), 2, "to seal");
    web.decrypt(decrypt(&sealed)).await.unwrap();
    assert_eq!(broker.kms.decrypt_calls(), 1, "and to open");
}

#[tokio::test]
async fn past_its_age_a_data_key_serves_nobody_even_while_kms_is_away() {
    let clock = Arc::new(clock::Manual::new(Timestamp::now()));
    let theirs = clock.clone();
    let broker = Broker::start().with(|setup| setup.clock = theirs).await;
    let mut web = broker.caller(WEB).await;
    let sealed = seal(&mut web, "keys/orders", "x").await;
    broker.kms.fail(kms::Error::Unavailable("away".into()));
    for span in [50, 50, 50, 50, 50, 49] {
        clock.advance(Duration::from_secs(span));
        web.encrypt(encrypt("keys/orders", "x"))
            .await
            .expect("within its age the cache coasts");
        web.decrypt(decrypt(&sealed)).await.unwrap();
    }
    clock.advance(Duration::from_secs(1));
    let refused = web.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(refused), "KMS_UNAVAILABLE");
    let refused = web.decrypt(decrypt(&sealed)).await;
    assert_eq!(reason(refused), "KMS_UNAVAILABLE");
}

#[tokio::test]
async fn each_key_tenant_and_context_has_data_keys_of_its_own() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let mut globex = broker.caller(GLOBEX).await;
    for _ in 0..2 {
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
        web.encrypt(encrypt("keys/invoices", "x")).await.unwrap();
        globex.encrypt(encrypt("keys/orders", "x")).await.unwrap();
        for value in ["a", "b"] {
            let request = pb::EncryptRequest {
                encryption_context: pairs([("table", value)]),
                ..encrypt("keys/orders", "x")
            };
            web.encrypt(request).await.unwrap();
        }
        // What differs per record does not count.
        for value in ["a", "b"] {
            let request = pb::EncryptRequest {
                associated_data: value.into(),
                ..encrypt("keys/orders", "x")
            };
            web.encrypt(request).await.unwrap();
        }
    }
    assert_eq!(broker.kms_calls(), 5);
}

#[tokio::test]
async fn a_new_kms_key_seals_from_the_reload_on_and_the_old_one_still_opens() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let old = seal(&mut web, "keys/orders", "old").await;
    broker.reload_policy(&TENANTS.replace(
        "kms = \"local:acme-orders\"",
        "kms = [\"local:acme-orders\", \"local:acme-orders-2\"]",
    ));
    seal(&mut web, "keys/orders", "new").await;
    let records = broker.records();
    assert_eq!(
        records[1]["resources"][0]["ARN"],
        json!("fake/acme-orders-2/1")
    );
    let opened = web.decrypt(decrypt(&old)).await.unwrap().into_inner();
    assert_eq!(opened.plaintext, "old");
    assert!(!opened.used_primary, "which says that ReEncrypt is due");
}
