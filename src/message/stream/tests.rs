use proptest::prelude::*;

use super::super::EncryptedDataKey;
use super::super::EncryptionContext;
use super::super::frames::Framing;
use super::*;

fn data_key() -> Secret<DATA_KEY> {
    Secret::filled(|cell| cell.fill(1))
}

fn envelope() -> Envelope {
    let key = EncryptedDataKey {
        provider_id: "aws-kms".to_owned(),
        provider_info: "arn:aws:kms:us-west-2:111122223333:key/1234abcd".to_owned(),
        ciphertext: vec![9; 24],
    };
    let context = EncryptionContext::new([("env".to_owned(), "prod".to_owned())]);
    Envelope::new(&context.expect("a context"), &[key]).expect("an envelope")
}

fn frame_length(bytes: u32) -> FrameLength {
    FrameLength::new(bytes).expect("in bounds")
}

fn whole(length: u32, plaintext: &[u8]) -> Vec<u8> {
    super::super::seal_with(
        &Keys::derive(&data_key(), &[7; MESSAGE_ID]),
        &envelope(),
        &[7; MESSAGE_ID],
        frame_length(length),
        b"record-42",
        plaintext,
    )
}

fn sealer(length: u32) -> (Sealer, Vec<u8>) {
    let length = frame_length(length);
    Sealer::with(
        &data_key(),
        &envelope(),
        [7; MESSAGE_ID],
        length,
        b"record-42",
    )
}

/// Bytes that differ from their neighbors.
fn text(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

/// `bytes` cut into pieces of these lengths, again and again.
fn cut<'a>(bytes: &'a [u8], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = bytes;
    lengths.iter().cycle().map_while(move |length| {
        let (front, behind) = rest.split_at((*length).min(rest.len()));
        let more = !rest.is_empty();
        rest = behind;
        more.then_some(front)
    })
}

/// Opens a stream, and returns what was released with how it ended.
fn open<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Result<(), Flaw>) {
    let mut released = Vec::new();
    let ended = try_open(chunks, &mut released);
    (released, ended)
}

fn try_open<'a>(
    chunks: impl Iterator<Item = &'a [u8]>,
    released: &mut Vec<u8>,
) -> Result<(), Flaw> {
    let mut head = Head::default();
    let mut opener: Option<Opener> = None;
    for mut chunk in chunks {
        if opener.is_none() {
            if head.push(&mut chunk)? == Progress::Begun {
                continue;
            }
            let message = head.message()?;
            let mut begun = message.unseal(&data_key(), b"record-42")?;
            released.extend_from_slice(&begun.push(message.body())?);
            opener = Some(begun);
        }
        if let Some(opener) = &mut opener {
            released.extend_from_slice(&opener.push(chunk)?);
        }
    }
    match opener {
        Some(opener) => opener.finish(),
        None => head.message().map(drop),
    }
}

fn opened(message: &[u8], lengths: &[usize]) -> Result<Vec<u8>, Flaw> {
    let (released, ended) = open(cut(message, lengths));
    ended.map(|()| released)
}

#[test]
fn every_length_around_frames_and_pieces_is_sealed_as_the_whole_is() {
    for length in [
        0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 65_535, 65_536, 65_537,
    ] {
        let plaintext = text(length);
        for piece in [1, 15, 4095, 4096, 4097, 8192, 65_536, 1 << 20] {
            let (mut sealer, mut message) = sealer(4096);
            for chunk in cut(&plaintext, &[piece]) {
                message.extend(sealer.push(chunk));
            }
            message.extend(sealer.finish());
            assert!(message == whole(4096, &plaintext), "{length} by {piece}");
            assert_eq!(opened(&message, &[piece]), Ok(plaintext.clone()));
        }
    }
}

#[test]
fn a_frame_is_given_as_soon_as_it_is_certain_and_never_before() {
    let (mut sealer, header) = sealer(16);
    assert_eq!(header.len(), header::sealed_len(&envelope()));
    assert_eq!(sealer.push(&text(15)), b"");
    assert_eq!(sealer.push(b"x"), b"", "it may be the final frame");
    assert_eq!(sealer.push(b"x").len(), 4 + 12 + 16 + 16);
    assert_eq!(sealer.push(b""), b"");
    let two = sealer.push(&text(32));
    assert_eq!((two.len(), two.capacity()), (2 * 48, 2 * 48));
    assert_eq!(sealer.finish().len(), 24 + 1 + 16);
}

proptest! {
    #[test]
    fn pieces_make_the_same_message(
        length in 0_usize..200,
        frame in 1_u32..40,
        pieces in prop::collection::vec(0_usize..90, 1..6),
    ) {
        prop_assume!(pieces.iter().any(|piece| *piece > 0));
        let plaintext = text(length);
        let (mut sealer, mut message) = sealer(frame);
        for chunk in cut(&plaintext, &pieces) {
            message.extend(sealer.push(chunk));
        }
        message.extend(sealer.finish());
        prop_assert_eq!(&message, &whole(frame, &plaintext));
        prop_assert_eq!(opened(&message, &pieces), Ok(plaintext));
    }

    #[test]
    fn a_changed_message_releases_a_prefix_and_ends_as_the_whole_does(
        length in 0_usize..120,
        at: prop::sample::Index,
        mask in 1_u8..,
        piece in 1_usize..200,
    ) {
        let plaintext = text(length);
        let mut message = whole(16, &plaintext);
        let at = at.index(message.len());
        message[at] ^= mask;
        let (released, ended) = open(cut(&message, &[piece]));
        prop_assert!(plaintext.starts_with(&released));
        prop_assert!(ended.is_err());
        let expected = Message::parse(&message)
            .and_then(|message| message.open(&data_key(), b"record-42"));
        // Trailing bytes are counted by the piece.
        let label = |flaw: &Flaw| flaw.label();
        prop_assert_eq!(ended.as_ref().map_err(label).err(), expected.as_ref().map_err(label).err());
    }

    #[test]
    fn a_message_cut_short_is_truncated_whatever_was_released(
        length in 0_usize..120,
        at: prop::sample::Index,
        piece in 1_usize..200,
    ) {
        let plaintext = text(length);
        let message = whole(16, &plaintext);
        let (_, most) = message.split_last().expect("a header");
        let short = &most[..at.index(most.len() + 1)];
        let (released, ended) = open(cut(short, &[piece]));
        prop_assert!(plaintext.starts_with(&released));
        let expected = if short.is_empty() { Flaw::Empty } else { Flaw::Truncated };
        prop_assert_eq!(ended, Err(expected));
    }
}

#[test]
fn frames_out_of_their_place_end_the_stream_behind_those_that_were_in_it() {
    let plaintext = text(40);
    let message = whole(16, &plaintext);
    let (header, frames) = message.split_at(header::sealed_len(&envelope()));
    let (one, rest) = frames.split_at(48);
    let (two, last) = rest.split_at(48);
    let end = |parts: &[&[u8]]| {
        let bytes = parts.concat();
        let (released, ended) = open(cut(&bytes, &[1]));
        for piece in [7, 48, 1000] {
            // What shares a piece with the flaw is not released.
            let (fewer, same) = open(cut(&bytes, &[piece]));
            assert!(released.starts_with(&fewer));
            assert_eq!(same, ended);
        }
        (released, ended)
    };
    let sequence = |expected, found| Err(Flaw::FrameSequence { expected, found });
    let front = plaintext[..16].to_vec();
    assert_eq!(end(&[header, two, one, last]), (vec![], sequence(1, 2)));
    assert_eq!(
        end(&[header, one, one, two]),
        (front.clone(), sequence(2, 1))
    );
    assert_eq!(end(&[header, one, last]), (front.clone(), sequence(2, 3)));
    assert_eq!(end(&[header, one]), (front, Err(Flaw::Truncated)));
    let whole = (plaintext, Err(Flaw::TrailingBytes(1)));
    assert_eq!(end(&[header, one, two, last, b"!"]), whole);
}

#[test]
fn headers_are_taken_in_any_pieces_and_refused_by_name() {
    let head = |bytes: &[u8], piece| {
        let mut head = Head::default();
        for mut chunk in cut(bytes, &[piece]) {
            head.push(&mut chunk)?;
        }
        head.message().map(drop)
    };
    for piece in [1, 2, 3, 8] {
        assert_eq!(head(b"AgR4PKWp", piece), Err(Flaw::Base64));
        assert_eq!(head(b"\x01\x80\x03\x78", piece), Err(Flaw::Version1));
        assert_eq!(head(b"\x02\x05\x78\x00", piece), Err(Flaw::SignedSuite));
        assert_eq!(head(b"", piece), Err(Flaw::Empty));
        assert_eq!(head(b"A", piece), Err(Flaw::Version(65)));
        assert_eq!(head(b"\x02\x04", piece), Err(Flaw::Truncated));
    }
}

#[test]
fn a_header_takes_no_more_memory_than_its_limits_whatever_follows() {
    let message = whole(4096, &text(1 << 20));
    let mut chunk = message.as_slice();
    let mut head = Head::default();
    assert_eq!(head.push(&mut chunk), Ok(Progress::Whole));
    assert!(head.bytes.len() <= STRIDE);
    assert_eq!(head.bytes.len() + chunk.len(), message.len());

    // As many and as large encrypted data keys as may be, none of which is whole.
    let key = [
        &[0x08, 0x00][..],
        &[b'p'; 2048],
        &[0x08, 0x00],
        &[b'i'; 2048],
        &[0x18, 0x00],
        &[0; 6144],
    ]
    .concat();
    let mut bytes = [&[2, 4, 0x78][..], &[7; 32], &[0, 0, 0, 16]].concat();
    bytes.extend(key.repeat(16));
    bytes.extend([2, 0, 0, 16, 0]);
    bytes.extend([7; 32 + 16]);
    let mut head = Head::default();
    for (at, byte) in bytes.iter().enumerate() {
        let progress = head.push(&mut [*byte].as_slice());
        let whole = at + 1 == bytes.len();
        assert_eq!(progress == Ok(Progress::Whole), whole, "{at}");
    }
}

#[test]
fn a_frame_that_is_too_long_to_hold_is_refused_before_it_comes() {
    let long = Err(Flaw::LongFrame {
        length: MAX_FRAME + 1,
        limit: MAX_FRAME,
    });
    let length = u32::try_from(MAX_FRAME).expect("1 MiB") + 1;
    let plaintext = text(usize::try_from(MAX_FRAME).expect("1 MiB") + 2);
    let message = whole(length, &plaintext);
    let regular = header::sealed_len(&envelope()) + 16;
    assert_eq!(opened(&message[..regular], &[5]), long);
    // A short message of such frames is held.
    let message = whole(length, &plaintext[..100]);
    assert_eq!(opened(&message, &[5]), Ok(plaintext[..100].to_vec()));
    // As long as may be.
    let message = whole(length - 1, &plaintext);
    assert_eq!(opened(&message, &[65_536]), Ok(plaintext.clone()));
    // A final frame that is too long.
    let message = whole(length, &plaintext[..plaintext.len() - 1]);
    let final_frame = header::sealed_len(&envelope()) + 24;
    assert_eq!(opened(&message[..final_frame], &[5]), long);
}

#[test]
fn a_body_without_frames_is_held_within_the_limit() {
    let keys = Keys::derive(&data_key(), &[7; MESSAGE_ID]);
    let body = |length: u64| {
        let nonce = [3; aead::NONCE];
        let mut content = text(usize::try_from(length).expect("short"));
        let label = b"AWSKMSEncryptionClient Single Block";
        let id = [7; MESSAGE_ID];
        let parts: [&[u8]; 4] = [&id, label, &[0, 0, 0, 1], &length.to_be_bytes()];
        let tag = keys
            .content
            .seal_in_place(&nonce, &parts.concat(), &mut content);
        [&nonce[..], &length.to_be_bytes(), &content, &tag.0].concat()
    };
    let open = |bytes: &[u8], piece| {
        let mut opener = Opener {
            content: Keys::derive(&data_key(), &[7; MESSAGE_ID]).content,
            message_id: [7; MESSAGE_ID],
            place: Place::first(Framing::Single, MAX_FRAME),
            held: Vec::new(),
            missing: 0,
        };
        let mut released = Vec::new();
        for chunk in cut(bytes, &[piece]) {
            released.extend_from_slice(&opener.push(chunk)?);
        }
        opener.finish().map(|()| released)
    };
    for length in [0, 1, 5000, MAX_FRAME] {
        let expected = text(usize::try_from(length).expect("short"));
        assert!(open(&body(length), 3000) == Ok(expected));
    }
    let claims = [&[3; 12][..], &u64::MAX.to_be_bytes()].concat();
    let long = Flaw::LongFrame {
        length: u64::MAX,
        limit: MAX_FRAME,
    };
    assert_eq!(open(&claims, 1), Err(long));
    let extended = [body(5).as_slice(), b"!"].concat();
    assert_eq!(open(&extended, 1), Err(Flaw::TrailingBytes(1)));
}
