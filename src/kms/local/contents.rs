//! What a keyring holds, and its one encoding, which [`crate::kms::local::file`] seals.
//!
//! `u16` number of keys; for each, in ascending order of ids: `u8` length ‖ id ‖ `u8`
//! state (1 enabled, 2 disabled, 3 pending deletion) ‖ `i64` due time of the deletion (0 in other
//! states) ‖ `u16` number of versions; for each, in ascending order: `u32` number ‖ `i64` created ‖
//! 32 bytes of material. Times are seconds since 1970. Nothing may follow, so one set of keys has
//! one encoding.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use crate::crypto::Secret;
use crate::name::KeyId;

/// What a keyring is for. A dev keyring never serves in production, nor the reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `keybroker dev`: made and thrown away without ceremony.
    Dev,
    /// Everything else.
    Production,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dev => "dev",
            Self::Production => "production",
        })
    }
}

/// Whether a key may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It wraps and unwraps.
    Enabled,
    /// It does neither until it is enabled again.
    Disabled,
    /// It does neither, and its material is destroyed at `due` unless that is canceled.
    PendingDeletion {
        /// When, in whole seconds.
        due: Timestamp,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enabled => f.write_str("enabled"),
            Self::Disabled => f.write_str("disabled"),
            Self::PendingDeletion { due } => write!(f, "pending deletion at {due}"),
        }
    }
}

/// All that a keyring holds. Clones share the material.
#[derive(Clone)]
pub struct Contents {
    /// The keyring's name for itself, in the provider info of what it wraps.
    pub id: Uuid,
    /// What the keyring is for.
    pub purpose: Purpose,
    /// At most [`MAX_KEYS`].
    pub keys: BTreeMap<KeyId, Key>,
}

/// A key: its state and its versions.
#[derive(Clone)]
pub struct Key {
    /// Whether it may be used.
    pub state: State,
    /// The newest version, the one that wraps.
    pub primary: Version,
    /// The earlier ones in ascending order, which unwrap what they wrapped; with the primary at
    /// most [`MAX_VERSIONS`].
    pub earlier: Vec<Version>,
}

impl Key {
    /// All versions, in ascending order.
    pub fn versions(&self) -> impl Iterator<Item = &Version> {
        self.earlier.iter().chain([&self.primary])
    }
}

/// A version of a key.
#[derive(Clone)]
pub struct Version {
    /// Its number, at least 1.
    pub number: u32,
    /// When it was made, in whole seconds.
    pub created: Timestamp,
    /// What data keys are wrapped under.
    pub material: Arc<Secret<MATERIAL>>,
}

/// Reads decrypted contents. Total: any bytes give keys or `None`.
pub fn parse_keys(bytes: &[u8]) -> Option<BTreeMap<KeyId, Key>> {
    let mut fields = Fields(bytes);
    let mut keys = BTreeMap::new();
    let count = fields.u16()?;
    for _ in 0..count {
        let length = fields.u8()?;
        let id: KeyId = str::from_utf8(fields.take(length.into())?)
            .ok()?
            .parse()
            .ok()?;
        let state = match (fields.u8()?, fields.i64()?) {
            (1, 0) => State::Enabled,
            (2, 0) => State::Disabled,
            (3, due) => State::PendingDeletion {
                due: Timestamp::from_second(due).ok()?,
            },
            _ => return None,
        };
        let count = fields.u16()?;
        let mut earlier: Vec<Version> = Vec::new();
        for _ in 0..count {
            let version = Version {
                number: fields.u32()?,
                created: Timestamp::from_second(fields.i64()?).ok()?,
                material: Arc::new(Secret::copied(fields.take(MATERIAL)?)?),
            };
            if version.number <= earlier.last().map_or(0, |last| last.number) {
                return None;
            }
            earlier.push(version);
        }
        let ascending = keys.last_key_value().is_none_or(|(last, _)| *last < id);
        if !ascending || usize::from(count) > MAX_VERSIONS {
            return None;
        }
        let primary = earlier.pop()?;
        keys.insert(
            id,
            Key {
                state,
                primary,
                earlier,
            },
        );
    }
    (fields.0.is_empty() && keys.len() <= MAX_KEYS).then_some(keys)
}

/// Appends the encoding.
pub(super) fn encode(keys: &BTreeMap<KeyId, Key>, out: &mut Vec<u8>) {
    let count = |n: usize| {
        u16::try_from(n)
            .expect("within MAX_KEYS and MAX_VERSIONS")
            .to_be_bytes()
    };
    out.extend_from_slice(&count(keys.len()));
    for (id, key) in keys {
        let length = u8::try_from(id.as_str().len()).expect("a label has at most 63 bytes");
        out.push(length);
        out.extend_from_slice(id.as_str().as_bytes());
        let (state, due) = match key.state {
            State::Enabled => (1, 0),
            State::Disabled => (2, 0),
            State::PendingDeletion { due } => (3, due.as_second()),
        };
        out.push(state);
        out.extend_from_slice(&due.to_be_bytes());
        out.extend_from_slice(&count(key.versions().count()));
        for version in key.versions() {
            out.extend_from_slice(&version.number.to_be_bytes());
            out.extend_from_slice(&version.created.as_second().to_be_bytes());
            out.extend_from_slice(version.material.expose());
        }
    }
}

/// The exact length of the encoding: a buffer that grew would leave copies of material behind.
pub(super) fn encoded_len(keys: &BTreeMap<KeyId, Key>) -> usize {
    let version = 4 + 8 + MATERIAL;
    let key = |(id, key): (&KeyId, &Key)| {
        1 + id.as_str().len() + 1 + 8 + 2 + key.versions().count() * version
    };
    2 + keys.iter().map(key).sum::<usize>()
}

/// Bytes not read yet; each method takes some from the front, or `None` at the end.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(field)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().copied().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().copied().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().copied().map(u32::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().copied().map(i64::from_be_bytes)
    }
}

/// Most keys in a keyring.
pub const MAX_KEYS: usize = 1024;
/// Most versions of a key: five years of weekly rotation.
pub const MAX_VERSIONS: usize = 256;
/// The length of a version's material, in bytes.
pub const MATERIAL: usize = 32;

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_buffer_for_plaintext_never_grows() {
        let contents = sample();
        let mut out = Vec::new();
        encode(&contents.keys, &mut out);
        assert_eq!(out.len(), encoded_len(&contents.keys));
    }

    proptest! {
        #[test]
        fn parsing_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            drop(parse_keys(&bytes));
        }

        #[test]
        fn what_parses_has_one_encoding(
            place in 0..sample_encoded().len(),
            value in any::<u8>(),
            cut in 0..sample_encoded().len(),
        ) {
            let mut bytes = sample_encoded();
            bytes[place] = value;
            if let Some(keys) = parse_keys(&bytes) {
                let mut again = Vec::new();
                encode(&keys, &mut again);
                prop_assert_eq!(again, bytes);
            }
            prop_assert!(parse_keys(&sample_encoded()[..cut]).is_none());
        }
    }

    fn sample_encoded() -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&sample().keys, &mut bytes);
        bytes
    }

    /// Three keys in three states.
    pub(in crate::kms::local) fn sample() -> Contents {
        let version = |number: u32| Version {
            number,
            created: Timestamp::from_second(1_700_000_000 + i64::from(number)).expect("a time"),
            material: Arc::new(Secret::copied(&[number.to_le_bytes()[0]; 32]).expect("32")),
        };
        let due = Timestamp::from_second(1_800_000_000).expect("a time");
        let key = |state, primary, earlier: &[u32]| Key {
            state,
            primary: version(primary),
            earlier: earlier.iter().copied().map(version).collect(),
        };
        let id = |text: &str| text.parse().expect("a label");
        Contents {
            id: Uuid::from_u128(0x5eed),
            purpose: Purpose::Production,
            keys: BTreeMap::from([
                (id("orders"), key(State::Enabled, 3, &[1, 2])),
                (id("a"), key(State::Disabled, 9, &[])),
                (id("z"), key(State::PendingDeletion { due }, 2, &[1])),
            ]),
        }
    }
}
