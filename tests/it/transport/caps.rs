//! How many may connect, and what happens when there is no descriptor for one more.

use std::fs::File;
use std::time::Duration;

use futures_util::FutureExt as _;
use keybroker::grpc::Limits;

use super::alone::alone;
use super::alone::processor;
use super::certificates::admits;
use crate::harness::Broker;
use crate::harness::Setup;
use crate::harness::WEB;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;

const API: &str = "spiffe://prod.example/tenant/acme/sa/api";

async fn limited(change: impl FnOnce(&mut Limits)) -> Broker {
    Broker::start()
        .with(|setup: &mut Setup| change(&mut setup.limits))
        .await
}

/// Waits until a place that was given up is free again.
async fn admits_again(broker: &Broker, id: &str) {
    let identity = broker.authority.client(id);
    soon(async { while !admits(broker, Some(&identity)).await {} }).await;
}

#[tokio::test]
async fn one_connection_more_than_all_waits_for_a_place() {
    let broker = limited(|limits| limits.connections = 2).await;
    let first = broker.connect(&broker.authority.client(WEB)).await.unwrap();
    let mut second = broker.caller(API).await;
    first
        .client()
        .encrypt(encrypt("keys/orders", "x"))
        .await
        .unwrap();
    let identity = broker.authority.client(WEB);
    let mut third = Box::pin(broker.connect(&identity));
    for _ in 0..10 {
        // Not in a policy: answered all the same.
        second
            .encrypt(encrypt("keys/orders", "x"))
            .await
            .unwrap_err();
        assert!(third.as_mut().now_or_never().is_none());
    }
    drop(first);
    let mut third = soon(third).await.unwrap().client();
    third.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}

#[tokio::test]
async fn an_identity_has_its_share_of_connections() {
    let broker = limited(|limits| limits.connections_per_identity = 2).await;
    let first = broker.connect(&broker.authority.client(WEB)).await.unwrap();
    let mut second = broker.caller(WEB).await;
    first
        .client()
        .encrypt(encrypt("keys/orders", "x"))
        .await
        .unwrap();
    second.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    // Another certificate does not make it another identity.
    assert!(!admits(&broker, Some(&broker.authority.client(WEB))).await);
    assert!(admits(&broker, Some(&broker.authority.client(API))).await);
    drop(first);
    admits_again(&broker, WEB).await;
    second.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}

#[tokio::test]
async fn an_address_has_its_share_of_connections_before_it_is_known_whose() {
    let broker = limited(|limits| limits.connections_per_address = 2).await;
    let first = broker.connect(&broker.authority.client(WEB)).await.unwrap();
    let mut second = broker.caller(API).await;
    first
        .client()
        .encrypt(encrypt("keys/orders", "x"))
        .await
        .unwrap();
    let other = broker
        .authority
        .client("spiffe://prod.example/tenant/acme/sa/other");
    assert!(
        broker.tls(Some(&other)).await.is_err(),
        "not even a handshake"
    );
    drop(first);
    admits_again(&broker, WEB).await;
    second
        .encrypt(encrypt("keys/orders", "x"))
        .await
        .unwrap_err();
}

#[tokio::test]
async fn without_descriptors_calls_go_on_and_connections_come_back_when_there_are_some() {
    let name = "without_descriptors_calls_go_on_and_connections_come_back_when_there_are_some";
    if !alone(module_path!(), name, 64) {
        return;
    }
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let identity = broker.authority.client(WEB);

    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    // One for the client's end of a connection; there is none for the server's.
    files.pop();
    let mut late = Box::pin(broker.connect(&identity));
    let began = processor();
    let _ = tokio::time::timeout(Duration::from_secs(2), &mut late)
        .await
        .map(|_| panic!("it connected"));
    let spent = processor() - began;
    assert!(spent <= Duration::from_millis(200), "{spent:?} in 2 s");
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();

    drop(files);
    let mut late = tokio::time::timeout(Duration::from_secs(2), late)
        .await
        .expect("accepted within 2 s")
        .unwrap()
        .client();
    late.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}
