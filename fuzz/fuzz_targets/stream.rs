//! Opens any bytes piece by piece: no panic, and the end that the whole has, the same plaintext or
//! a flaw in both. The bytes are taken as they are, behind a true header, and as the plaintext of a
//! message that is sealed piece by piece and then changed at one place.
#![no_main]

use std::sync::LazyLock;

use keybroker::crypto::Secret;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::message::Envelope;
use keybroker::message::Flaw;
use keybroker::message::Message;
use keybroker::message::stream::Head;
use keybroker::message::stream::Opener;
use keybroker::message::stream::Progress;
use keybroker::message::stream::Sealer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u16>, u32, u8, Vec<u8>)| {
    let (pieces, at, mask, bytes) = input;
    agree(&bytes, &pieces);
    agree(&[HEADER.as_slice(), &bytes].concat(), &pieces);

    let mut message = sealed(&bytes, &pieces);
    assert_eq!(agree(&message, &pieces).as_ref(), Some(&bytes));
    let at = usize::try_from(at).expect("32 bits") % message.len();
    message[at] ^= mask;
    assert_eq!(agree(&message, &pieces).is_some(), mask == 0);
});

/// The plaintext of `message`, if both ways find one.
fn agree(message: &[u8], pieces: &[u16]) -> Option<Vec<u8>> {
    let whole = Message::parse(message).and_then(|message| message.open(&data_key(), b""));
    let mut released = Vec::new();
    let ended = open(message, pieces, &mut released);
    assert_eq!(ended.is_ok(), whole.is_ok(), "{ended:?}");
    assert_eq!(released, *whole.ok()?);
    Some(released)
}

fn open(message: &[u8], pieces: &[u16], released: &mut Vec<u8>) -> Result<(), Flaw> {
    let mut head = Head::default();
    let mut opener: Option<Opener> = None;
    for mut piece in cut(message, pieces) {
        let opener = match &mut opener {
            Some(opener) => opener,
            None if head.push(&mut piece)? == Progress::Begun => continue,
            None => {
                let message = head.message()?;
                let opener = opener.insert(message.unseal(&data_key(), b"")?);
                released.extend_from_slice(&opener.push(message.body())?);
                opener
            }
        };
        released.extend_from_slice(&opener.push(piece)?);
    }
    match opener {
        Some(opener) => opener.finish(),
        None => head.message().map(drop),
    }
}

fn sealed(plaintext: &[u8], pieces: &[u16]) -> Vec<u8> {
    let (mut sealer, mut message) = Sealer::new(&data_key(), &ENVELOPE, b"").expect("randomness");
    for piece in cut(plaintext, pieces) {
        message.extend(sealer.push(piece));
    }
    message.extend(sealer.finish());
    message
}

/// `bytes` in pieces of these lengths, again and again; whole where they would never end.
fn cut<'a>(bytes: &'a [u8], pieces: &'a [u16]) -> impl Iterator<Item = &'a [u8]> {
    let mut lengths = pieces.iter().filter(|length| **length > 0).cycle();
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = lengths.next().map_or(rest.len(), |length| (*length).into());
        let (front, behind) = rest.split_at(length.min(rest.len()));
        rest = behind;
        (!front.is_empty()).then_some(front)
    })
}

fn data_key() -> Secret<32> {
    Secret::filled(|cell| cell.fill(1))
}

static ENVELOPE: LazyLock<Envelope> = LazyLock::new(|| {
    let wrapped = EncryptedDataKey {
        provider_id: "aws-kms".to_owned(),
        provider_info: "key".to_owned(),
        ciphertext: vec![7; 16],
    };
    Envelope::new(&EncryptionContext::default(), &[wrapped]).expect("within limits")
});

/// The header of a message whose body is out of reach.
static HEADER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (_, header) = Sealer::new(&data_key(), &ENVELOPE, b"").expect("randomness");
    header
});
