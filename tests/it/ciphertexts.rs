//! Every way in which a ciphertext fails to open reads the same to its sender; the record knows
//! which it was.

mod commitment;
mod randomness;
mod unasked;
mod wiping;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::join_all;
use keybroker::crypto::Secret;
use keybroker::grpc::pb;
use keybroker::kms::KeyRef;
use keybroker::message;
use keybroker::message::EncryptionContext;
use keybroker::message::Envelope;
use tonic::Code;
use tonic::Status;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::identified;
use crate::harness::rpcs::pairs;
use crate::support::figures;
use crate::support::scale::scaled;

/// Decrypts under `keys/orders` as [`sealed`] wants it, whatever the bytes are.
fn good(ciphertext: Vec<u8>) -> pb::DecryptRequest {
    pb::DecryptRequest {
        name: "keys/orders".into(),
        ciphertext: ciphertext.into(),
        encryption_context: pairs([("table", "users")]),
        associated_data: "row 1".into(),
        ..Default::default()
    }
}

/// [`good`] without associated data, as a message by another hand is sealed.
fn unbound(ciphertext: Vec<u8>) -> pb::DecryptRequest {
    pb::DecryptRequest {
        associated_data: Bytes::new(),
        ..good(ciphertext)
    }
}

async fn sealed(client: &mut Client, plaintext: impl Into<Bytes>) -> Vec<u8> {
    let request = pb::EncryptRequest {
        encryption_context: pairs([("table", "users")]),
        associated_data: "row 1".into(),
        ..encrypt("keys/orders", plaintext)
    };
    let sealed = client.encrypt(request).await.unwrap().into_inner();
    sealed.ciphertext.to_vec()
}

/// The one answer, and what else a client sees of it.
async fn refused(client: &mut Client, request: pb::DecryptRequest, what: &str) {
    let outcome = client.decrypt(identified(request)).await;
    let status = outcome.map(drop).expect_err(what);
    let expected = Refusal {
        code: Code::InvalidArgument,
        reason: "CIPHERTEXT_INVALID".into(),
        domain: "keybroker".into(),
        details: Vec::new(),
        fields: Vec::new(),
        retry: None,
        pushback: None,
        message: "the ciphertext does not open under this key, context and associated data".into(),
    };
    assert_eq!(Refusal::of(&status), expected, "{what}");
    assert_eq!(status.details().len(), reference_length(&status), "{what}");
}

/// The details of the same error without anything else in them.
fn reference_length(status: &Status) -> usize {
    use tonic_types::ErrorDetails;
    use tonic_types::StatusExt as _;
    let details = ErrorDetails::with_error_info("CIPHERTEXT_INVALID", "keybroker", []);
    let reference = Status::with_error_details(Code::InvalidArgument, status.message(), details);
    reference.details().len()
}

fn causes(broker: &Broker) -> Vec<String> {
    let records = broker.records();
    let failed = records
        .iter()
        .filter(|record| record["errorCode"] == "CIPHERTEXT_INVALID");
    failed
        .map(|record| record["errorMessage"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_message_with_any_byte_altered_does_not_open() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let message = sealed(&mut web, "a").await;
    assert!(web.decrypt(good(message.clone())).await.is_ok());
    for position in 0..message.len() {
        for mask in [0x01, 0x80] {
            let mut altered = message.clone();
            altered[position] ^= mask;
            let what = format!("byte {position} ^ {mask:#x}");
            refused(&mut web, good(altered), &what).await;
        }
    }
    let causes = causes(&broker);
    assert_eq!(causes.len(), 2 * message.len());
    let distinct: BTreeSet<_> = causes.iter().map(String::as_str).collect();
    for expected in [
        "commitment_mismatch",
        "content_type",
        "context_key",
        "context_own",
        "foreign_key",
        "frame_mismatch",
        "header_mismatch",
        "suite",
        "truncated",
        "unwrap_failed",
        "version",
    ] {
        assert!(distinct.contains(expected), "{expected} in {distinct:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn not_one_of_a_thousand_messages_opens_with_a_byte_altered() {
    let altered = AtomicUsize::new(0);
    let rounds = scaled(1, 20);
    for round in 0..rounds {
        // Its records stay in memory, so each broker sees a part.
        let broker = Broker::start().await;
        let mut web = broker.caller(WEB).await;
        for length in 1..=50 {
            let message = &sealed(&mut web, vec![7; length]).await;
            let altered = &altered;
            let streams = (0..8).map(|stream| {
                let mut web = web.clone();
                async move {
                    for position in (stream..message.len()).step_by(8) {
                        let mut bytes = message.clone();
                        bytes[position] ^= 1 << ((round + length + position) % 8);
                        let what = format!("{length}: byte {position}");
                        refused(&mut web, good(bytes), &what).await;
                        altered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            join_all(streams).await;
        }
    }
    figures::record(
        "altered_bytes",
        [("messages", 50 * rounds), ("refused", altered.into_inner())],
    );
}

#[tokio::test]
async fn a_message_cut_anywhere_does_not_open() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let message = sealed(&mut web, "a").await;
    for length in 0..message.len() {
        let cut = message[..length].to_vec();
        refused(&mut web, good(cut), &format!("{length} bytes")).await;
    }
    let distinct: BTreeSet<_> = causes(&broker).into_iter().collect();
    assert_eq!(
        distinct,
        BTreeSet::from(["empty".into(), "truncated".into()])
    );
}

#[tokio::test]
async fn frames_moved_dropped_or_repeated_do_not_open() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let message = sealed(&mut web, vec![7; 3 * 4096]).await;
    let other = sealed(&mut web, vec![7; 3 * 4096]).await;
    let frame = 4 + 12 + 4096 + 16;
    // Three full frames, the last of which is the final one with its own marker and length.
    let body = message.len() - (3 * frame + 8);
    let part = |from: &[u8], n: usize| from[body + n * frame..body + (n + 1) * frame].to_vec();
    let (header, last) = (&message[..body], &message[body + 2 * frame..]);
    let (one, two) = (part(&message, 0), part(&message, 1));
    let foreign = part(&other, 0);
    assert!(
        web.decrypt(good([header, &one, &two, last].concat()))
            .await
            .is_ok(),
        "the pieces are the whole"
    );
    for (what, pieces) in [
        ("swapped", [header, &two, &one, last].concat()),
        ("dropped", [header, &two, last].concat()),
        ("cut short", [header, &one, last].concat()),
        ("repeated", [header, &one, &one, &two, last].concat()),
        ("another message's", [header, &foreign, &two, last].concat()),
        ("no final frame", [header, &one, &two].concat()),
        ("no frame", header.to_vec()),
    ] {
        refused(&mut web, good(pieces), what).await;
    }
}

#[tokio::test]
async fn each_failure_has_its_own_cause_in_the_record() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let message = sealed(&mut web, "a").await;
    let good = || good(message.clone());
    let with = |bytes: Vec<u8>| pb::DecryptRequest {
        ciphertext: bytes.into(),
        ..good()
    };
    let altered = |alter: fn(&mut Vec<u8>)| {
        let mut bytes = message.clone();
        alter(&mut bytes);
        with(bytes)
    };
    let foreign = foreign_message(&broker, "globex-orders", "acme", "orders");
    let other_tenants = foreign_message(&broker, "acme-orders", "globex", "orders");
    let bare = bare_message(&broker);
    let cases = [
        ("empty", with(Vec::new())),
        ("base64", with(STANDARD.encode(&message).into_bytes())),
        ("version", with(b"no message at all".to_vec())),
        ("version_1", with(vec![0x01, 0x80, 0, 0])),
        ("suite", altered(|bytes| bytes[2] = 0x14)),
        ("signed_suite", altered(|bytes| bytes[1] = 0x05)),
        (
            "truncated",
            altered(|bytes| bytes.truncate(bytes.len() - 1)),
        ),
        ("trailing_bytes", altered(|bytes| bytes.push(0))),
        ("foreign_key", with(foreign)),
        ("context_key", with(other_tenants)),
        (
            "context_no_key",
            pb::DecryptRequest {
                name: String::new(),
                ..with(bare)
            },
        ),
        (
            "header_mismatch",
            pb::DecryptRequest {
                associated_data: "row 2".into(),
                ..good()
            },
        ),
        (
            "context_own",
            pb::DecryptRequest {
                encryption_context: BTreeMap::new(),
                ..good()
            },
        ),
        (
            "context_own",
            pb::DecryptRequest {
                encryption_context: pairs([("table", "Users")]),
                ..good()
            },
        ),
        (
            "context_own",
            pb::DecryptRequest {
                encryption_context: pairs([("table", "users"), ("more", "x")]),
                ..good()
            },
        ),
        (
            "context_key",
            pb::DecryptRequest {
                name: "keys/invoices".into(),
                ..good()
            },
        ),
    ];
    let mut expected = Vec::new();
    for (cause, request) in cases {
        refused(&mut web, request, cause).await;
        expected.push(cause);
        assert_eq!(causes(&broker), expected);
    }
}

#[tokio::test]
async fn a_message_that_names_a_foreign_key_reaches_no_kms() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let foreign = foreign_message(&broker, "globex-orders", "acme", "orders");
    let request = unbound(foreign);
    refused(&mut web, request, "foreign").await;
    assert_eq!(broker.kms_calls(), 0);
    assert_eq!(causes(&broker), ["foreign_key"]);
}

#[tokio::test]
async fn a_message_by_another_hand_under_the_same_key_opens() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let request = unbound(foreign_message(&broker, "acme-orders", "acme", "orders"));
    let opened = web.decrypt(request).await.unwrap().into_inner();
    assert_eq!(opened.plaintext, "from elsewhere");
    assert_eq!(broker.kms.decrypt_calls(), 1);
}

#[tokio::test]
async fn what_kms_says_of_an_unwrapping_is_told_apart_from_a_bad_ciphertext() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let request = || unbound(foreign_message(&broker, "acme-orders", "acme", "orders"));
    broker.kms.fail(keybroker::kms::Error::IncorrectKey);
    refused(&mut web, request(), "another key's").await;
    broker.kms.fail(keybroker::kms::Error::Disabled);
    let status = web.decrypt(request()).await.unwrap_err();
    assert_eq!(Refusal::of(&status).reason, "KEY_DISABLED");
}

/// A message with acme's shape of context for `tenant` and `key`, whose data key `kms` wraps.
fn foreign_message(broker: &Broker, kms: &str, tenant: &str, key: &str) -> Vec<u8> {
    message_of(
        broker,
        kms,
        &[
            ("keybroker:key", key),
            ("keybroker:tenant", tenant),
            ("stage", "test"),
            ("table", "users"),
        ],
    )
}

/// A message of another producer: none of our pairs.
fn bare_message(broker: &Broker) -> Vec<u8> {
    message_of(broker, "acme-orders", &[("table", "users")])
}

fn message_of(broker: &Broker, kms: &str, context: &[(&str, &str)]) -> Vec<u8> {
    let context = context_of(context);
    let data_key = Secret::random().unwrap();
    let wrapped = broker
        .kms
        .wrap(&KeyRef::Local(kms.to_owned()), &data_key, &context);
    let envelope = Envelope::new(&context, &[wrapped]).unwrap();
    message::seal(&data_key, &envelope, b"", b"from elsewhere").unwrap()
}

fn context_of(pairs: &[(&str, &str)]) -> EncryptionContext {
    let pairs = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    EncryptionContext::new(pairs).unwrap()
}
