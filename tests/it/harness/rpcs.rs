//! Every RPC by its name, with requests that are good but for what a test changes.

use std::collections::BTreeMap;
use std::iter;

use bytes::Bytes;
use futures_util::stream;
use keybroker::grpc::pb;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::Code;
use tonic::Request;
use tonic::Status;
use tonic::Streaming;
use tonic::metadata::MetadataMap;

use super::Client;

/// The names of all RPCs of the KeyBrokerService, from the contract itself.
pub fn names() -> Vec<String> {
    names_of("KeyBrokerService")
}

/// The names of all RPCs of `service`.
pub fn names_of(service: &str) -> Vec<String> {
    let files = FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap().file;
    let services = files.iter().flat_map(|file| &file.service);
    services
        .filter(|one| one.name() == service)
        .flat_map(|service| &service.method)
        .map(|method| method.name().to_owned())
        .collect()
}

/// Calls `rpc` on the key `key`; those that open get `ciphertext`, those without a key ignore
/// both. The request id is the same in all calls, so that answers compare whole.
pub async fn call(
    client: &mut Client,
    rpc: &str,
    key: &str,
    ciphertext: &Bytes,
) -> Result<(), Status> {
    let name = key.to_owned();
    let ciphertext = ciphertext.clone();
    match rpc {
        "Encrypt" => {
            let request = encrypt(key, "x");
            client.encrypt(identified(request)).await.map(drop)
        }
        "Decrypt" => {
            let request = pb::DecryptRequest {
                name,
                ciphertext,
                ..Default::default()
            };
            client.decrypt(identified(request)).await.map(drop)
        }
        "EncryptBatch" => {
            let items = vec![encrypt(key, "x")];
            let request = identified(pb::EncryptBatchRequest { items });
            let answer = client.encrypt_batch(request).await?;
            let metadata = answer.metadata().clone();
            let [result] = answer.into_inner().results.try_into().unwrap();
            match result.outcome.unwrap() {
                pb::encrypt_batch_result::Outcome::Response(_) => Ok(()),
                pb::encrypt_batch_result::Outcome::Status(status) => Err(unary(&status, metadata)),
            }
        }
        "DecryptBatch" => {
            let items = vec![pb::DecryptRequest {
                name,
                ciphertext,
                ..Default::default()
            }];
            let request = identified(pb::DecryptBatchRequest { items });
            let answer = client.decrypt_batch(request).await?;
            let metadata = answer.metadata().clone();
            let [result] = answer.into_inner().results.try_into().unwrap();
            match result.outcome.unwrap() {
                pb::decrypt_batch_result::Outcome::Response(_) => Ok(()),
                pb::decrypt_batch_result::Outcome::Status(status) => Err(unary(&status, metadata)),
            }
        }
        "ReEncrypt" => {
            let request = pb::ReEncryptRequest {
                source_name: name.clone(),
                destination_name: name,
                ciphertext,
                ..Default::default()
            };
            client.re_encrypt(identified(request)).await.map(drop)
        }
        "GenerateDataKey" => {
            let request = pb::GenerateDataKeyRequest {
                name,
                ..Default::default()
            };
            let answer = client.generate_data_key(identified(request)).await;
            answer.map(drop)
        }
        "GenerateDataKeyWithoutPlaintext" => {
            let request = pb::GenerateDataKeyWithoutPlaintextRequest {
                name,
                ..Default::default()
            };
            let request = identified(request);
            let answer = client.generate_data_key_without_plaintext(request).await;
            answer.map(drop)
        }
        "EncryptStream" => {
            let parts = encrypt_parts(encrypt_start(key), [Bytes::from_static(b"x")]);
            let answers = client
                .encrypt_stream(identified(stream::iter(parts)))
                .await?;
            drained(answers.into_inner()).await
        }
        "DecryptStream" => {
            let start = pb::DecryptStreamStart {
                name,
                ..Default::default()
            };
            let parts = decrypt_parts(start, [ciphertext]);
            let answers = client
                .decrypt_stream(identified(stream::iter(parts)))
                .await?;
            drained(answers.into_inner()).await
        }
        "GenerateRandom" => {
            let request = pb::GenerateRandomRequest {
                number_of_bytes: 16,
            };
            client.generate_random(identified(request)).await.map(drop)
        }
        "DescribeKey" => {
            let request = pb::DescribeKeyRequest {
                name,
                ..Default::default()
            };
            client.describe_key(identified(request)).await.map(drop)
        }
        "ListKeys" => {
            let request = pb::ListKeysRequest::default();
            client.list_keys(identified(request)).await.map(drop)
        }
        unlisted => panic!("no test knows the RPC {unlisted}: list it here"),
    }
}

/// An item's status as a unary call has it, with the `metadata` of the batch's answer.
pub fn unary(status: &pb::Status, mut metadata: MetadataMap) -> Status {
    metadata.remove("grpc-status");
    let code = Code::from_i32(status.code);
    let details = status.encode_to_vec().into();
    Status::with_details_and_metadata(code, &status.message, details, metadata)
}

/// How a stream ends.
async fn drained<T>(mut answers: Streaming<T>) -> Result<(), Status> {
    while answers.message().await?.is_some() {}
    Ok(())
}

/// Asks to encrypt a stream.
pub fn encrypt_start(key: &str) -> pb::EncryptStreamStart {
    pb::EncryptStreamStart {
        name: key.to_owned(),
        ..Default::default()
    }
}

/// The requests of an EncryptStream.
pub fn encrypt_parts(
    start: pb::EncryptStreamStart,
    chunks: impl IntoIterator<Item = Bytes>,
) -> Vec<pb::EncryptStreamRequest> {
    use pb::encrypt_stream_request::Part;
    let chunks = chunks.into_iter().map(|plaintext| {
        Part::Chunk(pb::EncryptStreamChunk {
            plaintext,
            plaintext_crc32c: None,
        })
    });
    iter::once(Part::Start(start))
        .chain(chunks)
        .map(|part| pb::EncryptStreamRequest { part: Some(part) })
        .collect()
}

/// The requests of a DecryptStream.
pub fn decrypt_parts(
    start: pb::DecryptStreamStart,
    chunks: impl IntoIterator<Item = Bytes>,
) -> Vec<pb::DecryptStreamRequest> {
    use pb::decrypt_stream_request::Part;
    let chunks = chunks.into_iter().map(|ciphertext| {
        Part::Chunk(pb::DecryptStreamChunk {
            ciphertext,
            ciphertext_crc32c: None,
        })
    });
    iter::once(Part::Start(start))
        .chain(chunks)
        .map(|part| pb::DecryptStreamRequest { part: Some(part) })
        .collect()
}

/// `message` as a request whose id is always the same.
pub fn identified<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let id = "one-id".parse().unwrap();
    request.metadata_mut().insert("x-request-id", id);
    request
}

/// Asks to encrypt.
pub fn encrypt(key: &str, plaintext: impl Into<Bytes>) -> pb::EncryptRequest {
    pb::EncryptRequest {
        name: key.to_owned(),
        plaintext: plaintext.into(),
        ..Default::default()
    }
}

/// Asks to decrypt under the key that the message names.
pub fn decrypt(ciphertext: &Bytes) -> pb::DecryptRequest {
    pb::DecryptRequest {
        ciphertext: ciphertext.clone(),
        ..Default::default()
    }
}

/// Pairs of an encryption context.
pub fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Encrypts `plaintext` without anything else, and returns the message.
pub async fn seal(client: &mut Client, key: &str, plaintext: &'static str) -> Bytes {
    let answer = client.encrypt(encrypt(key, plaintext)).await.unwrap();
    answer.into_inner().ciphertext
}
