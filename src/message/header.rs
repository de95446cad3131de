//! The header: written in front of the frames, read within limits, verified before anything in it
//! is believed.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::crypto::aead::NONCE;
use crate::crypto::aead::TAG;
use crate::crypto::aead::Tag;
use crate::crypto::digest;

use super::EncryptedDataKey;
use super::EncryptionContext;
use super::Envelope;
use super::Flaw;
use super::context;
use super::envelope;
use super::frames::FrameLength;
use super::frames::Framing;
use super::keys::COMMITMENT;
use super::keys::Keys;
use super::keys::MESSAGE_ID;
use super::reader::Reader;

/// The length of a sealed header around `envelope`, in bytes.
pub(super) fn sealed_len(envelope: &Envelope) -> usize {
    VERSION_AND_SUITE.len() + MESSAGE_ID + envelope.0.len() + 1 + 4 + COMMITMENT + TAG
}

/// Appends `H ‖ T` to `out`, which must be empty: `H` as in the message format, section 2.1, and
/// `(·, T) = AES-256-GCM(content key, N = 0, A = H ‖ suffix, P = ∅)`.
pub(super) fn seal(
    keys: &Keys,
    envelope: &Envelope,
    message_id: &[u8; MESSAGE_ID],
    frame_length: FrameLength,
    associated_data: &[u8],
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(&VERSION_AND_SUITE);
    out.extend_from_slice(message_id);
    out.extend_from_slice(&envelope.0);
    out.push(FRAMED);
    out.extend_from_slice(&frame_length.to_be_bytes());
    out.extend_from_slice(keys.commitment.expose());
    let tag = keys
        .content
        .seal_in_place(&HEADER_NONCE, &bind(out, associated_data), &mut []);
    out.extend_from_slice(&tag.0);
}

/// A header that is well formed and within our limits; true only after [`Header::verify`].
pub(super) struct Header<'a> {
    /// `H`, as received: what the tag covers is never serialized again.
    bytes: &'a [u8],
    pub(super) message_id: &'a [u8; MESSAGE_ID],
    /// Where `claimed` stands in `bytes`.
    pub(super) claims: &'a [u8],
    pub(super) claimed: Arc<Claimed>,
    pub(super) framing: Framing,
    commitment: &'a [u8; COMMITMENT],
    tag: Tag,
}

/// What messages under one data key have in common.
pub(super) struct Claimed {
    pub(super) context: EncryptionContext,
    pub(super) encrypted_data_keys: Vec<EncryptedDataKey>,
}

impl<'a> Header<'a> {
    /// Reads a header off the front of `reader`, which must be at the start of the message. Where
    /// it claims what the header `like` does, that is shared.
    pub(super) fn read(reader: &mut Reader<'a>, like: Option<&Header<'_>>) -> Result<Self, Flaw> {
        let whole = reader.rest();
        recognize(whole)?;
        reader.take(VERSION_AND_SUITE.len())?;
        let message_id = reader.array()?;
        let (claims, claimed) = read_claims(reader, like)?;
        let framing = read_framing(reader)?;
        let commitment = reader.array()?;
        let (bytes, _) = whole.split_at(whole.len() - reader.rest().len());
        let tag = Tag(*reader.array()?);
        Ok(Self {
            bytes,
            message_id,
            claims,
            claimed,
            framing,
            commitment,
            tag,
        })
    }

    /// Checks that the header commits to the data key behind `keys`, then that its tag covers it
    /// and `associated_data`.
    pub(super) fn verify(&self, keys: &Keys, associated_data: &[u8]) -> Result<(), Flaw> {
        // First, because GCM alone lets one message verify under two keys.
        if !keys.commitment.matches(self.commitment) {
            return Err(Flaw::CommitmentMismatch);
        }
        let additional = bind(self.bytes, associated_data);
        keys.content
            .open_in_place(&HEADER_NONCE, &additional, &mut [], &self.tag)
            .map_err(|_| Flaw::HeaderMismatch)
    }
}

/// Refuses what is not a v2 message of suite 0x0478, by the name of what it is instead.
fn recognize(bytes: &[u8]) -> Result<(), Flaw> {
    match *bytes {
        [] => Err(Flaw::Empty),
        [b'A', b'g', b'R' | b'V', b'4', ..] | [b'A', b'Y', b'A', ..] => Err(Flaw::Base64),
        [0x01, 0x80, ..] => Err(Flaw::Version1),
        [0x02, 0x04, 0x78, ..] => Ok(()),
        [0x02, 0x05, 0x78, ..] => Err(Flaw::SignedSuite),
        [0x02, high, low, ..] => Err(Flaw::Suite(u16::from_be_bytes([high, low]))),
        [0x02] | [0x02, _] => Err(Flaw::Truncated),
        [version, ..] => Err(Flaw::Version(version)),
    }
}

fn read_claims<'a>(
    reader: &mut Reader<'a>,
    like: Option<&Header<'_>>,
) -> Result<(&'a [u8], Arc<Claimed>), Flaw> {
    let rest = reader.rest();
    // Lengths stand in front of what they count, so equal beginnings read equally.
    if let Some(like) = like.filter(|like| rest.starts_with(like.claims)) {
        let claims = reader.take(like.claims.len())?;
        return Ok((claims, Arc::clone(&like.claimed)));
    }
    let claimed = Arc::new(Claimed {
        context: read_context(reader)?,
        encrypted_data_keys: read_keys(reader)?,
    });
    let (claims, _) = rest.split_at(rest.len() - reader.rest().len());
    Ok((claims, claimed))
}

fn read_context(reader: &mut Reader<'_>) -> Result<EncryptionContext, Flaw> {
    let length = usize::from(reader.u16()?);
    if length > context::MAX_SERIALIZED {
        return Err(context::Error::Large(length).into());
    }
    EncryptionContext::parse(reader.take(length)?)
}

pub(super) fn read_keys(reader: &mut Reader<'_>) -> Result<Vec<EncryptedDataKey>, Flaw> {
    let count = usize::from(reader.u16()?);
    envelope::check_count(count, envelope::MAX_KEYS_READ)?;
    let mut keys = Vec::new();
    for _ in 0..count {
        let provider_id = str::from_utf8(read_field(reader, envelope::PROVIDER_ID)?);
        let provider_info = str::from_utf8(read_field(reader, envelope::PROVIDER_INFO)?);
        let ciphertext = read_field(reader, envelope::CIPHERTEXT)?;
        if let (Ok(provider_id), Ok(provider_info)) = (provider_id, provider_info) {
            keys.push(EncryptedDataKey {
                provider_id: provider_id.to_owned(),
                provider_info: provider_info.to_owned(),
                ciphertext: ciphertext.to_vec(),
            });
        }
    }
    Ok(keys)
}

fn read_field<'a>(
    reader: &mut Reader<'a>,
    (field, limit): (&'static str, usize),
) -> Result<&'a [u8], Flaw> {
    let length = usize::from(reader.u16()?);
    envelope::check_field(field, length, limit)?;
    Ok(reader.take(length)?)
}

fn read_framing(reader: &mut Reader<'_>) -> Result<Framing, Flaw> {
    let [content_type] = *reader.array()?;
    let length = reader.u32()?;
    match content_type {
        SINGLE_BLOCK if length == 0 => Ok(Framing::Single),
        FRAMED => match FrameLength::new(length) {
            Some(length) => Ok(Framing::Framed(length)),
            None => Err(Flaw::FrameLength(length)),
        },
        SINGLE_BLOCK => Err(Flaw::FrameLength(length)),
        other => Err(Flaw::ContentType(other)),
    }
}

/// `header ‖ suffix`, what the header's tag covers (message format, section 5): the suffix is
/// empty for empty `associated_data`, else the serialization of the one-pair context
/// `{"keybroker:associated-data": base64(SHA-256(associated_data))}`.
fn bind<'a>(header: &'a [u8], associated_data: &[u8]) -> Cow<'a, [u8]> {
    if associated_data.is_empty() {
        return Cow::Borrowed(header);
    }
    let mut value = [0; 44];
    STANDARD
        .encode_slice(digest::sha256(associated_data), &mut value)
        .expect("32 bytes are 44 characters of base64");
    Cow::Owned([header, ASSOCIATED_DATA, &value].concat())
}

/// So many bytes tell what is no message from what may become one.
pub(super) const TELLING: usize = 4;
const VERSION_AND_SUITE: [u8; 3] = [0x02, 0x04, 0x78];
/// Content types.
const SINGLE_BLOCK: u8 = 1;
const FRAMED: u8 = 2;
/// Frames are numbered from 1, so no frame has the header's nonce.
const HEADER_NONCE: [u8; NONCE] = [0; NONCE];
/// One pair; 25 bytes of name; a value of 44 bytes follows.
const ASSOCIATED_DATA: &[u8] = b"\0\x01\0\x19keybroker:associated-data\0\x2c";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_message_of_ours_is_named() {
        let cases: [(&[u8], Flaw); 12] = [
            (b"", Flaw::Empty),
            (b"AgR4PKWp", Flaw::Base64),
            (b"AgV4PKWp", Flaw::Base64),
            (b"AYADeA==", Flaw::Base64),
            (b"\x01\x80\x03\x78", Flaw::Version1),
            (b"\x01\x00", Flaw::Version(1)),
            (b"\x00", Flaw::Version(0)),
            (b"\x02", Flaw::Truncated),
            (b"\x02\x04", Flaw::Truncated),
            (b"\x02\x04\x78", Flaw::Truncated),
            (b"\x02\x05\x78", Flaw::SignedSuite),
            (b"\x02\x01\x78", Flaw::Suite(0x0178)),
        ];
        for (bytes, flaw) in cases {
            let found = Header::read(&mut Reader::new(bytes), None).err();
            assert_eq!(found, Some(flaw), "{bytes:02x?}");
        }
    }

    #[test]
    fn framing_is_one_of_two_and_bounded() {
        let framing = |bytes: &[u8]| read_framing(&mut Reader::new(bytes)).map(drop);
        assert_eq!(framing(&[1, 0, 0, 0, 0]), Ok(()));
        assert_eq!(framing(&[2, 0, 0, 0, 1]), Ok(()));
        assert_eq!(framing(&[2, 0x7f, 0xff, 0xff, 0xff]), Ok(()));
        assert_eq!(
            framing(&[2, 0x80, 0, 0, 0]),
            Err(Flaw::FrameLength(1 << 31))
        );
        assert_eq!(framing(&[2, 0, 0, 0, 0]), Err(Flaw::FrameLength(0)));
        assert_eq!(framing(&[1, 0, 0, 0, 1]), Err(Flaw::FrameLength(1)));
        assert_eq!(framing(&[3, 0, 0, 0, 1]), Err(Flaw::ContentType(3)));
    }

    #[test]
    fn encrypted_data_keys_are_bounded_before_they_are_read() {
        let keys = |bytes: &[u8]| read_keys(&mut Reader::new(bytes));
        let count = |count: usize| Flaw::from(envelope::Limit::Keys { count, limit: 16 });
        assert_eq!(keys(&[0, 0]), Err(count(0)));
        assert_eq!(keys(&[0, 17]), Err(count(17)));
        assert_eq!(keys(&[0, 16]), Err(Flaw::Truncated));
        let long = envelope::Limit::Field {
            field: "provider id",
            length: 2049,
            limit: 2048,
        };
        assert_eq!(keys(&[0, 1, 0x08, 0x01]), Err(long.into()));
    }

    #[test]
    fn keys_are_read_in_order_without_those_of_providers_that_are_no_text() {
        let bytes = b"\0\x03\0\x01a\0\x01i\0\x01w\0\x03raw\0\x01\xff\0\x01w\0\x01b\0\x01i\0\0";
        let keys = read_keys(&mut Reader::new(bytes)).expect("three keys");
        let key = |provider: &str, ciphertext: &[u8]| EncryptedDataKey {
            provider_id: provider.to_owned(),
            provider_info: "i".to_owned(),
            ciphertext: ciphertext.to_owned(),
        };
        assert_eq!(keys, [key("a", b"w"), key("b", b"")]);
    }

    #[test]
    fn a_context_that_is_too_large_is_refused_before_it_is_read() {
        let flaw = read_context(&mut Reader::new(&[0x10, 0x01]));
        assert_eq!(flaw, Err(context::Error::Large(4097).into()));
    }

    #[test]
    fn associated_data_is_the_documented_suffix() {
        assert_eq!(bind(b"H", b"").as_ref(), b"H");
        let bound = bind(b"H", b"record-42");
        let pair = "keybroker:associated-data\0\x2cu3GpjSaFu15p7sJxH3jZG2i9zxlBkvTUGHOsc+dHYCI=";
        assert_eq!(
            bound.strip_prefix(b"H\0\x01\0\x19").expect("one pair"),
            pair.as_bytes()
        );
        assert_eq!(bound.len(), 1 + 75);
    }
}
