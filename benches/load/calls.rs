//! The calls that a broker is put under load with.

use std::collections::BTreeMap;

use bytes::Bytes;
use keybroker::grpc::pb;
use prost::Message as _;

use crate::client::Call;
use crate::client::Client;

/// An Encrypt of so many bytes.
pub fn encrypt(size: usize) -> Call {
    let request = pb::EncryptRequest {
        name: "keys/orders".into(),
        plaintext: plaintext(size),
        encryption_context: context(),
        ..Default::default()
    };
    Call {
        path: "/keybroker.v1.KeyBrokerService/Encrypt",
        message: request.encode_to_vec().into(),
    }
}

/// An Encrypt of so many bytes, and the Decrypt of what it returns, which is checked once.
pub async fn of(broker: &Client, size: usize) -> (Call, Call) {
    let encrypt = encrypt(size);
    let encrypted = pb::EncryptResponse::decode(broker.call(&encrypt).await).unwrap();
    let request = pb::DecryptRequest {
        name: "keys/orders".into(),
        ciphertext: encrypted.ciphertext,
        encryption_context: context(),
        ..Default::default()
    };
    let decrypt = Call {
        path: "/keybroker.v1.KeyBrokerService/Decrypt",
        message: request.encode_to_vec().into(),
    };
    let decrypted = pb::DecryptResponse::decode(broker.call(&decrypt).await).unwrap();
    assert_eq!(decrypted.plaintext, plaintext(size));
    (encrypt, decrypt)
}

fn plaintext(size: usize) -> Bytes {
    vec![0x5a; size].into()
}

fn context() -> BTreeMap<String, String> {
    [("table".to_owned(), "orders".to_owned())].into()
}
