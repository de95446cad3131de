//! Floods of frames, each of which costs its sender the connection and the broker next to nothing.

use std::time::Duration;

use keybroker::grpc::pb;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;

use super::alone::alone;
use super::alone::resident;
use super::raw::CONTINUATION;
use super::raw::DATA;
use super::raw::ENCRYPT;
use super::raw::ENHANCE_YOUR_CALM;
use super::raw::HEADERS;
use super::raw::PING;
use super::raw::RST_STREAM;
use super::raw::Raw;
use super::raw::SETTINGS;
use super::raw::block;
use super::raw::frame;
use super::raw::open;
use crate::harness::Broker;
use crate::harness::WEB;
use crate::harness::rpcs::encrypt;

async fn raw(broker: &Broker) -> Raw<impl AsyncRead + AsyncWrite + Unpin + use<>> {
    let web = broker.authority.client(WEB);
    Raw::new(broker.tls(Some(&web)).await.unwrap()).await
}

/// Floods a broker with `frames` from a peer that does not read before it has sent them all, or
/// can send no more; then tells how the connection ended. Meanwhile and after, others are served
/// and memory stays within 16 MiB.
async fn flood(frames: impl Iterator<Item = Vec<u8>>) -> Option<u32> {
    let broker = Broker::start().await;
    let mut honest = broker.caller(WEB).await;
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let mut raw = raw(&broker).await;
    raw.until(SETTINGS).await.unwrap();
    let before = resident();
    let frames: Vec<_> = frames.collect();
    for some in frames.chunks(100) {
        let bytes = some.concat();
        let sent = raw.write(&bytes);
        match tokio::time::timeout(Duration::from_secs(1), sent).await {
            // Taken.
            Ok(Ok(())) => {}
            // Closed, or not taken any more.
            Ok(Err(_)) | Err(_) => break,
        }
        honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    }
    let grown = resident().saturating_sub(before);
    assert!(grown <= 16 << 20, "{grown} bytes more");
    let code = raw.goaway().await;
    if code.is_some() {
        raw.ended().await;
    }
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    code
}

#[tokio::test]
async fn a_flood_of_streams_ends_the_connection() {
    if alone(
        module_path!(),
        "a_flood_of_streams_ends_the_connection",
        1024,
    ) {
        let frames = (0..20_000).map(|n| open(2 * n + 1, ENCRYPT));
        assert_eq!(flood(frames).await, Some(ENHANCE_YOUR_CALM));
    }
}

#[tokio::test]
async fn a_flood_of_requests_that_are_reset_for_their_path_ends_the_connection() {
    let name = "a_flood_of_requests_that_are_reset_for_their_path_ends_the_connection";
    if alone(module_path!(), name, 1024) {
        let frames = (0..2_000).map(|n| open(2 * n + 1, "bad"));
        assert_eq!(flood(frames).await, Some(ENHANCE_YOUR_CALM));
    }
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    if alone(module_path!(), "rapid_resets_end_the_connection", 1024) {
        let cancel = 8_u32.to_be_bytes();
        let frames = (0..1_000).map(|n| {
            let stream = 2 * n + 1;
            [open(stream, ENCRYPT), frame(RST_STREAM, 0, stream, &cancel)].concat()
        });
        assert_eq!(flood(frames).await, Some(ENHANCE_YOUR_CALM));
    }
}

#[tokio::test]
async fn a_header_block_without_end_ends_the_connection() {
    if alone(
        module_path!(),
        "a_header_block_without_end_ends_the_connection",
        1024,
    ) {
        let first = frame(HEADERS, 0, 1, &block(ENCRYPT));
        // One literal field after the other, each of 100 bytes.
        let field = [b"\x00\x01x\x60".as_slice(), &[b'x'; 96]].concat();
        let more = std::iter::repeat_with(|| frame(CONTINUATION, 0, 1, &field.repeat(100)));
        let code = flood(std::iter::once(first).chain(more.take(1_000))).await;
        assert!(code.is_some(), "GOAWAY");
    }
}

#[tokio::test]
async fn empty_data_without_end_ends_the_connection() {
    if alone(
        module_path!(),
        "empty_data_without_end_ends_the_connection",
        1024,
    ) {
        let more = std::iter::repeat_with(|| frame(DATA, 0, 1, &[]));
        let code = flood(std::iter::once(open(1, ENCRYPT)).chain(more.take(2_000))).await;
        assert_eq!(code, Some(ENHANCE_YOUR_CALM));
    }
}

/// Sends `frames` again and again without reading an answer; for what it may cost, see [`flood`].
async fn unanswered(frames: Vec<u8>) {
    let broker = Broker::start()
        .with(|setup| {
            setup.limits.deadlines.ping = Duration::from_millis(500);
            setup.limits.deadlines.pong = Duration::from_millis(500);
        })
        .await;
    let mut honest = broker.caller(WEB).await;
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let mut raw = raw(&broker).await;
    raw.until(SETTINGS).await.unwrap();
    let before = resident();
    for _ in 0..1_000 {
        let sent = raw.write(&frames);
        match tokio::time::timeout(Duration::from_secs(5), sent).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => break,
        }
    }
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let grown = resident().saturating_sub(before);
    assert!(grown <= 16 << 20, "{grown} bytes more");
    raw.ended().await;
}

#[tokio::test]
async fn pings_whose_answers_nobody_reads_cost_nothing() {
    if alone(
        module_path!(),
        "pings_whose_answers_nobody_reads_cost_nothing",
        1024,
    ) {
        unanswered(frame(PING, 0, 0, &[0; 8]).repeat(1_000)).await;
    }
}

#[tokio::test]
async fn settings_whose_answers_nobody_reads_cost_nothing() {
    if alone(
        module_path!(),
        "settings_whose_answers_nobody_reads_cost_nothing",
        1024,
    ) {
        unanswered(frame(SETTINGS, 0, 0, &[]).repeat(1_000)).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_harms_nobody() {
    if !alone(
        module_path!(),
        "a_client_that_does_not_read_is_cut_off_and_harms_nobody",
        1024,
    ) {
        return;
    }
    let broker = Broker::start()
        .with(|setup| {
            setup.limits.deadlines.ping = Duration::from_secs(1);
            setup.limits.deadlines.pong = Duration::from_secs(1);
        })
        .await;
    let mut honest = broker.caller(WEB).await;
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let mut raw = raw(&broker).await;
    raw.until(SETTINGS).await.unwrap();
    // All the window that there can be: what holds answers back is the transport alone.
    let wide = [0, 4, 0x7f, 0xff, 0xff, 0xff];
    raw.write(&frame(SETTINGS, 0, 0, &wide)).await.unwrap();
    raw.write(&frame(8, 0, 0, &0x7fff_0000_u32.to_be_bytes()))
        .await
        .unwrap();
    let before = resident();
    let random =
        crate::harness::framed(&prost::Message::encode_to_vec(&pb::GenerateRandomRequest {
            number_of_bytes: 1024,
        }));
    let path = "/keybroker.v1.KeyBrokerService/GenerateRandom";
    for n in 0..20_000 {
        let stream = 2 * n + 1;
        let bytes = [open(stream, path), frame(DATA, 1, stream, &random)].concat();
        let sent = raw.write(&bytes);
        match tokio::time::timeout(Duration::from_secs(10), sent).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => break,
        }
        if n % 100 == 0 {
            honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
        }
    }
    let grown = resident().saturating_sub(before);
    assert!(grown <= 16 << 20, "{grown} bytes more");
    raw.ended().await;
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}
