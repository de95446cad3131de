//! Bodies and paths that no generated client sends: each has its row of the error table, and one
//! record.

use keybroker::grpc::MAX_MESSAGE;
use prost::Message as _;
use tonic::Code;

use crate::harness::Broker;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::framed;
use crate::harness::rpcs::encrypt;

const ENCRYPT: &str = "/keybroker.v1.KeyBrokerService/Encrypt";

struct Case {
    what: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: Vec<u8>,
    code: Code,
    reason: &'static str,
}

fn case(what: &'static str, body: Vec<u8>) -> Case {
    Case {
        what,
        path: ENCRYPT,
        headers: &[],
        body,
        code: Code::InvalidArgument,
        reason: "REQUEST_MALFORMED",
    }
}

#[tokio::test]
async fn what_is_no_request_has_its_row_and_its_record() {
    let broker = Broker::start().await;
    let identity = broker.authority.client(WEB);
    let good = encrypt("keys/orders", "x").encode_to_vec();
    let compressed = |mut body: Vec<u8>| {
        body[0] = 1;
        body
    };
    let unknown = |path| Case {
        path,
        code: Code::Unimplemented,
        reason: "METHOD_UNKNOWN",
        ..case("an unknown path", framed(&good))
    };
    let large = vec![0; MAX_MESSAGE + 1];
    let cases = [
        Case {
            reason: "MESSAGE_TOO_LARGE",
            ..case("one byte over the limit", framed(&large))
        },
        Case {
            reason: "MESSAGE_TOO_LARGE",
            ..case(
                "a length that nothing follows",
                vec![0, 0xff, 0xff, 0xff, 0xff],
            )
        },
        case("an undecodable message", framed(&[0xff; 8])),
        case("text that is not UTF-8", framed(&[0x0a, 2, 0xff, 0xfe])),
        case("a field of another type", framed(&[0x08, 1])),
        case("nothing", Vec::new()),
        case("half a prefix", vec![0, 0, 0]),
        case("half a message", framed(&good)[..8].to_vec()),
        case("an unknown flag", [&[2], &framed(&good)[1..]].concat()),
        case(
            "a compressed flag without an encoding",
            compressed(framed(&good)),
        ),
        unknown("/keybroker.v1.KeyBrokerService/Nothing"),
        unknown("/keybroker.v1.KeyBrokerService/encrypt"),
        unknown("/keybroker.v2.KeyBrokerService/Encrypt"),
        unknown("/keybroker.v1.KeyBrokerService/Encrypt/"),
        unknown("/"),
    ];
    for case in cases {
        let what = case.what;
        let before = broker.records().len();
        // A connection for each: half a request may end it.
        let connection = broker.connect(&identity).await.unwrap();
        let answer = connection
            .wire
            .send(case.path, case.headers, case.body)
            .await;
        let refusal = Refusal::of(&answer.status);
        assert_eq!(refusal.reason, case.reason, "{what}: {refusal:?}");
        assert_eq!(refusal.code, case.code, "{what}");
        assert!(answer.body.is_empty(), "{what}");
        let records = broker.records();
        assert_eq!(records.len(), before + 1, "{what}");
        let record = &records[before];
        assert_eq!(record["errorCode"], case.reason, "{what}");
        let name = if case.path == ENCRYPT {
            "Encrypt"
        } else {
            "_OTHER"
        };
        assert_eq!(record["eventName"], name, "{what}");
        assert_eq!(record["userIdentity"]["principalId"], WEB, "{what}");
    }
    assert_eq!(broker.kms_calls(), 0);
}

#[tokio::test]
async fn a_compressed_request_is_refused_as_such() {
    let broker = Broker::start().await;
    let identity = broker.authority.client(WEB);
    let connection = broker.connect(&identity).await.unwrap();
    let mut body = framed(&encrypt("keys/orders", "x").encode_to_vec());
    body[0] = 1;
    let headers = [("grpc-encoding", "gzip")];
    let answer = connection.wire.send(ENCRYPT, &headers, body).await;
    let refusal = Refusal::of(&answer.status);
    assert_ne!(
        refusal.reason, "METHOD_UNKNOWN",
        "the method is there; the encoding is not"
    );
    assert_eq!(refusal.reason, "REQUEST_MALFORMED");
    assert_eq!(broker.records().len(), 1);
}

#[tokio::test]
async fn a_message_of_exactly_the_limit_is_read() {
    let broker = Broker::start().await;
    let identity = broker.authority.client(WEB);
    let connection = broker.connect(&identity).await.unwrap();
    // An unknown field of the right length, which decoders skip.
    let mut message = encrypt("keys/orders", "x").encode_to_vec();
    let rest = MAX_MESSAGE - message.len() - 2 - 3;
    message.extend_from_slice(&[0xfa, 0x01]);
    prost::encode_length_delimiter(rest, &mut message).unwrap();
    message.resize(message.len() + rest, 0);
    assert_eq!(message.len(), MAX_MESSAGE);
    let answer = connection.wire.send(ENCRYPT, &[], framed(&message)).await;
    assert_eq!(answer.status.code(), Code::Ok, "{:?}", answer.status);
}
