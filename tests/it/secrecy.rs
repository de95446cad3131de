//! What formats with Debug shows no secret, and what is secret does not format.

use std::fmt::Debug;

use bytes::Bytes;
use keybroker::grpc::pb;
use prost::Message;
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::Type;

use crate::harness::rpcs::pairs;

const SENTINEL: &str = "sentinel-7f3a";

fn shows_nothing(message: &(impl Debug + Message)) {
    let encoded = message.encode_to_vec();
    let held = encoded
        .windows(SENTINEL.len())
        .any(|window| window == SENTINEL.as_bytes());
    assert!(held, "the message holds what must not show: {message:?}");
    for text in [format!("{message:?}"), format!("{message:#?}")] {
        assert!(!text.contains(SENTINEL), "{text}");
        let listed = format!("{:?}", SENTINEL.as_bytes());
        assert!(!text.contains(listed.trim_matches(['[', ']'])), "{text}");
    }
}

/// Formats each message that has bytes or a context, with the sentinel in all of them.
fn check(message: &str) {
    let bytes = Bytes::from_static(SENTINEL.as_bytes());
    let context = pairs([("name", SENTINEL)]);
    match message {
        "EncryptRequest" => shows_nothing(&pb::EncryptRequest {
            plaintext: bytes.clone(),
            encryption_context: context,
            associated_data: bytes,
            ..Default::default()
        }),
        "ApplyRequest" => shows_nothing(&pb::ApplyRequest {
            tenants: SENTINEL.to_owned(),
            prune: false,
        }),
        "ExplainRequest" => shows_nothing(&pb::ExplainRequest {
            encryption_context: context,
            ..Default::default()
        }),
        "CreateGrantRequest" => shows_nothing(&pb::CreateGrantRequest {
            constraints: Some(pb::GrantConstraints {
                encryption_context_subset: context,
                ..Default::default()
            }),
            grant_tokens: vec![SENTINEL.to_owned()],
            ..Default::default()
        }),
        "CreateGrantResponse" => shows_nothing(&pb::CreateGrantResponse {
            grant: None,
            grant_token: SENTINEL.to_owned(),
        }),
        "DescribeKeyRequest" => shows_nothing(&pb::DescribeKeyRequest {
            grant_tokens: vec![SENTINEL.to_owned()],
            ..Default::default()
        }),
        "GrantConstraints" => shows_nothing(&pb::GrantConstraints {
            encryption_context_equals: context.clone(),
            encryption_context_subset: context,
        }),
        "CreateKmsGrantResponse" => shows_nothing(&pb::CreateKmsGrantResponse {
            grant: None,
            grant_token: SENTINEL.to_owned(),
        }),
        "RenewGrantResponse" => shows_nothing(&pb::RenewGrantResponse {
            grant: None,
            grant_token: SENTINEL.to_owned(),
        }),
        "RetireGrantRequest" => shows_nothing(&pb::RetireGrantRequest {
            grant_token: SENTINEL.to_owned(),
            ..Default::default()
        }),
        "EncryptResponse" => shows_nothing(&pb::EncryptResponse {
            ciphertext: bytes,
            ..Default::default()
        }),
        "DecryptRequest" => shows_nothing(&pb::DecryptRequest {
            ciphertext: bytes.clone(),
            encryption_context: context,
            associated_data: bytes,
            ..Default::default()
        }),
        "DecryptResponse" => shows_nothing(&pb::DecryptResponse {
            plaintext: bytes,
            ..Default::default()
        }),
        "ReEncryptRequest" => shows_nothing(&pb::ReEncryptRequest {
            ciphertext: bytes.clone(),
            source_encryption_context: context.clone(),
            source_associated_data: bytes.clone(),
            destination_encryption_context: context,
            destination_associated_data: bytes,
            ..Default::default()
        }),
        "ReEncryptResponse" => shows_nothing(&pb::ReEncryptResponse {
            ciphertext: bytes,
            ..Default::default()
        }),
        "GenerateDataKeyRequest" => shows_nothing(&pb::GenerateDataKeyRequest {
            encryption_context: context,
            associated_data: bytes,
            ..Default::default()
        }),
        "GenerateDataKeyResponse" => shows_nothing(&pb::GenerateDataKeyResponse {
            plaintext: bytes.clone(),
            ciphertext: bytes,
            ..Default::default()
        }),
        "GenerateDataKeyWithoutPlaintextRequest" => {
            shows_nothing(&pb::GenerateDataKeyWithoutPlaintextRequest {
                encryption_context: context,
                associated_data: bytes,
                ..Default::default()
            });
        }
        "GenerateDataKeyWithoutPlaintextResponse" => {
            shows_nothing(&pb::GenerateDataKeyWithoutPlaintextResponse {
                ciphertext: bytes,
                ..Default::default()
            });
        }
        "EncryptStreamStart" => shows_nothing(&pb::EncryptStreamStart {
            encryption_context: context,
            associated_data: bytes,
            ..Default::default()
        }),
        "EncryptStreamChunk" => shows_nothing(&pb::EncryptStreamChunk {
            plaintext: bytes,
            ..Default::default()
        }),
        "EncryptStreamOutput" => shows_nothing(&pb::EncryptStreamOutput {
            ciphertext: bytes,
            ..Default::default()
        }),
        "DecryptStreamStart" => shows_nothing(&pb::DecryptStreamStart {
            encryption_context: context,
            associated_data: bytes,
            ..Default::default()
        }),
        "DecryptStreamChunk" => shows_nothing(&pb::DecryptStreamChunk {
            ciphertext: bytes,
            ..Default::default()
        }),
        "DecryptStreamOutput" => shows_nothing(&pb::DecryptStreamOutput {
            plaintext: bytes,
            ..Default::default()
        }),
        "GenerateRandomResponse" => shows_nothing(&pb::GenerateRandomResponse {
            plaintext: bytes,
            ..Default::default()
        }),
        unlisted => panic!("no test knows the message {unlisted}: list it here"),
    }
}

#[test]
fn no_message_shows_what_it_carries() {
    let files = FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap().file;
    let ours = files.iter().filter(|file| file.package() == "keybroker.v1");
    let mut checked = 0;
    for message in ours.flat_map(|file| &file.message_type) {
        let carries = message.field.iter().any(|field| {
            let name = field.name();
            let telling = [
                "encryption_context",
                "_equals",
                "_subset",
                "grant_token",
                "grant_tokens",
                "tenants",
            ];
            field.r#type() == Type::Bytes || telling.iter().any(|end| name.ends_with(end))
        });
        if carries {
            check(message.name());
            checked += 1;
        }
    }
    assert_eq!(checked, 26);
}

/// Resolves to two candidates, and so does not compile, for a type with Debug.
trait Silent<Proof> {
    fn holds() {}
}

struct Formats;

impl<T: ?Sized> Silent<()> for T {}
impl<T: ?Sized + Debug> Silent<Formats> for T {}

#[test]
fn secrets_have_no_debug_at_all() {
    <keybroker::crypto::Secret<32> as Silent<_>>::holds();
    <keybroker::crypto::aead::Key as Silent<_>>::holds();
    <keybroker::kms::DataKey as Silent<_>>::holds();
    <keybroker::kms::Unwrapped as Silent<_>>::holds();
    <keybroker::datakeys::SealingKey as Silent<_>>::holds();
    <keybroker::datakeys::OpeningKey as Silent<_>>::holds();
    <keybroker::datakeys::Reserved as Silent<_>>::holds();
    <keybroker::datakeys::Opener as Silent<_>>::holds();
    <keybroker::datakeys::Sealing as Silent<_>>::holds();
    <keybroker::datakeys::Opening as Silent<_>>::holds();
    <keybroker::message::stream::Sealer as Silent<_>>::holds();
    <keybroker::message::stream::Opener as Silent<_>>::holds();
    <keybroker::broker::stream::Flow as Silent<_>>::holds();
    <keybroker::broker::Opened as Silent<_>>::holds();
    <keybroker::broker::Sealed as Silent<_>>::holds();
    <keybroker::broker::Binding as Silent<_>>::holds();
}
