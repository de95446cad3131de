//! The calls that a broker is put under load with.

use bytes::Bytes;
use keybroker::grpc::pb;
use prost::Message as _;

use crate::client::Call;
use crate::client::Client;

/// An Encrypt of so many bytes, and the Decrypt of what it returns, which is checked once.
pub async fn of(broker: &Client, size: usize) -> (Call, Call) {
    let plaintext = Bytes::from(vec![0x5a; size]);
    let context = [("table".to_owned(), "orders".to_owned())];
    let encrypt = pb::EncryptRequest {
        name: "keys/orders".into(),
        plaintext: plaintext.clone(),
        encryption_context: context.clone().into(),
        ..Default::default()
    };
    let encrypt = Call {
        path: "/keybroker.v1.KeyBrokerService/Encrypt",
        message: encrypt.encode_to_vec().into(),
    };
    let encrypted = pb::EncryptResponse::decode(broker.call(&encrypt).await).unwrap();
    let decrypt = pb::DecryptRequest {
        name: "keys/orders".into(),
        ciphertext: encrypted.ciphertext,
        encryption_context: context.into(),
        ..Default::default()
    };
    let decrypt = Call {
        path: "/keybroker.v1.KeyBrokerService/Decrypt",
        message: decrypt.encode_to_vec().into(),
    };
    let decrypted = pb::DecryptResponse::decode(broker.call(&decrypt).await).unwrap();
    assert_eq!(decrypted.plaintext, plaintext);
    (encrypt, decrypt)
}
