//! Every row of the error table, provoked through a real client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::Timestamp;
use keybroker::clock;
use keybroker::datakeys::Scope;
use keybroker::grpc::DOMAIN;
use keybroker::grpc::pb;
use keybroker::kms;
use tokio::net::TcpStream;
use tonic::Code;
use tonic::IntoRequest as _;
use tonic::Status;

use crate::batch;
use crate::grants;
use crate::harness::Authority;
use crate::harness::Broker;
use crate::harness::Connection;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::encrypt_parts;
use crate::harness::rpcs::encrypt_start;
use crate::harness::rpcs::pairs;
use crate::harness::soon;
use crate::operators;
use crate::quota;
use crate::standing;

/// Reason, code, and the details beside ErrorInfo.
type Row = (&'static str, Code, &'static [&'static str]);

const TABLE: &[Row] = &[
    ("AUDIT_UNAVAILABLE", Code::Unavailable, &["RetryInfo"]),
    ("CHECKSUM_MISMATCH", Code::InvalidArgument, &["BadRequest"]),
    ("CIPHERTEXT_INVALID", Code::InvalidArgument, &[]),
    ("CONTEXT_INVALID", Code::InvalidArgument, &["BadRequest"]),
    ("DATA_KEY_WITHDRAWN", Code::Unavailable, &["RetryInfo"]),
    ("DEADLINE_EXCEEDED", Code::DeadlineExceeded, &[]),
    ("FIELD_INVALID", Code::InvalidArgument, &["BadRequest"]),
    (
        "GRANTS_EXHAUSTED",
        Code::ResourceExhausted,
        &["QuotaFailure"],
    ),
    ("GRANT_NAME_TAKEN", Code::AlreadyExists, &[]),
    (
        "GRANT_NOT_RENEWABLE",
        Code::FailedPrecondition,
        &["PreconditionFailure"],
    ),
    ("IDENTITY_EXPIRED", Code::Unauthenticated, &["Help"]),
    ("IDENTITY_MISSING", Code::Unauthenticated, &["Help"]),
    ("IDENTITY_REVOKED", Code::Unauthenticated, &["Help"]),
    (
        "IDENTITY_UNMAPPED",
        Code::PermissionDenied,
        &["RequestInfo"],
    ),
    ("INTERNAL", Code::Internal, &["RequestInfo"]),
    (
        "KEY_DISABLED",
        Code::FailedPrecondition,
        &["PreconditionFailure"],
    ),
    (
        "KEY_PENDING_DELETION",
        Code::FailedPrecondition,
        &["PreconditionFailure"],
    ),
    ("KMS_ACCESS_DENIED", Code::Internal, &["Help"]),
    (
        "KMS_GRANTS_UNSUPPORTED",
        Code::FailedPrecondition,
        &["PreconditionFailure"],
    ),
    ("KMS_THROTTLED", Code::Unavailable, &["RetryInfo"]),
    ("KMS_UNAVAILABLE", Code::Unavailable, &["RetryInfo"]),
    ("MESSAGE_TOO_LARGE", Code::InvalidArgument, &["BadRequest"]),
    ("METHOD_UNKNOWN", Code::Unimplemented, &[]),
    ("NOT_AN_OPERATOR", Code::PermissionDenied, &["RequestInfo"]),
    ("OVERLOADED", Code::ResourceExhausted, &["RetryInfo"]),
    (
        "PLAINTEXT_TOO_LARGE",
        Code::InvalidArgument,
        &["BadRequest"],
    ),
    ("POLICY_DENIED", Code::PermissionDenied, &["RequestInfo"]),
    (
        "RATE_LIMITED",
        Code::ResourceExhausted,
        &["QuotaFailure", "RetryInfo"],
    ),
    ("REQUEST_MALFORMED", Code::InvalidArgument, &["BadRequest"]),
    ("RESPONSE_TOO_LARGE", Code::ResourceExhausted, &[]),
    ("STORE_UNAVAILABLE", Code::Unavailable, &["RetryInfo"]),
    (
        "TENANTS_FILE_SET",
        Code::FailedPrecondition,
        &["PreconditionFailure"],
    ),
    (
        "TENANT_KMS_CONFIG_INVALID",
        Code::FailedPrecondition,
        &["Help", "PreconditionFailure"],
    ),
    (
        "TENANT_KMS_DENIED",
        Code::FailedPrecondition,
        &["Help", "PreconditionFailure"],
    ),
    (
        "TENANT_SUSPENDED",
        Code::FailedPrecondition,
        &["PreconditionFailure"],
    ),
    ("TRUST_DOMAIN_UNKNOWN", Code::Unauthenticated, &["Help"]),
];

/// The reasons that the code knows, as it has them.
fn reasons() -> Vec<&'static str> {
    let source = include_str!("../../src/error.rs");
    let (_, table) = source.split_once("pub fn reason(&self)").unwrap();
    let quoted = table.split('"').skip(1).step_by(2);
    quoted
        .filter(|text| text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        .collect()
}

#[test]
fn every_reason_of_the_code_has_its_row() {
    let mut known: Vec<&str> = TABLE.iter().map(|(reason, ..)| *reason).collect();
    let mut reasons = reasons();
    known.sort_unstable();
    reasons.sort_unstable();
    assert_eq!(reasons, known);
}

#[tokio::test]
async fn every_reason_looks_on_the_wire_as_the_table_says() {
    for (reason, code, details) in TABLE {
        let status = soon(provoke(reason)).await;
        let refusal = Refusal::of(&status);
        assert_eq!(refusal.reason, *reason, "{refusal:?}");
        assert_eq!(refusal.code, *code, "{reason}");
        assert_eq!(refusal.domain, DOMAIN, "{reason}");
        assert_eq!(refusal.details, *details, "{reason}");
        assert!(refusal.message.len() > 20, "{reason} says what to do");
        // For applications and for client cores alike, and in agreement.
        let pushback = refusal.retry.map(|delay| delay.as_millis() as u64);
        assert_eq!(refusal.pushback, pushback, "{reason}");
        if *code == Code::Unavailable {
            assert!(refusal.retry.is_some(), "clients retry {reason}");
        }
    }
}

/// A status with `reason`, from a broker of its own.
async fn provoke(reason: &str) -> Status {
    let kms_answers = |error| encrypted_while("keys/orders", error);
    let tenants_kms_answers = |error| encrypted_while("keys/own", error);
    match reason {
        "AUDIT_UNAVAILABLE" => {
            let broker = Broker::start().await;
            let mut web = broker.caller(WEB).await;
            broker.trail.fail();
            web.encrypt(encrypt("keys/orders", "x")).await.unwrap_err()
        }
        "CHECKSUM_MISMATCH" => {
            refused(pb::EncryptRequest {
                plaintext_crc32c: Some(1),
                ..encrypt("keys/orders", "x")
            })
            .await
        }
        "CIPHERTEXT_INVALID" => {
            let broker = Broker::start().await;
            let mut web = broker.caller(WEB).await;
            let request = pb::DecryptRequest {
                name: "keys/orders".into(),
                ..decrypt(&Bytes::from_static(b"no message"))
            };
            web.decrypt(request).await.unwrap_err()
        }
        "CONTEXT_INVALID" => {
            refused(pb::EncryptRequest {
                encryption_context: pairs([("keybroker:tenant", "globex")]),
                ..encrypt("keys/orders", "x")
            })
            .await
        }
        "DATA_KEY_WITHDRAWN" => {
            let broker = Broker::start().await;
            let mut web = broker.caller(WEB).await;
            let start = encrypt_parts(encrypt_start("keys/orders"), []);
            let requests = stream::iter(start).chain(stream::pending());
            let mut answers = web.encrypt_stream(requests).await.unwrap().into_inner();
            broker.inner().data_keys().purge(&Scope::All).await;
            loop {
                if let Err(status) = soon(answers.message()).await {
                    break status;
                }
            }
        }
        "DEADLINE_EXCEEDED" => {
            let broker = Broker::start().await;
            let mut web = broker.caller(WEB).await;
            let _held = broker.kms.hold().await;
            let mut request = encrypt("keys/orders", "x").into_request();
            request.set_timeout(Duration::from_millis(200));
            web.encrypt(request).await.unwrap_err()
        }
        "FIELD_INVALID" => refused(encrypt("no name", "x")).await,
        "GRANTS_EXHAUSTED"
        | "GRANT_NAME_TAKEN"
        | "GRANT_NOT_RENEWABLE"
        | "KMS_GRANTS_UNSUPPORTED" => grants::provoke(reason).await,
        "IDENTITY_EXPIRED" => {
            let clock = Arc::new(clock::Manual::new(Timestamp::now()));
            let theirs = clock.clone();
            let broker = Broker::start().with(|setup| setup.clock = theirs).await;
            let ending = broker.authority.ending_in(WEB, 3600);
            let mut web = broker.client(&ending).await;
            web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
            clock.advance(Duration::from_secs(3602));
            web.encrypt(encrypt("keys/orders", "x")).await.unwrap_err()
        }
        "IDENTITY_MISSING" => {
            let broker = Broker::start()
                .with(|setup| setup.listen.health = setup.listen.tcp)
                .await;
            let address = broker.health_address().unwrap();
            let stream = TcpStream::connect(address).await.unwrap();
            let mut nobody = Connection::new(stream).await.unwrap().client();
            nobody
                .encrypt(encrypt("keys/orders", "x"))
                .await
                .unwrap_err()
        }
        "IDENTITY_REVOKED" => {
            let authority = Authority::new("prod.example");
            let good = authority.revoke(&[]);
            let broker = Broker::start()
                .with(|setup| {
                    setup.trust_with_crl(&authority, &good);
                    setup.authority = authority;
                })
                .await;
            let identity = broker.authority.client(WEB);
            let mut web = broker.client(&identity).await;
            web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
            broker.write("prod.example.crl", &broker.authority.revoke(&[&identity]));
            broker.reload_tls().unwrap();
            web.encrypt(encrypt("keys/orders", "x")).await.unwrap_err()
        }
        "IDENTITY_UNMAPPED" => {
            let broker = Broker::start().await;
            let mut unknown = broker.caller("spiffe://prod.example/ns/web").await;
            unknown
                .encrypt(encrypt("keys/orders", "x"))
                .await
                .unwrap_err()
        }
        "INTERNAL" => {
            let broker = Broker::start().await;
            let mut web = broker.caller(WEB).await;
            broker.kms.panic();
            web.encrypt(encrypt("keys/orders", "x")).await.unwrap_err()
        }
        "KEY_DISABLED" => kms_answers(kms::Error::Disabled).await,
        "KEY_PENDING_DELETION" => kms_answers(kms::Error::PendingDeletion("soon".into())).await,
        "KMS_ACCESS_DENIED" => kms_answers(kms::Error::AccessDenied("no".into())).await,
        "KMS_THROTTLED" => kms_answers(kms::Error::Throttled).await,
        "KMS_UNAVAILABLE" => kms_answers(kms::Error::Unavailable("gone".into())).await,
        "MESSAGE_TOO_LARGE" => refused(encrypt("keys/orders", vec![0; 2 << 20])).await,
        "METHOD_UNKNOWN" => raw("/keybroker.v1.KeyBrokerService/Nothing", Vec::new()).await,
        "NOT_AN_OPERATOR" | "TENANTS_FILE_SET" => operators::provoke(reason).await,
        "OVERLOADED" => {
            let broker = Broker::start().with(|setup| setup.cache.waiters = 4).await;
            let mut web = broker.caller(WEB).await;
            let _held = broker.kms.hold().await;
            let mut first = web.clone();
            let waiting = tokio::spawn(async move {
                let _ = first.encrypt(encrypt("keys/orders", "x")).await;
            });
            broker.kms.reached(1).await;
            let status = web.encrypt(encrypt("keys/orders", "x")).await.unwrap_err();
            waiting.abort();
            status
        }
        "PLAINTEXT_TOO_LARGE" => refused(encrypt("keys/orders", vec![0; (1 << 20) + 1])).await,
        "POLICY_DENIED" => refused(encrypt("keys/absent", "x")).await,
        "RATE_LIMITED" => quota::refused().await,
        "REQUEST_MALFORMED" => {
            raw(
                "/keybroker.v1.KeyBrokerService/Encrypt",
                vec![0, 0, 0, 0, 1, 7],
            )
            .await
        }
        "RESPONSE_TOO_LARGE" => batch::response_too_large().await,
        "STORE_UNAVAILABLE" => standing::unheard().await,
        "TENANT_SUSPENDED" => standing::suspended().await,
        "TENANT_KMS_CONFIG_INVALID" => {
            tenants_kms_answers(kms::Error::NotFound("gone".into())).await
        }
        "TENANT_KMS_DENIED" => tenants_kms_answers(kms::Error::AccessDenied("no".into())).await,
        "TRUST_DOMAIN_UNKNOWN" => {
            let broker = Broker::start().await;
            let mut web = broker.caller(WEB).await;
            web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
            broker.write("prod.example.pem", &Authority::new("prod.example").pem());
            broker.reload_tls().unwrap();
            web.encrypt(encrypt("keys/orders", "x")).await.unwrap_err()
        }
        unlisted => panic!("nothing provokes {unlisted}"),
    }
}

async fn refused(request: pb::EncryptRequest) -> Status {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(request).await.unwrap_err()
}

async fn encrypted_while(key: &str, error: kms::Error) -> Status {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    broker.kms.fail(error);
    web.encrypt(encrypt(key, "x")).await.unwrap_err()
}

async fn raw(path: &str, body: Vec<u8>) -> Status {
    let broker = Broker::start().await;
    let identity = broker.authority.client(WEB);
    let connection = broker.connect(&identity).await.unwrap();
    connection.wire.send(path, &[], body).await.status
}

#[tokio::test]
async fn every_answer_of_kms_has_its_reason_by_the_keys_owner() {
    let said = || "no".to_owned();
    let cases = [
        (
            "keys/orders",
            kms::Error::AccessDenied(said().into()),
            "KMS_ACCESS_DENIED",
        ),
        (
            "keys/own",
            kms::Error::AccessDenied(said().into()),
            "TENANT_KMS_DENIED",
        ),
        (
            "keys/orders",
            kms::Error::NotFound(said()),
            "KMS_ACCESS_DENIED",
        ),
        (
            "keys/own",
            kms::Error::NotFound(said()),
            "TENANT_KMS_CONFIG_INVALID",
        ),
        (
            "keys/orders",
            kms::Error::Credentials(said()),
            "KMS_UNAVAILABLE",
        ),
        (
            "keys/own",
            kms::Error::Credentials(said()),
            "KMS_UNAVAILABLE",
        ),
        ("keys/orders", kms::Error::Invalid(said()), "INTERNAL"),
        ("keys/own", kms::Error::Disabled, "KEY_DISABLED"),
        (
            "keys/own",
            kms::Error::PendingDeletion(said()),
            "KEY_PENDING_DELETION",
        ),
        ("keys/own", kms::Error::Throttled, "KMS_THROTTLED"),
        (
            "keys/own",
            kms::Error::Unavailable(said()),
            "KMS_UNAVAILABLE",
        ),
    ];
    for (key, error, reason) in cases {
        let status = encrypted_while(key, error.clone()).await;
        assert_eq!(Refusal::of(&status).reason, reason, "{key}: {error}");
    }
}

#[tokio::test]
async fn every_answer_brings_its_request_id() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let mut request = encrypt("keys/orders", "x").into_request();
    let id = "a-client's-own".parse().unwrap();
    request.metadata_mut().insert("x-request-id", id);
    let answer = web.encrypt(request).await.unwrap();
    assert_eq!(
        answer.metadata().get("x-request-id").unwrap(),
        "a-client's-own"
    );

    let refused = web.encrypt(encrypt("keys/absent", "x")).await.unwrap_err();
    let made = refused.metadata().get("x-request-id").unwrap();
    let records = broker.records();
    assert_eq!(records[0]["requestID"], "a-client's-own");
    assert_eq!(records[1]["requestID"], made.to_str().unwrap());
}
