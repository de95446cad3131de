//! Peers that ask for more than they take: what their answers cost, and how it ends.

use std::time::Duration;

use jiff::SignedDuration;
use keybroker::grpc::pb;
use prost::Message as _;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::alone::alone;
use super::alone::resident;
use super::certificates::admits;
use super::raw::DATA;
use super::raw::HEADERS;
use super::raw::PREFACE;
use super::raw::Raw;
use super::raw::all_room;
use super::raw::frame;
use super::raw::open;
use super::raw::stream_room;
use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::Setup;
use crate::harness::WEB;
use crate::harness::framed;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;

/// `decrypt_only` of acme's `orders`.
const READER: &str = "spiffe://prod.example/tenant/acme/sa/reader";
const DECRYPT: &str = "/keybroker.v1.KeyBrokerService/Decrypt";
const STREAMS: u32 = 64;
/// So many of its large calls does a connection have room for at once.
const SERVED: u32 = 3;
/// The room that a connection has for large calls, as much again for copies under way, and what
/// the buffers of 64 calls take that wait for it.
const MOST: u64 = 24 << 20;

/// One that asks for 64 answers of 1 MiB and takes none of them yet, on the only connection that
/// its identity may have. Another is served.
async fn greedy(
    change: impl FnOnce(&mut Setup),
) -> (Broker, Client, Raw<TlsStream<TcpStream>>, u64) {
    let broker = Broker::start()
        .with(|setup| {
            setup.limits.connections_per_identity = 1;
            change(setup);
        })
        .await;
    let mut honest = broker.caller(WEB).await;
    let largest = encrypt("keys/orders", vec![7; 1 << 20]);
    let sealed = honest.encrypt(largest).await.unwrap().into_inner();
    let request = framed(&decrypt(&sealed.ciphertext).encode_to_vec());
    drop(sealed);

    let reader = broker.authority.client(READER);
    let mut raw = Raw::silent(broker.tls(Some(&reader)).await.unwrap());
    raw.write(&[PREFACE, &stream_room(0)].concat())
        .await
        .unwrap();
    // One that is served first has warmed everything up.
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let before = resident();
    for n in 0..SERVED {
        let stream = 2 * n + 1;
        raw.write(&open(stream, DECRYPT)).await.unwrap();
        raw.upload(stream, &request).await;
    }
    for n in SERVED..STREAMS {
        let stream = 2 * n + 1;
        let begun = frame(DATA, 0, stream, &request[..2 << 10]);
        raw.write(&[open(stream, DECRYPT), begun].concat())
            .await
            .unwrap();
    }
    broker.trail.reached(2 + SERVED as usize).await;
    assert!(
        broker
            .records()
            .iter()
            .all(|record| record["errorCode"].is_null())
    );
    bounded(before);
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    (broker, honest, raw, before)
}

fn bounded(before: u64) {
    let grown = resident().saturating_sub(before);
    assert!(grown <= MOST, "{} MiB more", grown >> 20);
}

#[tokio::test]
async fn answers_without_room_are_bounded_and_go_with_the_connection() {
    let name = "answers_without_room_are_bounded_and_go_with_the_connection";
    if !alone(module_path!(), name, 1024) {
        return;
    }
    let (broker, _, mut raw, before) = greedy(|setup| {
        setup.limits.connection_age = SignedDuration::from_secs(5);
        setup.limits.deadlines.grace = Duration::from_millis(200);
    })
    .await;
    bounded(before);
    // It answers pings: only its age ends it.
    raw.ended().await;
    let reader = broker.authority.client(READER);
    soon(async { while !admits(&broker, Some(&reader)).await {} }).await;
}

/// Lets all answers come and reads none of them, until the connection is no more.
async fn starve(change: impl FnOnce(&mut Setup)) {
    let (broker, mut honest, mut raw, before) = greedy(change).await;
    raw.write(&all_room()).await.unwrap();
    let reader = broker.authority.client(READER);
    soon(async {
        while !admits(&broker, Some(&reader)).await {
            if honest.encrypt(encrypt("keys/orders", "x")).await.is_err() {
                // Its connection grew old as well.
                honest = broker.caller(WEB).await;
            }
            bounded(before);
        }
    })
    .await;
    // What was sent before is still to be had, and no more.
    soon(async { while raw.next().await.is_some() {} }).await;
}

#[tokio::test]
async fn answers_that_nobody_reads_are_bounded_and_go_with_the_connection() {
    let name = "answers_that_nobody_reads_are_bounded_and_go_with_the_connection";
    if alone(module_path!(), name, 1024) {
        starve(|setup| {
            setup.limits.connection_age = SignedDuration::from_secs(4);
            setup.limits.deadlines.grace = Duration::from_millis(200);
        })
        .await;
    }
}

#[tokio::test]
async fn who_reads_nothing_is_cut_for_want_of_a_sign_of_life() {
    let name = "who_reads_nothing_is_cut_for_want_of_a_sign_of_life";
    if alone(module_path!(), name, 1024) {
        starve(|setup| {
            setup.limits.deadlines.ping = Duration::from_millis(500);
            setup.limits.deadlines.pong = Duration::from_millis(500);
        })
        .await;
    }
}

#[tokio::test]
async fn a_peer_that_reads_late_gets_all_of_its_answers() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let largest = encrypt("keys/orders", vec![7; 1 << 20]);
    let sealed = web.encrypt(largest).await.unwrap().into_inner();
    let request = framed(&decrypt(&sealed.ciphertext).encode_to_vec());
    let web = broker.authority.client(WEB);
    let mut raw = Raw::silent(broker.tls(Some(&web)).await.unwrap());
    raw.write(&[PREFACE, &stream_room(0)].concat())
        .await
        .unwrap();
    let streams: Vec<u32> = (0..SERVED).map(|n| 2 * n + 1).collect();
    for stream in &streams {
        raw.write(&open(*stream, DECRYPT)).await.unwrap();
        raw.upload(*stream, &request).await;
    }
    broker.trail.reached(1 + streams.len()).await;
    assert_eq!(
        raw.until(HEADERS).await.map(|head| head.payload.is_empty()),
        Some(false)
    );
    raw.write(&all_room()).await.unwrap();
    let answers = raw.answers(streams.len()).await;
    for stream in &streams {
        let opened: pb::DecryptResponse = answers[stream].message();
        assert!(opened.plaintext == vec![7; 1 << 20]);
    }
}
