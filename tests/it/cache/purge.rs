//! A purge ends data keys for good: in the cache, on their way, and in the hands of calls.

use futures_util::FutureExt as _;
use keybroker::datakeys::Patience;
use keybroker::datakeys::Scope;
use keybroker::grants::Backing;
use keybroker::identity::Leaf;
use keybroker::identity::Peer;
use keybroker::metrics::Retirement;
use keybroker::policy::Action;

use super::in_table;
use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::WEB;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::seal;
use crate::harness::soon;

#[tokio::test]
async fn what_is_purged_is_asked_of_kms_anew_and_the_rest_stays() {
    let tenant = |id: &str| Scope::Tenant(id.parse().unwrap());
    let key = |tenant: &str, key: &str| {
        Scope::Key(keybroker::name::KeyName {
            tenant: tenant.parse().unwrap(),
            key: key.parse().unwrap(),
        })
    };
    // What is purged, how many that are, and how many KMS calls two tenants then make.
    for (scope, purged, calls) in [
        (Scope::All, 5, 5),
        (tenant("acme"), 4, 4),
        (tenant("globex"), 1, 1),
        (tenant("nobody"), 0, 0),
        (key("acme", "orders"), 3, 3),
        (key("acme", "invoices"), 1, 1),
        (key("acme", "nothing"), 0, 0),
    ] {
        let broker = Broker::start().await;
        let mut web = broker.caller(WEB).await;
        let mut globex = broker.caller(GLOBEX).await;
        let mut everything = async || {
            web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
            web.encrypt(in_table("a")).await.unwrap();
            web.encrypt(in_table("b")).await.unwrap();
            web.encrypt(encrypt("keys/invoices", "x")).await.unwrap();
            globex.encrypt(encrypt("keys/orders", "x")).await.unwrap();
        };
        everything().await;
        assert_eq!(broker.kms_calls(), 5);
        assert_eq!(broker.inner().data_keys().purge(&scope).await, purged);
        assert_eq!(broker.metrics.retirements(Retirement::Purge), purged as u64);
        everything().await;
        assert_eq!(broker.kms_calls(), 5 + calls, "{scope:?}");
    }
}

#[tokio::test]
async fn what_opens_is_purged_too() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let sealed = seal(&mut web, "keys/orders", "x").await;
    broker.inner().data_keys().purge(&Scope::All).await;
    web.decrypt(decrypt(&sealed)).await.unwrap();
    assert_eq!(broker.kms.decrypt_calls(), 1);
}

#[tokio::test]
async fn a_purge_waits_for_the_call_that_holds_a_key() {
    let broker = Broker::start().await;
    let policy = broker.inner().policy();
    let certificate = broker.authority.client(WEB).chain().swap_remove(0);
    let peer = Peer::certified(Leaf::parse(&certificate).unwrap());
    let caller = policy.rules().map(&peer).unwrap();
    let name = "tenants/acme/keys/orders";
    let name = keybroker::name::KeyName::parse(name, caller.tenant()).unwrap();
    let permit = policy
        .authorize_seal(&caller, Action::Encrypt, &name, &[], Backing::NONE)
        .unwrap();
    let cache = broker.inner().data_keys();
    let reserved = cache
        .sealing(&permit, 1, &Patience::default())
        .await
        .unwrap();
    let mut purge = Box::pin(cache.purge(&Scope::All));
    assert_eq!(
        purge.as_mut().now_or_never(),
        None,
        "somebody holds the key"
    );
    cache.sweep();
    let mut again = Box::pin(cache.purge(&Scope::All));
    assert_eq!(again.as_mut().now_or_never(), None, "and does still");
    reserved
        .seal(b"", b"x")
        .expect("what was reserved is served");
    assert_eq!((soon(purge).await, soon(again).await), (1, 1));
}

#[tokio::test]
async fn a_key_on_its_way_during_a_purge_serves_nobody() {
    let broker = Broker::start().await;
    let web = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let mut caller = web.clone();
    let waiting = tokio::spawn(async move { caller.encrypt(in_table("a")).await });
    broker.kms.reached(1).await;
    assert_eq!(broker.inner().data_keys().purge(&Scope::All).await, 0);
    drop(held);
    soon(waiting).await.unwrap().unwrap();
    assert_eq!(broker.kms_calls(), 2, "its caller was served by another");
    web.clone().encrypt(in_table("a")).await.unwrap();
    assert_eq!(broker.kms_calls(), 2);
}
