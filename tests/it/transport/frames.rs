//! What the broker says of its limits on a connection, and peers that don't keep pace.

use std::time::Duration;

use tokio::net::TcpStream;

use super::raw::ENCRYPT;
use super::raw::END_HEADERS;
use super::raw::HEADERS;
use super::raw::PREFACE;
use super::raw::PROTOCOL_ERROR;
use super::raw::REFUSED_STREAM;
use super::raw::RST_STREAM;
use super::raw::Raw;
use super::raw::SETTINGS;
use super::raw::block;
use super::raw::frame;
use super::raw::open;
use crate::harness::Broker;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;

/// A broker whose peers have 300 ms for a handshake, a preface or a frame.
async fn impatient() -> Broker {
    Broker::start()
        .with(|setup| {
            setup.limits.deadlines.handshake = Duration::from_millis(300);
            setup.limits.deadlines.frame = Duration::from_millis(300);
        })
        .await
}

async fn raw(broker: &Broker) -> Raw<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> {
    let web = broker.authority.client(WEB);
    Raw::silent(broker.tls(Some(&web)).await.unwrap())
}

/// The bytes of a good beginning.
fn hello() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

#[tokio::test]
async fn settings_say_what_a_client_may_do() {
    let broker = Broker::start().await;
    let mut raw = raw(&broker).await;
    raw.write(&hello()).await.unwrap();
    let settings = raw.until(SETTINGS).await.unwrap();
    let values: Vec<(u16, u32)> = settings
        .payload
        .chunks(6)
        .map(|pair| {
            let (name, value) = pair.split_at(2);
            let name = u16::from_be_bytes(name.try_into().unwrap());
            (name, u32::from_be_bytes(value.try_into().unwrap()))
        })
        .collect();
    // HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE,
    // MAX_HEADER_LIST_SIZE, each sent even where it is the protocol's default.
    let expected = [(1, 4096), (3, 64), (4, 128 << 10), (5, 32 << 10), (6, 8192)];
    for pair in expected {
        assert!(values.contains(&pair), "{pair:?} in {values:?}");
    }
}

#[tokio::test]
async fn the_65th_stream_is_refused_and_the_others_go_on() {
    let broker = Broker::start().await;
    let mut raw = raw(&broker).await;
    raw.write(&hello()).await.unwrap();
    let streams: Vec<u8> = (0..65).flat_map(|n| open(2 * n + 1, ENCRYPT)).collect();
    raw.write(&streams).await.unwrap();
    let refused = raw.until(RST_STREAM).await.unwrap();
    assert_eq!((refused.stream, refused.code()), (129, REFUSED_STREAM));
    // An honest end of the first lets another in.
    raw.write(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()))
        .await
        .unwrap();
    raw.write(&super::raw::call(131, &encrypt("keys/orders", "x")))
        .await
        .unwrap();
    let answer = raw.until(HEADERS).await.unwrap();
    assert_eq!(answer.stream, 131);
}

#[tokio::test]
async fn who_says_nothing_is_closed() {
    let broker = impatient().await;
    let stream = TcpStream::connect(broker.address()).await.unwrap();
    Raw::silent(stream).ended().await;
    // Half a ClientHello: a handshake record that is longer than what comes.
    let stream = TcpStream::connect(broker.address()).await.unwrap();
    let mut half = Raw::silent(stream);
    half.write(&[22, 3, 1, 2, 0, 1, 0, 1, 252]).await.unwrap();
    half.ended().await;
}

#[tokio::test]
async fn who_stops_in_the_middle_is_closed() {
    let broker = impatient().await;
    let mut honest = broker.caller(WEB).await;
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let headers = frame(HEADERS, END_HEADERS, 1, &block(ENCRYPT));
    let unfinished = frame(HEADERS, 0, 1, &block(ENCRYPT));
    for (what, bytes) in [
        ("no preface", vec![]),
        ("half a preface", PREFACE[..12].to_vec()),
        ("no SETTINGS", PREFACE.to_vec()),
        ("half a frame header", [&hello(), &headers[..5]].concat()),
        ("half of HEADERS", [&hello(), &headers[..20]].concat()),
        ("no CONTINUATION", [hello(), unfinished].concat()),
    ] {
        let mut raw = raw(&broker).await;
        raw.write(&bytes).await.unwrap();
        println!("{what}");
        raw.ended().await;
    }
    // It was silent all that while, between frames: that is idle, and well.
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}

#[tokio::test]
async fn who_drips_is_closed() {
    let broker = impatient().await;
    for start in [vec![], hello()] {
        let mut raw = raw(&broker).await;
        raw.write(&start).await.unwrap();
        let rest = [&hello()[start.len()..], &open(1, ENCRYPT)].concat();
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        let cut = soon(async {
            for byte in rest {
                ticks.tick().await;
                if raw.write(&[byte]).await.is_err() {
                    return true;
                }
            }
            false
        });
        assert!(cut.await, "all of it was taken");
    }
}

#[tokio::test]
async fn a_path_that_only_looks_like_a_method_reaches_nothing() {
    let broker = Broker::start().await;
    let web = broker.authority.client(WEB);
    let wire = broker.connect(&web).await.unwrap().wire;
    let body = crate::harness::framed(&prost::Message::encode_to_vec(&encrypt("keys/orders", "x")));
    let paths = [
        "//keybroker.v1.KeyBrokerService/Encrypt",
        "/keybroker.v1.KeyBrokerService//Encrypt",
        "/keybroker.v1.KeyBrokerService/Encrypt/",
        "/keybroker.v1.KeyBrokerService/encrypt",
        "/KEYBROKER.V1.KEYBROKERSERVICE/ENCRYPT",
        "/keybroker.v1.KeyBrokerService%2fEncrypt",
        "/keybroker.v1.KeyBrokerService/Encryp%74",
        "/keybroker.v1.KeyBrokerService/./Encrypt",
        "/keybroker.v1.KeyBrokerService/",
        "/grpc.health.v1.Health/../keybroker.v1.KeyBrokerService/Encrypt",
        "/grpc.health.v1.Health/Nothing",
        "/grpc.reflection.v1.ServerReflection/Nothing",
        "/x",
        "/",
    ];
    for path in paths {
        let answer = wire.send(path, &[], body.clone()).await;
        let refusal = Refusal::of(&answer.status);
        assert_eq!(refusal.code, tonic::Code::Unimplemented, "{path}");
        assert_eq!(refusal.reason, "METHOD_UNKNOWN", "{path}");
    }
    assert_eq!(broker.kms_calls(), 0);
    let records = broker.records();
    assert_eq!(records.len(), paths.len());
    for record in &records {
        assert_eq!(record["errorCode"], "METHOD_UNKNOWN");
        assert_eq!(record["userIdentity"]["principalId"], WEB);
    }
}

#[tokio::test]
async fn a_path_without_its_slash_is_reset() {
    let broker = Broker::start().await;
    let mut raw = raw(&broker).await;
    raw.write(&hello()).await.unwrap();
    raw.write(&open(1, &ENCRYPT[1..])).await.unwrap();
    let reset = raw.until(RST_STREAM).await.unwrap();
    assert_eq!(reset.code(), PROTOCOL_ERROR);
    assert_eq!(broker.kms_calls(), 0);
}
