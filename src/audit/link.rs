//! The end of a line, by which it hangs on the one before: `seq`, `hash` and, where a record is
//! signed, `signature`.
//!
//! ```text
//! hash(n) = SHA-256(hash(n-1) ‖ the line's bytes before `,"hash"`)
//! hash(-1) = SHA-256("keybroker audit chain v1\0" ‖ instance)
//! signature = Ed25519("keybroker audit record v1\0" ‖ instance ‖ seq as 8 bytes, big-endian ‖ hash)
//! ```
//!
//! A countersignature is over the same bytes, by another key.
//!
//! `instance` stands as text in both, and 36 bytes long. Whoever holds the last hash holds the whole
//! chain, and a signature vouches for all before it.

use std::fmt;
use std::str;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::Error as _;
use uuid::Uuid;

use crate::audit::json::put;
use crate::crypto::digest::sha256_of;
use crate::crypto::signature::PublicKey;
use crate::crypto::signature::Signature;
use crate::crypto::signature::SigningKey;

/// Stands for a record and all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash([u8; 32]);

/// A record's place in the chain of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Whose chain.
    pub instance: Uuid,
    /// Which record, counted from 0.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Hash {
    /// What the first record of `instance` hangs on.
    pub(super) fn genesis(instance: Uuid) -> Self {
        let mut text = Uuid::encode_buffer();
        let instance = instance.hyphenated().encode_lower(&mut text);
        Self(sha256_of([CHAIN, instance.as_bytes()]))
    }

    /// Of the record whose line is `body` up to here, behind the one with this hash.
    pub(super) fn next(self, body: &[u8]) -> Self {
        Self(sha256_of([&self.0, body]))
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut hash = [0; 32];
        match BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut hash) {
            Ok(32) => Some(Self(hash)),
            _ => None,
        }
    }

    fn write(self, line: &mut Vec<u8>) {
        let mut text = [0; HASH];
        let written = BASE64_URL_SAFE_NO_PAD.encode_slice(self.0, &mut text);
        debug_assert_eq!(written, Ok(HASH), "32 bytes are 43 characters");
        line.extend_from_slice(&text);
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        BASE64_URL_SAFE_NO_PAD.encode(self.0).fmt(f)
    }
}

/// A text is no hash of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a hash of a record, which has 43 characters")]
pub struct NoHash;

impl FromStr for Hash {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<Self, NoHash> {
        Self::parse(text.as_bytes()).ok_or(NoHash)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl Place {
    /// Ends the line that begins at `start` of `line`: JSON up to and with its `"instance"`.
    pub(super) fn end(
        instance: Uuid,
        seq: u64,
        before: Hash,
        start: usize,
        line: &mut Vec<u8>,
    ) -> Self {
        put(line, SEQ, seq);
        let hash = before.next(line.get(start..).unwrap_or_default());
        line.extend_from_slice(HASH_BEGINS);
        hash.write(line);
        line.push(b'"');
        Self {
            instance,
            seq,
            hash,
        }
    }

    /// What a signature of the record is over.
    pub(super) fn message(&self) -> Vec<u8> {
        let mut text = Uuid::encode_buffer();
        let instance = self.instance.hyphenated().encode_lower(&mut text);
        let seq = self.seq.to_be_bytes();
        [RECORD, instance.as_bytes(), &seq, &self.hash.0].concat()
    }

    /// Signs the record.
    pub(super) fn sign(&self, key: &SigningKey) -> Signature {
        key.sign(&self.message())
    }

    /// Whether `signature` is one of the record by `key`.
    pub(super) fn signed(&self, key: &PublicKey, signature: &[u8]) -> bool {
        key.verifies(&self.message(), signature)
    }
}

/// A line that has such an end.
#[derive(Clone, Copy)]
pub(super) struct Linked<'a> {
    /// What its hash is over, but for the one before.
    pub(super) body: &'a [u8],
    /// The place that it claims.
    pub(super) place: Place,
    pub(super) signature: Option<Signature>,
}

impl<'a> Linked<'a> {
    /// Reads the end of `line`, which is without its newline. The rest of it may be anything.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let rest = line.strip_suffix(b"\"}")?;
        if let Some((body, hash)) = split(rest, HASH_BEGINS, HASH) {
            return Self::of(body, hash, None);
        }
        let (rest, signature) = split(rest, SIGNATURE_BEGINS, SIGNATURE)?;
        let signature = Signature::parse(signature).ok()?;
        let (body, hash) = split(rest, HASH_BEGINS, HASH)?;
        Self::of(body, hash, Some(signature))
    }

    fn of(body: &'a [u8], hash: &[u8], signature: Option<Signature>) -> Option<Self> {
        let hash = Hash::parse(hash)?;
        let digits = body.iter().rev().take_while(|byte| byte.is_ascii_digit());
        let (rest, seq) = split(body, SEQ.as_bytes(), digits.count())?;
        let seq = str::from_utf8(seq).ok()?;
        // The one way of writing a number.
        if seq.len() > 1 && seq.starts_with('0') {
            return None;
        }
        let (_, instance) = split(rest.strip_suffix(b"\"")?, INSTANCE, INSTANCE_LENGTH)?;
        let place = Place {
            instance: Uuid::try_parse_ascii(instance).ok()?,
            seq: seq.parse().ok()?,
            hash,
        };
        Some(Self {
            body,
            place,
            signature,
        })
    }
}

/// Splits off the last `length` bytes, which `mark` stands before.
fn split<'a>(bytes: &'a [u8], mark: &[u8], length: usize) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.len().checked_sub(length)?;
    let (rest, end) = bytes.split_at_checked(at)?;
    Some((rest.strip_suffix(mark)?, end))
}

const CHAIN: &[u8] = b"keybroker audit chain v1\0";
const RECORD: &[u8] = b"keybroker audit record v1\0";
const INSTANCE: &[u8] = b"\"instance\":\"";
const INSTANCE_LENGTH: usize = 36;
const SEQ: &str = ",\"seq\":";
const HASH_BEGINS: &[u8] = b",\"hash\":\"";
/// 32 bytes in base64url.
const HASH: usize = 43;
pub(super) const SIGNATURE_BEGINS: &[u8] = b"\",\"signature\":\"";
/// 64 bytes in base64url.
const SIGNATURE: usize = 86;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back_as_it_was_linked() {
        let instance = Uuid::from_u128(0x018f_0000_0000_7000_8000_0000_0000_002a);
        let genesis = Hash::genesis(instance);
        let body = format!("{{\"a\":1,\"instance\":\"{instance}\"");
        let mut line = format!("before{body}").into_bytes();
        let place = Place::end(instance, 12, genesis, "before".len(), &mut line);
        let key = SigningKey::random().unwrap();
        let signature = place.sign(&key);
        let plain = [&line["before".len()..], b"}"].concat();
        let read = Linked::parse(&plain).unwrap();
        assert_eq!((read.place, read.signature), (place, None));
        assert_eq!(genesis.next(read.body), place.hash);

        line.pop();
        line.extend_from_slice(SIGNATURE_BEGINS);
        line.extend_from_slice(format!("{signature}\"}}").as_bytes());
        let read = Linked::parse(&line["before".len()..]).unwrap();
        assert_eq!((read.place, read.signature), (place, Some(signature)));
        assert!(place.signed(&key.public(), signature.as_ref()));
        let moved = Place { seq: 13, ..place };
        assert!(!moved.signed(&key.public(), signature.as_ref()));
    }

    #[test]
    fn what_is_not_linked_is_not_read() {
        for line in [
            "",
            "\"}",
            "{\"hash\":\"\"}",
            &format!("{{\"instance\":\"x\",\"seq\":1,\"hash\":\"{:A<43}\"}}", ""),
            &format!(
                "{{\"instance\":\"{}\",\"seq\":01,\"hash\":\"{:A<43}\"}}",
                Uuid::nil(),
                ""
            ),
            &format!(
                "{{\"instance\":\"{}\",\"seq\":,\"hash\":\"{:A<43}\"}}",
                Uuid::nil(),
                ""
            ),
            // Bits beyond the hash's own.
            &format!(
                "{{\"instance\":\"{}\",\"seq\":1,\"hash\":\"{:A<42}B\"}}",
                Uuid::nil(),
                ""
            ),
        ] {
            assert!(Linked::parse(line.as_bytes()).is_none(), "{line}");
        }
    }
}
