//! Reads any bytes as a message and opens it: no panic, no plaintext. In a second turn the bytes
//! stand behind a true header, so that the frame reader is reached too.
#![no_main]

use std::sync::LazyLock;

use keybroker::crypto::Secret;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::message::Envelope;
use keybroker::message::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    refuse(bytes);

    let behind = [HEADER.as_slice(), bytes].concat();
    refuse(&behind);
});

fn refuse(bytes: &[u8]) {
    if let Ok(message) = Message::parse(bytes) {
        assert!(message.open(&data_key(), b"").is_err());
    }
}

fn data_key() -> Secret<32> {
    Secret::filled(|cell| cell.fill(1))
}

/// The header of an empty message, whose body is one final frame of 40 bytes. Its message id is
/// new in every run, so the body that belongs to it is out of reach.
static HEADER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let wrapped = EncryptedDataKey {
        provider_id: "aws-kms".to_owned(),
        provider_info: "key".to_owned(),
        ciphertext: vec![7; 16],
    };
    let context = EncryptionContext::default();
    let envelope = Envelope::new(&context, &[wrapped]).expect("within limits");
    let mut message =
        keybroker::message::seal(&data_key(), &envelope, b"", b"").expect("randomness");
    message.truncate(message.len() - 40);
    message
});
