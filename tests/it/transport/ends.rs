//! How connections and the server end, and what becomes of calls under way.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use jiff::SignedDuration;
use keybroker::grpc::pb;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::raw::ACK;
use super::raw::DATA;
use super::raw::ENCRYPT;
use super::raw::GOAWAY;
use super::raw::HEADERS;
use super::raw::NO_ERROR;
use super::raw::PING;
use super::raw::Raw;
use super::raw::call;
use super::raw::cancel;
use super::raw::frame;
use super::raw::open;
use crate::harness::Broker;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;

#[tokio::test]
async fn an_old_connection_is_asked_to_go_and_its_call_finishes() {
    let broker = Broker::start()
        .with(|setup| setup.limits.connection_age = SignedDuration::from_millis(300))
        .await;
    let held = broker.kms.hold().await;
    let web = broker.authority.client(WEB);
    let mut raw = Raw::new(broker.tls(Some(&web)).await.unwrap()).await;
    raw.write(&call(1, &encrypt("keys/orders", "x")))
        .await
        .unwrap();
    broker.kms.reached(1).await;
    assert_eq!(raw.goaway().await, Some(NO_ERROR));
    drop(held);
    // Head, message, trailers.
    assert_eq!(raw.until(HEADERS).await.unwrap().stream, 1);
    assert!(raw.until(DATA).await.unwrap().payload.len() > 100);
    raw.until(HEADERS).await.unwrap();
    raw.ended().await;
    assert_eq!(broker.records()[0]["errorCode"], serde_json::Value::Null);
}

#[tokio::test]
async fn connections_made_together_do_not_end_together() {
    let broker = Broker::start()
        .with(|setup| setup.limits.connection_age = SignedDuration::from_secs(2))
        .await;
    let web = broker.authority.client(WEB);
    #[expect(clippy::disallowed_methods, reason = "how long the test itself waited")]
    let began = Instant::now();
    let mut ends = Vec::new();
    for _ in 0..8 {
        let stream = broker.tls(Some(&web)).await.unwrap();
        ends.push(tokio::spawn(async move {
            let mut raw = Raw::new(stream).await;
            raw.until(GOAWAY).await.unwrap();
            began.elapsed()
        }));
    }
    let mut times = Vec::new();
    for end in ends {
        times.push(end.await.unwrap());
    }
    let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    assert!(*first >= Duration::from_millis(1_800), "{times:?}");
    assert!(*last - *first > Duration::from_millis(60), "{times:?}");
}

#[tokio::test]
async fn a_client_that_says_goaway_gets_its_answers_and_then_the_end() {
    let broker = Broker::start().await;
    let held = broker.kms.hold().await;
    let web = broker.authority.client(WEB);
    let mut raw = Raw::new(broker.tls(Some(&web)).await.unwrap()).await;
    for stream in [1, 3, 5] {
        let bytes = call(stream, &encrypt("keys/orders", "x"));
        raw.write(&bytes).await.unwrap();
    }
    broker.kms.reached(1).await;
    // It knows of no stream of ours, and has no complaint.
    raw.write(&frame(GOAWAY, 0, 0, &[0; 8])).await.unwrap();
    drop(held);
    let answers = raw.answers(3).await;
    for stream in [1, 3, 5] {
        answers[&stream].message::<pb::EncryptResponse>();
    }
    raw.ended().await;
    assert!(
        broker
            .records()
            .iter()
            .all(|record| record["errorCode"].is_null())
    );
}

#[tokio::test]
async fn tcp_that_ends_without_a_word_of_tls_ends_the_connection_and_its_calls() {
    let broker = Broker::start().await;
    let mut honest = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let web = broker.authority.client(WEB);
    let mut raw = Raw::new(broker.tls(Some(&web)).await.unwrap()).await;
    for stream in [1, 3] {
        let bytes = call(stream, &encrypt("keys/orders", "x"));
        raw.write(&bytes).await.unwrap();
    }
    broker.kms.reached(1).await;
    let (mut tcp, _) = raw.into_inner().into_inner();
    tcp.shutdown().await.unwrap();
    // The server closes too, and doesn't wait for KMS.
    let mut rest = Vec::new();
    let _ = soon(tcp.read_to_end(&mut rest)).await;
    broker.trail.reached(2).await;
    for record in broker.records() {
        assert_eq!(record["errorCode"], "ABANDONED");
    }
    drop(held);
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}

#[tokio::test]
async fn a_request_that_breaks_off_is_its_callers_doing() {
    let broker = Broker::start().await;
    let web = broker.authority.client(WEB);
    let mut raw = Raw::new(broker.tls(Some(&web)).await.unwrap()).await;
    let whole = call(1, &encrypt("keys/orders", "x"));
    let head = open(1, ENCRYPT);
    // All but the last byte, in a frame that does not end the stream.
    let body = &whole[head.len() + 9..whole.len() - 1];
    raw.write(&[head, frame(DATA, 0, 1, body), frame(PING, 0, 0, &[7; 8])].concat())
        .await
        .unwrap();
    while raw.until(PING).await.unwrap().flags != ACK {}
    raw.write(&cancel(1)).await.unwrap();
    broker.trail.reached(1).await;
    assert_eq!(broker.records()[0]["errorCode"], "ABANDONED");
}

#[tokio::test]
async fn a_call_that_outlasts_the_grace_is_cut_off() {
    let broker = Broker::start()
        .with(|setup| {
            setup.limits.connection_age = SignedDuration::from_millis(100);
            setup.limits.deadlines.grace = Duration::from_millis(200);
        })
        .await;
    let _held = broker.kms.hold().await;
    let mut web = broker.caller(WEB).await;
    soon(web.encrypt(encrypt("keys/orders", "x")))
        .await
        .unwrap_err();
    // It is on record nevertheless.
    broker.trail.reached(1).await;
}

#[tokio::test]
async fn an_idle_connection_is_asked_to_go() {
    let broker = Broker::start()
        .with(|setup| setup.limits.deadlines.idle = Duration::from_millis(300))
        .await;
    let connection = broker.connect(&broker.authority.client(WEB)).await.unwrap();
    let mut client = connection.client();
    client.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    soon(connection.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_peer_that_shows_no_sign_of_life_is_cut_off() {
    let broker = Broker::start()
        .with(|setup| {
            setup.limits.deadlines.ping = Duration::from_millis(200);
            setup.limits.deadlines.pong = Duration::from_millis(200);
        })
        .await;
    let web = broker.authority.client(WEB);
    let mut honest = broker.caller(WEB).await;
    let mut raw = Raw::new(broker.tls(Some(&web)).await.unwrap()).await;
    // Reads, but answers nothing.
    soon(async { while raw.next().await.is_some() {} }).await;
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}

#[tokio::test]
async fn a_panic_ends_its_own_call_alone() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let held = broker.kms.hold().await;
    broker.kms.panic();
    let (panicking, orders) = tokio::join!(
        async {
            let mut web = web.clone();
            web.encrypt(encrypt("keys/invoices", "x")).await
        },
        async {
            broker.kms.reached(2).await;
            drop(held);
            let mut web = web.clone();
            web.encrypt(encrypt("keys/orders", "x")).await
        }
    );
    assert_eq!(reason(panicking), "INTERNAL");
    orders.unwrap();
    broker.kms.heal();
    web.encrypt(encrypt("keys/invoices", "x")).await.unwrap();
}

#[tokio::test]
async fn the_server_stops_in_its_time_whatever_half_open_peers_do() {
    let broker = Broker::start()
        .with(|setup| setup.limits.drain = SignedDuration::from_millis(500))
        .await;
    let web = broker.authority.client(WEB);
    // One without a handshake, one without a preface, one that reads and answers nothing.
    let _silent = TcpStream::connect(broker.address()).await.unwrap();
    let _mute = broker.tls(Some(&web)).await.unwrap();
    let _deaf = Raw::new(broker.tls(Some(&web)).await.unwrap()).await;
    #[expect(clippy::disallowed_methods, reason = "how long the test itself waited")]
    let began = Instant::now();
    broker.stop().await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn a_stopping_server_takes_no_new_connections() {
    let mut broker = Broker::start().await;
    let web = broker.authority.client(WEB);
    let held = broker.kms.hold().await;
    let mut client = broker.client(&web).await;
    let last = tokio::spawn(async move { client.encrypt(encrypt("keys/orders", "x")).await });
    broker.kms.reached(1).await;
    broker.ask_to_stop();
    soon(async { while TcpStream::connect(broker.address()).await.is_ok() {} }).await;
    drop(held);
    last.await.unwrap().unwrap();
    broker.stop().await;
}

/// Whether the call was never sent because the connection is going, as the client says; whether
/// that is true, records tell.
fn never_processed(status: &tonic::Status) -> bool {
    let error = status
        .source()
        .and_then(|source| source.downcast_ref::<hyper::Error>());
    let gone = error.is_some_and(|error| {
        error.is_canceled() || format!("{error:?}").contains("GoAway(b\"\", NO_ERROR, Remote)")
    });
    // tonic's word for a connection that was closed before the call was begun.
    gone || status.message().starts_with("Service was not ready")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_when_the_server_stops_under_load() {
    for _ in 0..5 {
        let mut broker = Broker::start().await;
        let (started, mut all) = tokio::sync::watch::channel(0);
        let started = Arc::new(started);
        let mut callers = Vec::new();
        for _ in 0..8 {
            let mut web = broker.caller(WEB).await;
            let started = Arc::clone(&started);
            callers.push(tokio::spawn(async move {
                let mut served = 0_usize;
                loop {
                    match web.encrypt(encrypt("keys/orders", "x")).await {
                        Ok(_) => served += 1,
                        Err(status) if never_processed(&status) => return served,
                        Err(status) => panic!("after {served}: {status:?}"),
                    }
                    started.send_modify(|calls| *calls += 1);
                }
            }));
        }
        all.wait_for(|calls| *calls >= 100).await.unwrap();
        broker.ask_to_stop();
        let mut served = 0;
        for caller in callers {
            served += soon(caller).await.unwrap();
        }
        let records = broker.trail.clone();
        broker.stop().await;
        let records = records.records();
        assert!(records.iter().all(|record| record["errorCode"].is_null()));
        assert_eq!(records.len(), served);
    }
}
