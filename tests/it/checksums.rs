//! CRC32C of every bytes field: compared if it came, and said to be compared only then.

use std::ops::Not as _;

use bytes::Bytes;
use keybroker::grpc::pb;
use tonic::Status;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::rpcs::encrypt;

/// Each field that has a sum: the RPC and the field.
const FIELDS: [(&str, &str); 9] = [
    ("Encrypt", "plaintext"),
    ("Encrypt", "associated_data"),
    ("Decrypt", "ciphertext"),
    ("Decrypt", "associated_data"),
    ("ReEncrypt", "ciphertext"),
    ("ReEncrypt", "source_associated_data"),
    ("ReEncrypt", "destination_associated_data"),
    ("GenerateDataKey", "associated_data"),
    ("GenerateDataKeyWithoutPlaintext", "associated_data"),
];

/// Calls `rpc` with `sum` beside `field`; whether the answer says that it, and nothing else, was
/// verified.
async fn call(
    client: &mut Client,
    rpc: &str,
    field: &str,
    sum: Option<u32>,
    message: &Bytes,
) -> Result<bool, Status> {
    let of = |one: &str| if one == field { sum } else { None };
    let flags = match rpc {
        "Encrypt" => {
            let answer = client
                .encrypt(pb::EncryptRequest {
                    associated_data: DATA.into(),
                    plaintext_crc32c: of("plaintext"),
                    associated_data_crc32c: of("associated_data"),
                    ..encrypt("keys/orders", "text")
                })
                .await?
                .into_inner();
            vec![
                ("plaintext", answer.verified_plaintext_crc32c),
                ("associated_data", answer.verified_associated_data_crc32c),
            ]
        }
        "Decrypt" => {
            let answer = client
                .decrypt(pb::DecryptRequest {
                    ciphertext: message.clone(),
                    associated_data: DATA.into(),
                    ciphertext_crc32c: of("ciphertext"),
                    associated_data_crc32c: of("associated_data"),
                    ..Default::default()
                })
                .await?
                .into_inner();
            vec![
                ("ciphertext", answer.verified_ciphertext_crc32c),
                ("associated_data", answer.verified_associated_data_crc32c),
            ]
        }
        "ReEncrypt" => {
            let answer = client
                .re_encrypt(pb::ReEncryptRequest {
                    ciphertext: message.clone(),
                    source_associated_data: DATA.into(),
                    destination_name: "keys/orders".into(),
                    destination_associated_data: DATA.into(),
                    ciphertext_crc32c: of("ciphertext"),
                    source_associated_data_crc32c: of("source_associated_data"),
                    destination_associated_data_crc32c: of("destination_associated_data"),
                    ..Default::default()
                })
                .await?
                .into_inner();
            vec![
                ("ciphertext", answer.verified_ciphertext_crc32c),
                (
                    "source_associated_data",
                    answer.verified_source_associated_data_crc32c,
                ),
                (
                    "destination_associated_data",
                    answer.verified_destination_associated_data_crc32c,
                ),
            ]
        }
        "GenerateDataKey" => {
            let answer = client
                .generate_data_key(pb::GenerateDataKeyRequest {
                    name: "keys/orders".into(),
                    associated_data: DATA.into(),
                    associated_data_crc32c: sum,
                    ..Default::default()
                })
                .await?
                .into_inner();
            vec![("associated_data", answer.verified_associated_data_crc32c)]
        }
        _ => {
            let answer = client
                .generate_data_key_without_plaintext(pb::GenerateDataKeyWithoutPlaintextRequest {
                    name: "keys/orders".into(),
                    associated_data: DATA.into(),
                    associated_data_crc32c: sum,
                    ..Default::default()
                })
                .await?
                .into_inner();
            vec![("associated_data", answer.verified_associated_data_crc32c)]
        }
    };
    let others = flags.iter().filter(|(name, _)| *name != field);
    assert!(others.clone().all(|(_, verified)| verified.not()), "{rpc}");
    Ok(flags.contains(&(field, true)))
}

const DATA: &str = "record 7";

#[tokio::test]
async fn sums_are_compared_when_they_come_and_never_else() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let message = web
        .encrypt(pb::EncryptRequest {
            associated_data: DATA.into(),
            ..encrypt("keys/orders", "text")
        })
        .await
        .unwrap()
        .into_inner()
        .ciphertext;
    for (rpc, field) in FIELDS {
        let value: &[u8] = match field {
            "plaintext" => b"text",
            "ciphertext" => &message,
            _ => DATA.as_bytes(),
        };
        let sum = crc32c::crc32c(value);
        let absent = call(&mut web, rpc, field, None, &message).await;
        assert!(!absent.unwrap(), "{rpc}.{field}: nothing was compared");
        let right = call(&mut web, rpc, field, Some(sum), &message).await;
        assert!(right.unwrap(), "{rpc}.{field}: it was compared");
        // 0 is a sum like any other.
        for wrong in [sum ^ 1, 0] {
            let refused = call(&mut web, rpc, field, Some(wrong), &message).await;
            let refusal = Refusal::of(&refused.unwrap_err());
            assert_eq!(refusal.reason, "CHECKSUM_MISMATCH", "{rpc}.{field}");
            assert_eq!(refusal.fields, [field], "{rpc}");
        }
    }
}

#[tokio::test]
async fn an_empty_field_has_the_sum_zero() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let request = |sum| pb::EncryptRequest {
        associated_data_crc32c: Some(sum),
        ..encrypt("keys/orders", "text")
    };
    let answer = web.encrypt(request(0)).await.unwrap().into_inner();
    assert!(answer.verified_associated_data_crc32c);
    assert!(web.encrypt(request(1)).await.is_err());
}

#[tokio::test]
async fn a_sum_is_looked_at_before_the_ciphertext() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let request = pb::DecryptRequest {
        ciphertext: "damaged on its way".into(),
        ciphertext_crc32c: Some(1),
        ..Default::default()
    };
    let refused = web.decrypt(request).await.unwrap_err();
    assert_eq!(Refusal::of(&refused).reason, "CHECKSUM_MISMATCH");
}
