//! Calls on one connection, one of which goes wrong.

use std::time::Duration;

use futures_util::FutureExt as _;
use keybroker::grpc::pb;
use keybroker::kms::Error;
use tokio::task::JoinSet;
use tonic::IntoRequest as _;

use crate::harness::Broker;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;

#[tokio::test]
async fn a_call_that_is_never_answered_holds_up_no_other() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let _held = broker.kms.hold().await;
    let mut slow = web.clone();
    let mut request = encrypt("keys/invoices", "x").into_request();
    request.set_timeout(Duration::from_secs(3));
    let mut never = tokio::spawn(async move { slow.encrypt(request).await });
    broker.kms.reached(2).await;
    for size in [1, 1 << 10, 64 << 10, 1 << 20].repeat(25) {
        let answered = web.encrypt(encrypt("keys/orders", vec![7; size]));
        // Not even for a while: it would be the call's whole deadline.
        let within = tokio::time::timeout(Duration::from_secs(2), answered).await;
        within.expect("answered meanwhile").unwrap();
        if (&mut never).now_or_never().is_some() {
            break;
        }
    }
}

#[tokio::test]
async fn a_call_without_an_answer_ends_by_its_deadline() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let _held = broker.kms.hold().await;
    let mut request = encrypt("keys/invoices", "x").into_request();
    request.set_timeout(Duration::from_millis(300));
    let refused = soon(web.encrypt(request)).await;
    assert_eq!(reason(refused), "DEADLINE_EXCEEDED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_panic_harm_no_other() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    broker.kms.rule(|call| match call.key.as_str() {
        "local:acme-invoices" => panic!("a KMS that was told to panic"),
        _ => Err(Error::Throttled),
    });
    let mut good = web.clone();
    let served = tokio::spawn(async move {
        for n in 0..200 {
            let request = encrypt("keys/orders", vec![7; 1 + n * 100]);
            good.encrypt(request).await.unwrap();
        }
    });
    for _ in 0..20 {
        let outcome = soon(web.encrypt(encrypt("keys/invoices", "x"))).await;
        assert_eq!(reason(outcome), "INTERNAL");
    }
    soon(served).await.unwrap();
    assert_eq!(broker.records().len(), 221);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_large_calls_than_there_is_room_for_wait_and_are_all_served() {
    let broker = Broker::start().await;
    let web = broker.caller(WEB).await;
    let mut calls = JoinSet::new();
    for n in 0..60 {
        let mut web = web.clone();
        calls.spawn(async move {
            if n % 3 == 0 {
                let items = vec![encrypt("keys/orders", vec![7; 1 << 10]); 1000];
                let request = pb::EncryptBatchRequest { items };
                let answered = web.encrypt_batch(request).await.unwrap().into_inner();
                assert_eq!(answered.results.len(), 1000);
            } else {
                let answered = web.encrypt(encrypt("keys/orders", vec![7; 1 << 20])).await;
                assert!(answered.unwrap().into_inner().ciphertext.len() > 1 << 20);
            }
        });
    }
    calls.join_all().await;
}
