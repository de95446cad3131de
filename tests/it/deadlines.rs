//! Calls that take too long, come too many at once, or blow up: each ends by itself and alone.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;
use tonic::IntoRequest as _;

use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;

#[tokio::test]
async fn a_call_ends_at_its_clients_deadline_whatever_kms_does() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let mut request = encrypt("keys/orders", "x").into_request();
    request.set_timeout(Duration::from_millis(200));
    let began = Instant::now();
    // The client here has no timer of its own: this is the server's answer.
    let refused = soon(web.encrypt(request)).await.unwrap_err();
    let refusal = Refusal::of(&refused);
    assert_eq!(refusal.code, Code::DeadlineExceeded);
    assert_eq!(refusal.reason, "DEADLINE_EXCEEDED");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(150), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop(held);
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(broker.kms_calls(), 1, "the KMS call went on without it");
}

#[tokio::test]
async fn a_deadline_that_has_passed_is_answered_at_once() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let _held = broker.kms.hold().await;
    let mut request = encrypt("keys/orders", "x").into_request();
    let header = "0n".parse().unwrap();
    request.metadata_mut().insert("grpc-timeout", header);
    let refused = soon(web.encrypt(request)).await.unwrap_err();
    assert_eq!(Refusal::of(&refused).reason, "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn a_call_that_finds_no_place_is_turned_away() {
    let broker = Broker::start()
        .with(|setup| setup.limits.in_flight = 0)
        .await;
    let mut web = broker.caller(WEB).await;
    let refused = web.encrypt(encrypt("keys/orders", "x")).await;
    let refusal = Refusal::of(&refused.unwrap_err());
    assert_eq!(refusal.reason, "OVERLOADED");
    assert_eq!(broker.kms_calls(), 0);
}

#[tokio::test]
async fn one_waiter_over_a_tenants_quarter_is_turned_away_and_a_place_is_given_back() {
    let broker = Broker::start()
        .with(|setup| {
            setup.cache.waiters = 8;
            // Those who wait have given theirs up.
            setup.limits.in_flight = 1;
        })
        .await;
    let mut web = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let calls: Vec<_> = ["keys/orders", "keys/invoices"]
        .map(|key| {
            let mut web = web.clone();
            tokio::spawn(async move { web.encrypt(encrypt(key, "x")).await.map(drop) })
        })
        .into();
    broker.kms.reached(2).await;
    // On a connection of its own as well: the limit is the process's.
    let mut other = broker.caller(WEB).await;
    for client in [&mut web, &mut other] {
        let refused = client.encrypt(encrypt("keys/orders", "x")).await;
        let refusal = Refusal::of(&refused.unwrap_err());
        assert_eq!(refusal.code, Code::ResourceExhausted);
        assert_eq!(refusal.reason, "OVERLOADED");
    }
    let mut globex = broker.caller(GLOBEX).await;
    let others =
        tokio::spawn(async move { globex.encrypt(encrypt("keys/orders", "x")).await.map(drop) });
    broker.kms.reached(3).await;
    drop(held);
    for call in calls.into_iter().chain([others]) {
        call.await.unwrap().unwrap();
    }
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let records = broker.records();
    let turned_away = records
        .iter()
        .filter(|record| record["errorCode"] == "OVERLOADED");
    assert_eq!(turned_away.count(), 2);
    assert_eq!(records.len(), 6);
}

#[tokio::test]
async fn a_place_is_given_back_by_those_who_go_away() {
    let broker = Broker::start()
        .with(|setup| {
            setup.limits.in_flight = 1;
            setup.cache.waiters = 4;
        })
        .await;
    let mut web = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let mut leaving = web.clone();
    let call =
        tokio::spawn(async move { leaving.encrypt(encrypt("keys/orders", "x")).await.map(drop) });
    broker.kms.reached(1).await;
    call.abort();
    broker.trail.reached(1).await;
    drop(held);
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}

#[tokio::test]
async fn calls_under_way_finish_when_the_server_stops() {
    let mut broker = Broker::start().await;
    let web = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let mut calling = web.clone();
    let call =
        tokio::spawn(async move { calling.encrypt(encrypt("keys/orders", "x")).await.map(drop) });
    broker.kms.reached(1).await;
    broker.ask_to_stop();
    drop(held);
    call.await.unwrap().unwrap();
    drop(web);
    broker.stop().await;
}
