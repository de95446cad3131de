//! Tenants that are suspended, and what is known of tenants when the store has not been heard of.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keybroker::clock::Clock;
use keybroker::clock::Manual;
use keybroker::directory::Standing;
use keybroker::grpc::pb;
use keybroker::store::Freshness;
use tonic::Status;

use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;

const SHARED: &str = "tenants/acme/keys/shared";

/// A call of a suspended tenant's caller.
pub async fn suspended() -> Status {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    broker.stand(TENANTS, "acme", Standing::Suspended);
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap_err()
}

/// A call to a broker that has never heard of its store.
pub async fn unheard() -> Status {
    let broker = Broker::start()
        .with(|setup| {
            let freshness = Freshness::new(Arc::clone(&setup.clock), Duration::from_secs(5));
            setup.freshness = Some(Arc::new(freshness));
        })
        .await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap_err()
}

#[tokio::test]
async fn a_suspended_tenant_can_do_nothing_and_nobody_uses_its_keys() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let mut globex = broker.caller(GLOBEX).await;
    let other = "spiffe://prod.example/tenant/globex/sa/other";
    let mut stranger = broker.caller(other).await;
    let sealed = web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let sealed = sealed.into_inner().ciphertext;
    globex.encrypt(encrypt(SHARED, "x")).await.unwrap();
    globex.encrypt(encrypt("keys/orders", "x")).await.unwrap();

    broker.stand(TENANTS, "acme", Standing::Suspended);
    let random = pb::GenerateRandomRequest { number_of_bytes: 8 };
    for outcome in [
        reason(web.encrypt(encrypt("keys/orders", "x")).await),
        reason(web.decrypt(decrypt(&sealed)).await),
        reason(web.list_keys(pb::ListKeysRequest::default()).await),
        reason(web.generate_random(random).await),
        reason(globex.encrypt(encrypt(SHARED, "x")).await),
    ] {
        assert_eq!(outcome, "TENANT_SUSPENDED");
    }
    // Who may not use the key learns nothing.
    let denied = reason(stranger.encrypt(encrypt(SHARED, "x")).await);
    assert_eq!(denied, "POLICY_DENIED");
    globex.encrypt(encrypt("keys/orders", "x")).await.unwrap();

    broker.stand(TENANTS, "acme", Standing::Active);
    let before = broker.kms_calls();
    let opened = web.decrypt(decrypt(&sealed)).await.unwrap();
    assert_eq!(opened.into_inner().plaintext.as_ref(), b"x");
    assert_eq!(broker.kms_calls(), before + 1, "its data keys were dropped");
}

#[tokio::test]
async fn what_was_known_counts_for_a_while_and_for_each_tenant_as_long_as_it_says() {
    let clock = Arc::new(Manual::new(Timestamp::now()));
    let freshness = Freshness::new(clock.clone(), Duration::from_secs(60));
    let freshness = Arc::new(freshness);
    freshness.heard(clock.now());
    // Neither its own callers nor others use acme's keys on older word than 5 s.
    let limited = "id = \"acme\"\nmax_staleness = \"5s\"";
    let tenants = TENANTS.replacen("id = \"acme\"", limited, 1);
    let broker = Broker::start()
        .with(|setup| {
            setup.tenants = tenants;
            setup.clock = clock.clone();
            setup.freshness = Some(Arc::clone(&freshness));
        })
        .await;
    let mut web = broker.caller(WEB).await;
    let mut globex = broker.caller(GLOBEX).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    globex.encrypt(encrypt(SHARED, "x")).await.unwrap();

    clock.advance(Duration::from_secs(5));
    let unavailable = |outcome: String| assert_eq!(outcome, "STORE_UNAVAILABLE");
    unavailable(reason(web.encrypt(encrypt("keys/orders", "x")).await));
    unavailable(reason(globex.encrypt(encrypt(SHARED, "x")).await));
    globex.encrypt(encrypt("keys/orders", "x")).await.unwrap();

    clock.advance(Duration::from_secs(55));
    unavailable(reason(globex.encrypt(encrypt("keys/orders", "x")).await));
    unavailable(reason(globex.encrypt(encrypt("keys/absent", "x")).await));

    freshness.heard(clock.now());
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    globex.encrypt(encrypt(SHARED, "x")).await.unwrap();
}
