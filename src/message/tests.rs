//! The codec as a whole: frozen answers, every changed byte, every length around a frame.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

/// A message frozen in `tests/vectors`; bytes are hex.
#[derive(Deserialize)]
struct Frozen {
    comment: String,
    data_key: String,
    message_id: String,
    context: BTreeMap<String, String>,
    encrypted_data_keys: Vec<FrozenKey>,
    frame_length: u32,
    associated_data: String,
    plaintext: String,
    message: String,
    sha256: String,
}

#[derive(Deserialize)]
struct FrozenKey {
    provider_id: String,
    provider_info: String,
    ciphertext: String,
}

impl Frozen {
    fn all() -> Vec<Self> {
        serde_json::from_str(include_str!("../../tests/vectors/messages.json")).expect("vectors")
    }

    /// Written out here, because raw keyrings' keys are not text and [`Envelope::new`] has none.
    fn envelope(&self) -> Envelope {
        let context = EncryptionContext::new(self.context.clone()).expect("a context");
        let pairs = context.serialized();
        let mut bytes = [field(pairs.len()).as_slice(), pairs].concat();
        bytes.extend(field(self.encrypted_data_keys.len()));
        for key in &self.encrypted_data_keys {
            for value in [&key.provider_id, &key.provider_info, &key.ciphertext] {
                bytes.extend(field(value.len() / 2));
                bytes.extend(unhex(value));
            }
        }
        Envelope(bytes.into())
    }
}

fn field(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("short").to_be_bytes()
}

fn unhex(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn data_key(byte: u8) -> Secret<DATA_KEY> {
    Secret::filled(|cell| cell.fill(byte))
}

fn wrapped() -> EncryptedDataKey {
    EncryptedDataKey {
        provider_id: "aws-kms".to_owned(),
        provider_info: "arn:aws:kms:us-west-2:111122223333:key/1234abcd".to_owned(),
        ciphertext: vec![9; 24],
    }
}

fn context() -> EncryptionContext {
    EncryptionContext::new([("env".to_owned(), "prod".to_owned())]).expect("a context")
}

fn envelope() -> Envelope {
    Envelope::new(&context(), &[wrapped()]).expect("an envelope")
}

fn sealed(frame_length: u32, associated_data: &[u8], plaintext: &[u8]) -> Vec<u8> {
    seal_with(
        &Keys::derive(&data_key(1), &[7; MESSAGE_ID]),
        &envelope(),
        &[7; MESSAGE_ID],
        FrameLength::new(frame_length).expect("in bounds"),
        associated_data,
        plaintext,
    )
}

fn open(message: &[u8], associated_data: &[u8]) -> Result<Vec<u8>, Flaw> {
    let opened = Message::parse(message)?.open(&data_key(1), associated_data)?;
    Ok(opened.to_vec())
}

#[test]
fn frozen_messages_are_sealed_and_opened_to_the_byte() {
    for frozen in Frozen::all() {
        let expected = unhex(&frozen.message);
        let digest = crate::crypto::digest::sha256(&expected);
        assert_eq!(
            digest.as_slice(),
            unhex(&frozen.sha256),
            "{}",
            frozen.comment
        );

        let data_key = Secret::copied(&unhex(&frozen.data_key)).expect("32 bytes");
        let id = unhex(&frozen.message_id);
        let id = id.as_slice().try_into().expect("32 bytes");
        let message = seal_with(
            &Keys::derive(&data_key, id),
            &frozen.envelope(),
            id,
            FrameLength::new(frozen.frame_length).expect("in bounds"),
            frozen.associated_data.as_bytes(),
            frozen.plaintext.as_bytes(),
        );
        assert_eq!(message, expected, "{}", frozen.comment);

        let parsed = Message::parse(&expected).expect("a message");
        let pairs = parsed
            .context()
            .pairs()
            .map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(pairs.collect::<BTreeMap<_, _>>(), frozen.context);
        let opened = parsed
            .open(&data_key, frozen.associated_data.as_bytes())
            .map(|plaintext| plaintext.to_vec());
        assert_eq!(
            opened,
            Ok(frozen.plaintext.into_bytes()),
            "{}",
            frozen.comment
        );
    }
}

#[test]
fn a_sealed_message_tells_its_context_and_keys_and_opens() {
    let message = seal(&data_key(1), &envelope(), b"", b"text").expect("randomness");
    let parsed = Message::parse(&message).expect("a message");
    assert_eq!(parsed.context(), &context());
    assert_eq!(parsed.encrypted_data_keys(), [wrapped()]);
    assert_eq!(
        parsed
            .open(&data_key(1), b"")
            .map(|plaintext| plaintext.to_vec()),
        Ok(b"text".to_vec())
    );
    assert_eq!(
        parsed
            .open(&data_key(2), b"")
            .map(|plaintext| plaintext.to_vec()),
        Err(Flaw::CommitmentMismatch)
    );
}

#[test]
fn every_message_has_an_id_of_its_own() {
    let one = seal(&data_key(1), &envelope(), b"", b"text").expect("randomness");
    let two = seal(&data_key(1), &envelope(), b"", b"text").expect("randomness");
    assert_ne!(one[3..35], two[3..35]);
}

#[test]
fn a_message_has_the_documented_length_and_no_spare_room() {
    for (plaintext, frames) in [(0, 1), (1, 1), (16, 1), (17, 2), (32, 2), (33, 3)] {
        let message = sealed(16, b"", &vec![5; plaintext]);
        let keys = 6 + 7 + wrapped().provider_info.len() + 24;
        let context = context().serialized().len();
        let overhead = 92 + context + keys + 40 + 32 * (frames - 1);
        assert_eq!(message.len(), plaintext + overhead);
        assert_eq!(message.capacity(), message.len());
    }
}

#[test]
fn every_changed_byte_is_refused() {
    let shapes: [(&[u8], usize); 6] = [
        (b"", 0),
        (b"", 5),
        (b"", 16),
        (b"", 40),
        (b"", 48),
        (b"record-42", 20),
    ];
    for (associated_data, length) in shapes {
        let message = sealed(16, associated_data, &vec![5; length]);
        assert_eq!(open(&message, associated_data), Ok(vec![5; length]));
        for at in 0..message.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut changed = message.clone();
                changed[at] ^= mask;
                assert!(
                    open(&changed, associated_data).is_err(),
                    "{length}: byte {at}"
                );
            }
        }
    }
}

#[test]
fn a_frame_that_does_not_verify_becomes_zeros() {
    let messages = [
        sealed(16, b"", &[5; 40]),
        sealed(16, b"", &[5; 48]),
        single_block(&[3; 12], &[5; 40]),
    ];
    for mut bent in messages {
        *bent.last_mut().expect("a tag") ^= 1;
        let message = Message::parse(&bent).expect("a header");
        let keys = Keys::derive(&data_key(1), message.header.message_id);
        let body = Body::new(&keys.content, message.header.message_id);
        let (mut plaintext, mut refused) = (Vec::new(), 0);
        for frame in Frames::new(message.body, message.header.framing) {
            let verified = plaintext.len();
            let opened = body.open(&frame.expect("in its place"), &mut plaintext);
            let (before, added) = plaintext.split_at(verified);
            assert!(before.iter().all(|byte| *byte == 5) && !added.is_empty());
            let expected = if opened.is_ok() { 5 } else { 0 };
            assert!(added.iter().all(|byte| *byte == expected));
            refused += usize::from(opened.is_err());
        }
        assert_eq!(refused, 1);
    }
}

#[test]
fn every_shortened_message_is_refused() {
    let message = sealed(16, b"", &[5; 40]);
    for length in 1..message.len() {
        assert_eq!(
            open(&message[..length], b""),
            Err(Flaw::Truncated),
            "{length}"
        );
    }
}

#[test]
fn bytes_after_the_end_are_refused() {
    for length in [0, 16, 20] {
        let mut message = sealed(16, b"", &vec![5; length]);
        message.extend([0; 3]);
        assert_eq!(open(&message, b""), Err(Flaw::TrailingBytes(3)));
    }
}

#[test]
fn associated_data_must_be_the_same() {
    let with = sealed(16, b"record-42", b"text");
    let without = sealed(16, b"", b"text");
    assert_eq!(open(&with, b"record-42"), Ok(b"text".to_vec()));
    assert_eq!(open(&with, b""), Err(Flaw::HeaderMismatch));
    assert_eq!(open(&with, b"record-43"), Err(Flaw::HeaderMismatch));
    assert_eq!(open(&without, b"record-42"), Err(Flaw::HeaderMismatch));
}

#[test]
fn frames_stay_in_their_place() {
    let message = sealed(16, b"", &[5; 40]);
    let frame = 4 + 12 + 16 + 16;
    let body = message.len() - (2 * frame + 40 + 8);
    let (header, frames) = message.split_at(body);
    let flaw = |parts: &[&[u8]]| open(&parts.concat(), b"").expect_err("out of place");
    let sequence = |expected, found| Flaw::FrameSequence { expected, found };

    let swapped = [
        header,
        &frames[frame..2 * frame],
        &frames[..frame],
        &frames[2 * frame..],
    ];
    assert_eq!(flaw(&swapped), sequence(1, 2));
    assert_eq!(flaw(&[header, &frames[..frame], frames]), sequence(2, 1));
    assert_eq!(
        flaw(&[header, &frames[..frame], &frames[2 * frame..]]),
        sequence(2, 3)
    );

    let other = seal_with(
        &Keys::derive(&data_key(1), &[8; MESSAGE_ID]),
        &envelope(),
        &[8; MESSAGE_ID],
        FrameLength::new(16).expect("in bounds"),
        b"",
        &[5; 40],
    );
    let (_, foreign) = other.split_at(body);
    assert_eq!(flaw(&[header, foreign]), Flaw::FrameMismatch(1));
}

#[test]
fn a_final_frame_is_no_longer_than_the_others() {
    let mut message = sealed(16, b"", &[5; 16]);
    let length = message.len() - 16 - 16 - 4;
    message[length + 3] = 17;
    assert_eq!(
        open(&message, b""),
        Err(Flaw::FinalFrame {
            length: 17,
            limit: 16
        })
    );
}

#[test]
fn other_producers_framings_are_read() {
    let keys = Keys::derive(&data_key(1), &[7; MESSAGE_ID]);
    let body = Body::new(&keys.content, &[7; MESSAGE_ID]);
    let whole = sealed(16, b"", &[5; 32]);
    let mut message = whole[..header::sealed_len(&envelope())].to_vec();
    body.seal_regular(1, &[5; 16], &mut message);
    body.seal_regular(2, &[5; 16], &mut message);
    body.seal_final(3, &[], &mut message);
    assert_eq!(message.len(), whole.len() + 32);
    assert_eq!(open(&message, b""), Ok(vec![5; 32]));

    assert_eq!(open(&sealed(1, b"", &[5; 300]), b""), Ok(vec![5; 300]));
    assert_eq!(
        open(&sealed(u32::MAX >> 1, b"", &[5; 300]), b""),
        Ok(vec![5; 300])
    );
}

#[test]
fn a_single_block_is_read() {
    let nonce = [3; 12];
    let message = single_block(&nonce, b"not framed");
    assert_eq!(open(&message, b""), Ok(b"not framed".to_vec()));

    let mut changed = message.clone();
    *changed.last_mut().expect("a tag") ^= 1;
    assert_eq!(open(&changed, b""), Err(Flaw::FrameMismatch(1)));
    assert_eq!(
        open(&[message.as_slice(), b"!"].concat(), b""),
        Err(Flaw::TrailingBytes(1))
    );
    let mut huge = message.clone();
    let length = message.len() - 16 - b"not framed".len() - 8;
    huge[length] = 0xff;
    assert_eq!(open(&huge, b""), Err(Flaw::Truncated));
}

/// A message of content type 1, which we never write.
fn single_block(nonce: &[u8; 12], plaintext: &[u8]) -> Vec<u8> {
    let id = [7; MESSAGE_ID];
    let keys = Keys::derive(&data_key(1), &id);
    let mut message = [
        b"\x02\x04\x78".as_slice(),
        &id,
        &envelope().0,
        &[1, 0, 0, 0, 0],
    ]
    .concat();
    message.extend(keys.commitment.expose());
    let tag = keys.content.seal_in_place(&[0; 12], &message, &mut []);
    message.extend(tag.0);

    let length = u64::try_from(plaintext.len()).expect("short").to_be_bytes();
    let label = b"AWSKMSEncryptionClient Single Block".as_slice();
    let additional = [id.as_slice(), label, &[0, 0, 0, 1], &length].concat();
    let mut content = plaintext.to_vec();
    let tag = keys.content.seal_in_place(nonce, &additional, &mut content);
    [message.as_slice(), nonce, &length, &content, &tag.0].concat()
}

#[test]
fn each_of_several_is_as_one_alone() {
    let key = data_key(1);
    let names = (0..20).map(|text| format!("record-{text}"));
    let names: Vec<String> = names.collect();
    for count in 0..names.len() {
        let (names, _) = names.split_at(count);
        let texts = names.iter().map(|name| (name.as_bytes(), &b"same"[..]));
        let texts: Vec<_> = texts.collect();
        let sealed = seal_each(&key, &envelope(), &texts).expect("randomness");
        assert_eq!(sealed.len(), count);
        let parsed = sealed.iter().map(|bytes| Message::parse(bytes));
        let parsed: Vec<_> = parsed.map(|parsed| parsed.expect("a message")).collect();
        let ids: BTreeSet<_> = parsed.iter().map(|one| one.header.message_id).collect();
        assert_eq!(ids.len(), count);

        let bound = parsed.iter().zip(&texts);
        let mut bound: Vec<_> = bound.map(|(message, text)| (message, text.0)).collect();
        for ((message, associated_data), opened) in bound.iter().zip(open_each(&key, &bound)) {
            assert_eq!(opened.expect("its own data").as_slice(), b"same");
            let alone = message.open(&key, associated_data);
            assert_eq!(alone.expect("the same way").as_slice(), b"same");
        }
        // What is wrong with one is not wrong with its neighbors.
        if let Some((_, associated_data)) = bound.get_mut(count / 2) {
            *associated_data = b"another's";
        }
        for (place, opened) in open_each(&key, &bound).into_iter().enumerate() {
            assert_eq!(opened.is_ok(), place != count / 2, "{place} of {count}");
        }
    }
}

proptest! {
    #[test]
    fn parse_and_open_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(open(&bytes, b"").is_err());
    }

    #[test]
    fn a_damaged_message_never_panics(
        length in 0..50_usize,
        at: prop::sample::Index,
        bytes in prop::collection::vec(any::<u8>(), 1..8),
        cut: prop::sample::Index,
    ) {
        let message = sealed(16, b"", &vec![5; length]);
        let mut damaged = message.clone();
        let at = at.index(damaged.len());
        damaged.splice(at..at, bytes);
        prop_assert!(open(&damaged, b"").is_err());
        damaged.truncate(cut.index(damaged.len()));
        prop_assert!(open(&damaged, b"").is_err() || damaged == message);
    }

    #[test]
    fn round_trips_around_frame_boundaries(
        frame_length in 1..70_u32,
        frames in 0..4_usize,
        off in 0..3_usize,
        associated_data in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let length = usize::try_from(frame_length).expect("small") * frames + off;
        let plaintext: Vec<u8> = (0..=u8::MAX).cycle().take(length.saturating_sub(1)).collect();
        let message = sealed(frame_length, &associated_data, &plaintext);
        prop_assert_eq!(message.capacity(), message.len());
        prop_assert_eq!(open(&message, &associated_data), Ok(plaintext));
    }
}

#[test]
fn round_trips_around_the_default_frame_length() {
    for length in [0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 100_000] {
        let plaintext = vec![0x5a; length];
        let message = seal(&data_key(1), &envelope(), b"record", &plaintext).expect("randomness");
        assert_eq!(open(&message, b"record"), Ok(plaintext), "{length}");
    }
}
