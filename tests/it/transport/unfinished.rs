//! Calls whose requests never end.

use keybroker::grpc::pb;
use prost::Message as _;

use super::alone::alone;
use super::alone::resident;
use super::raw::DATA;
use super::raw::ENCRYPT;
use super::raw::END_STREAM;
use super::raw::REFUSED_STREAM;
use super::raw::RST_STREAM;
use super::raw::Raw;
use super::raw::frame;
use super::raw::open;
use super::raw::open_with;
use crate::harness::Broker;
use crate::harness::WEB;
use crate::harness::framed;
use crate::harness::rpcs::encrypt;

#[tokio::test]
async fn requests_that_never_end_are_bounded_and_end_by_their_deadlines() {
    let name = "requests_that_never_end_are_bounded_and_end_by_their_deadlines";
    if !alone(module_path!(), name, 1024) {
        return;
    }
    let broker = Broker::start().await;
    let mut honest = broker.caller(WEB).await;
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let web = broker.authority.client(WEB);
    let mut raw = Raw::new(broker.tls(Some(&web)).await.unwrap()).await;
    let before = resident();
    let body = framed(&encrypt("keys/orders", vec![7; 1 << 20]).encode_to_vec());
    // Each announces 1 MiB and sends 1,000 bytes.
    for n in 0..64 {
        let stream = 2 * n + 1;
        let head = open_with(stream, ENCRYPT, &[("grpc-timeout", "2S")]);
        let bytes = [head, frame(DATA, 0, stream, &body[..1_000])].concat();
        raw.write(&bytes).await.unwrap();
    }
    raw.write(&open(129, ENCRYPT)).await.unwrap();
    let refused = raw.until(RST_STREAM).await.unwrap();
    assert_eq!((refused.stream, refused.code()), (129, REFUSED_STREAM));
    honest.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let grown = resident().saturating_sub(before);
    assert!(grown <= 8 << 20, "{grown} bytes more");

    let answers = raw.answers(64).await;
    assert_eq!(answers.len(), 64);
    assert!(answers.values().all(|answer| answer.body.is_empty()));
    let records = broker.records();
    let expired = |record: &&serde_json::Value| record["errorCode"] == "DEADLINE_EXCEEDED";
    assert_eq!(records.iter().filter(expired).count(), 64);
    assert_eq!(records.len(), 64 + 2);
    // Their places are free again.
    let body = framed(&encrypt("keys/orders", "x").encode_to_vec());
    for n in 70..134 {
        let stream = 2 * n + 1;
        let bytes = [
            open(stream, ENCRYPT),
            frame(DATA, END_STREAM, stream, &body),
        ]
        .concat();
        raw.write(&bytes).await.unwrap();
    }
    let answers = raw.answers(64).await;
    for answer in answers.values() {
        answer.message::<pb::EncryptResponse>();
    }
}
