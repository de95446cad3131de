//! A stream goes on only as long as a new call would be served.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use keybroker::clock::Manual;
use keybroker::datakeys::Scope;
use keybroker::directory::Standing;
use keybroker::grpc::pb;
use keybroker::kms;
use tokio::time::Instant;
use tonic::Code;

use super::Decrypting;
use super::Encrypting;
use super::encrypt_whole;
use super::text;
use crate::harness::Authority;
use crate::harness::Broker;
use crate::harness::Refusal;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::encrypt_start;
use crate::harness::rpcs::pairs;
use crate::harness::soon;

/// A stream each way, both of which wait for more.
async fn both(broker: &Broker) -> (Encrypting, Decrypting) {
    let mut web = broker.caller(WEB).await;
    let sealed = encrypt_whole(&mut web, encrypt_start("keys/orders"), &text(10_000), 5000).await;
    let sealed = Bytes::from(sealed.whole());
    let start = encrypt_start("keys/orders");
    let sealing = Encrypting::begin(&mut web, start).await.unwrap();
    sealing.send(text(5000)).await;
    let opening = Decrypting::begin(&mut web, Default::default(), sealed.slice(..5000));
    (sealing, opening.await.unwrap())
}

/// What both end in, without another request.
async fn ends(sealing: &mut Encrypting, opening: &mut Decrypting) -> Refusal {
    let sealed = Refusal::of(&sealing.rest().await.ended.unwrap_err());
    let opened = Refusal::of(&opening.rest().await.ended.unwrap_err());
    assert_eq!(sealed, opened);
    sealed
}

#[tokio::test]
async fn suspending_a_tenant_ends_its_streams() {
    let broker = Broker::start().await;
    let (mut sealing, mut opening) = both(&broker).await;
    broker.stand(TENANTS, "acme", Standing::Suspended);
    let refusal = ends(&mut sealing, &mut opening).await;
    assert_eq!(refusal.reason, "TENANT_SUSPENDED");
}

#[tokio::test]
async fn a_right_that_is_taken_away_ends_an_idle_stream() {
    let broker = Broker::start().await;
    let (mut sealing, mut opening) = both(&broker).await;
    let without = TENANTS.replace(
        "kms = \"local:acme-orders\"\nusers = [\"spiffe://prod.example/tenant/acme/sa/web\", ",
        "kms = \"local:acme-orders\"\nusers = [",
    );
    assert_ne!(without, TENANTS);
    broker.reload_policy(&without);
    let refusal = ends(&mut sealing, &mut opening).await;
    assert_eq!(refusal.code, Code::PermissionDenied);
    assert_eq!(refusal.reason, "POLICY_DENIED");
}

#[tokio::test]
async fn a_key_that_is_gone_ends_a_stream_as_a_call() {
    let broker = Broker::start().await;
    let (mut sealing, mut opening) = both(&broker).await;
    broker.reload_policy("");
    let refusal = ends(&mut sealing, &mut opening).await;
    assert_eq!(refusal.reason, "POLICY_DENIED");
}

#[tokio::test]
async fn a_key_that_was_changed_asks_for_a_new_stream() {
    let broker = Broker::start().await;
    let (mut sealing, mut opening) = both(&broker).await;
    let changed = TENANTS.replace(
        "kms = \"local:acme-orders\"",
        "kms = [\"local:acme-orders\", \"local:acme-new\"]",
    );
    assert_ne!(changed, TENANTS);
    broker.reload_policy(&changed);
    let refusal = ends(&mut sealing, &mut opening).await;
    assert_eq!(refusal.code, Code::Unavailable);
    assert_eq!(refusal.reason, "DATA_KEY_WITHDRAWN");
    assert_eq!(refusal.retry, Some(Duration::from_millis(500)));
}

#[tokio::test]
async fn a_reload_that_changes_nothing_for_it_leaves_a_stream_alone() {
    let broker = Broker::start().await;
    let (mut sealing, opening) = both(&broker).await;
    let other = TENANTS.replace("local:globex-orders", "local:globex-new");
    broker.reload_policy(&other);
    // Longer than the right is left unlooked at.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1200) {
        assert!(sealing.send("x").await);
    }
    sealing.requests = None;
    sealing.rest().await.whole();
    let status = opening.finish().await.ended;
    assert_eq!(
        reason(status),
        "CIPHERTEXT_INVALID",
        "cut short by the test"
    );
}

#[tokio::test]
async fn an_expired_certificate_ends_a_stream() {
    let clock = Arc::new(Manual::new(Timestamp::now()));
    let given = Arc::clone(&clock);
    let broker = Broker::start().with(|setup| setup.clock = given).await;
    let (mut sealing, mut opening) = both(&broker).await;
    clock.advance(Duration::from_secs(100 * 365 * 86_400));
    let refusal = ends(&mut sealing, &mut opening).await;
    assert_eq!(refusal.code, Code::Unauthenticated);
    assert_eq!(refusal.reason, "IDENTITY_EXPIRED");
}

#[tokio::test]
async fn a_data_key_that_is_old_serves_a_stream_on_only_if_kms_says_so() {
    let clock = Arc::new(Manual::new(Timestamp::now()));
    let given = Arc::clone(&clock);
    let broker = Broker::start().with(|setup| setup.clock = given).await;
    let (mut sealing, mut opening) = both(&broker).await;
    let calls = broker.kms_calls();
    clock.advance(Duration::from_secs(301));
    broker.kms.reached(calls + 2).await;
    assert!(sealing.send("x").await);
    sealing.requests = None;
    sealing.rest().await.whole();

    clock.advance(Duration::from_secs(301));
    broker.kms.fail(kms::Error::Disabled);
    let refusal = Refusal::of(&opening.rest().await.ended.unwrap_err());
    assert_eq!(refusal.code, Code::FailedPrecondition);
    assert_eq!(refusal.reason, "KEY_DISABLED");
}

#[tokio::test]
async fn a_purge_does_not_wait_for_a_kms_that_is_asked_about_an_old_data_key() {
    let clock = Arc::new(Manual::new(Timestamp::now()));
    let given = Arc::clone(&clock);
    let broker = Broker::start().with(|setup| setup.clock = given).await;
    let (mut sealing, mut opening) = both(&broker).await;
    let calls = broker.kms_calls();
    let held = broker.kms.hold().await;
    clock.advance(Duration::from_secs(301));
    broker.kms.reached(calls + 2).await;
    let began = Instant::now();
    soon(broker.inner().data_keys().purge(&Scope::All)).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    let refusal = ends(&mut sealing, &mut opening).await;
    assert_eq!(refusal.reason, "DATA_KEY_WITHDRAWN");
    drop(held);
}

#[tokio::test]
async fn a_panic_on_behalf_of_a_stream_ends_that_stream_alone() {
    let clock = Arc::new(Manual::new(Timestamp::now()));
    let given = Arc::clone(&clock);
    let broker = Broker::start().with(|setup| setup.clock = given).await;
    let mut web = broker.caller(WEB).await;
    let in_table = |table: &str| pb::EncryptStreamStart {
        encryption_context: pairs([("table", table)]),
        ..encrypt_start("keys/orders")
    };
    let even = Encrypting::begin(&mut web, in_table("even")).await.unwrap();
    let mut odd = Encrypting::begin(&mut web, in_table("odd")).await.unwrap();
    broker.kms.rule(|call| match call.context.value("table") {
        Some("odd") => panic!("a KMS that was told to panic"),
        _ => Ok(()),
    });
    let calls = broker.kms_calls();
    clock.advance(Duration::from_secs(301));
    broker.kms.reached(calls + 2).await;
    let refusal = Refusal::of(&odd.rest().await.ended.unwrap_err());
    assert_eq!(refusal.code, Code::Internal);
    assert_eq!(refusal.reason, "INTERNAL");
    assert!(even.send("x").await);
    even.finish().await.whole();
}

#[tokio::test]
async fn a_revoked_certificate_ends_a_stream() {
    let broker = Broker::start()
        .with(|setup| {
            let authority = Authority::new("prod.example");
            setup.trust_with_crl(&authority, &authority.revoke(&[]));
            setup.authority = authority;
        })
        .await;
    let identity = broker.authority.client(WEB);
    let mut web = broker.client(&identity).await;
    let mut open = Encrypting::begin(&mut web, encrypt_start("keys/orders"))
        .await
        .unwrap();
    broker.write("prod.example.crl", &broker.authority.revoke(&[&identity]));
    broker.reload_tls().unwrap();
    let refusal = Refusal::of(&open.rest().await.ended.unwrap_err());
    assert_eq!(refusal.reason, "IDENTITY_REVOKED");
}

#[tokio::test]
async fn a_purge_ends_idle_streams_and_need_not_wait_for_their_clients() {
    let broker = Broker::start().await;
    let (mut sealing, mut opening) = both(&broker).await;
    let began = Instant::now();
    let purged = soon(broker.inner().data_keys().purge(&Scope::All)).await;
    let took = began.elapsed();
    assert!(purged >= 2, "{purged}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    let refusal = ends(&mut sealing, &mut opening).await;
    assert_eq!(refusal.code, Code::Unavailable);
    assert_eq!(refusal.reason, "DATA_KEY_WITHDRAWN");
}

#[tokio::test]
async fn a_purge_ends_a_busy_stream_and_one_whose_reader_stalls() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let stalled = Encrypting::begin(&mut web, encrypt_start("keys/orders"))
        .await
        .unwrap();
    let stalling = tokio::spawn(async move {
        while stalled.send(text(1 << 20)).await {}
        stalled
    });
    let mut web = broker.caller(WEB).await;
    let mut busy = Encrypting::begin(&mut web, encrypt_start("keys/orders"))
        .await
        .unwrap();
    let requests = busy.requests.take().unwrap();
    let sending = tokio::spawn(async move {
        let chunk = super::encrypt_parts(encrypt_start(""), [text(100_000)]).swap_remove(1);
        let mut sent = 0_usize;
        while requests.send(chunk.clone()).await.is_ok() {
            sent += 1;
        }
        sent
    });
    let reading = tokio::spawn(async move { busy.rest().await });
    let began = Instant::now();
    soon(broker.inner().data_keys().purge(&Scope::All)).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    let ended = soon(reading).await.unwrap().ended;
    assert_eq!(reason(ended), "DATA_KEY_WITHDRAWN");
    soon(sending).await.unwrap();
    let mut stalled = soon(stalling).await.unwrap();
    assert_eq!(reason(stalled.rest().await.ended), "DATA_KEY_WITHDRAWN");
}
