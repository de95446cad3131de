//! The bytes of a keyring file. No file system here.
//!
//! Integers are big-endian. What stands before the ciphertext is the header.
//!
//! | bytes | field |
//! |---|---|
//! | 8 | `KBKEYRNG` |
//! | 2 | format, 1 |
//! | 1 | purpose: 1 dev, 2 production |
//! | 16 | keyring id |
//! | 32 | salt, random, new with each write |
//! | 16 | check: HKDF-SHA-512(sealing key, salt, `keybroker keyring 1 check` ‖ keyring id) |
//! | 4 | length of the ciphertext |
//! | … | contents, AES-256-GCM under HKDF-SHA-512(sealing key, salt, `keybroker keyring 1 file` ‖ keyring id), nonce zero, the header as associated data |
//! | 16 | tag |
//! | 32 | SHA-256 of all bytes before |
//!
//! Each write has a key of its own, so its one nonce never repeats. The checksum tells damage from
//! the wrong sealing key, the check value tells the wrong sealing key from forgery; neither is
//! trusted for anything but the choice of a sentence.

use uuid::Uuid;
use zeroize::Zeroizing;

use crate::crypto::Secret;
use crate::crypto::aead;
use crate::crypto::digest;
use crate::crypto::kdf;
use crate::crypto::random;
use crate::kms::local::contents::Contents;
use crate::kms::local::contents::Fields;
use crate::kms::local::contents::Purpose;
use crate::kms::local::contents::encode;
use crate::kms::local::contents::encoded_len;
use crate::kms::local::contents::parse_keys;
use crate::kms::local::sealing::SealingKey;

/// Longest file, in bytes: the most keys with the most versions fit.
pub const MAX_FILE: usize = 16 << 20;

/// Why bytes are not a keyring that we can open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Bytes are damaged, or were forged by somebody who has not got the sealing key.
    #[error("damaged: restore it from a backup")]
    Corrupt,
    /// Longer than any keyring.
    #[error("longer than any keyring ({limit} bytes)", limit = MAX_FILE)]
    Long,
    /// Written by a later keybroker.
    #[error("in the newer format {format}, this keybroker knows up to {known}", known = FORMAT)]
    Newer {
        /// Its format.
        format: u16,
    },
    /// Something else than a keyring.
    #[error("not a keyring")]
    NotKeyring,
    /// Sealed with another sealing key.
    #[error("sealed with another sealing key")]
    OtherKey,
    /// The end is missing.
    #[error("cut short: {length} bytes of at least {expected}")]
    Short {
        /// Its length, in bytes.
        length: usize,
        /// What it would be, as far as its beginning tells.
        expected: usize,
    },
}

/// A keyring file that is whole by its own account, not yet opened.
pub struct Sealed<'a> {
    /// What it says that it is for; believe it once [`Sealed::open`] succeeded.
    pub purpose: Purpose,
    id: Uuid,
    header: &'a [u8],
    salt: &'a [u8; SALT],
    check: &'a [u8; CHECK],
    ciphertext: &'a [u8],
    tag: aead::Tag,
}

impl<'a> Sealed<'a> {
    /// Takes a file apart. Total: any bytes give a keyring or an error.
    ///
    /// # Errors
    /// Any [`Error`] but [`Error::OtherKey`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let short = |expected| Error::Short {
            length: bytes.len(),
            expected,
        };
        if bytes
            .iter()
            .zip(MAGIC)
            .any(|(&found, known)| found != known)
        {
            return Err(Error::NotKeyring);
        }
        if bytes.len() > MAX_FILE {
            return Err(Error::Long);
        }
        let mut fields = Fields(bytes);
        let (Some(_), Some(format)) = (fields.take(MAGIC.len()), fields.u16()) else {
            return Err(short(SHORTEST));
        };
        if format > FORMAT {
            return Err(Error::Newer { format });
        }
        let (Some([purpose]), Some(id), Some(salt), Some(check), Some(length)) = (
            fields.array::<1>(),
            fields.array(),
            fields.array(),
            fields.array(),
            fields.u32(),
        ) else {
            return Err(short(SHORTEST));
        };
        let length = usize::try_from(length).map_err(|_| Error::Corrupt)?;
        let whole = SHORTEST.saturating_add(length);
        if bytes.len() < whole {
            return Err(short(whole));
        }
        let (Some(ciphertext), Some(tag), Some(checksum), [], Some(header), Some(summed)) = (
            fields.take(length),
            fields.array(),
            fields.array::<CHECKSUM>(),
            fields.0,
            bytes.get(..HEADER),
            bytes.get(..whole - CHECKSUM),
        ) else {
            return Err(Error::Corrupt);
        };
        if format != FORMAT || digest::sha256(summed) != *checksum {
            return Err(Error::Corrupt);
        }
        let purpose = match purpose {
            1 => Purpose::Dev,
            2 => Purpose::Production,
            _ => return Err(Error::Corrupt),
        };
        Ok(Self {
            purpose,
            id: Uuid::from_bytes(*id),
            header,
            salt,
            check,
            ciphertext,
            tag: aead::Tag(*tag),
        })
    }

    /// Decrypts and reads the contents.
    ///
    /// # Errors
    /// [`Error::OtherKey`], [`Error::Corrupt`].
    pub fn open(&self, sealing: &SealingKey) -> Result<Contents, Error> {
        let derived = Derived::new(sealing, self.salt, self.id);
        if !derived.check.matches(self.check) {
            return Err(Error::OtherKey);
        }
        let mut plaintext = Zeroizing::new(self.ciphertext.to_vec());
        derived
            .key
            .open_in_place(&ONE_NONCE, self.header, &mut plaintext, &self.tag)
            .map_err(|_| Error::Corrupt)?;
        let keys = parse_keys(&plaintext).ok_or(Error::Corrupt)?;
        Ok(Contents {
            id: self.id,
            purpose: self.purpose,
            keys,
        })
    }
}

impl Contents {
    /// The bytes of a file with these contents, under a new salt.
    ///
    /// # Errors
    /// [`random::Error`] when there is no salt to be had.
    pub fn seal(&self, sealing: &SealingKey) -> Result<Vec<u8>, random::Error> {
        let mut salt = [0; SALT];
        random::fill(&mut salt)?;
        let derived = Derived::new(sealing, &salt, self.id);
        let mut plaintext = Zeroizing::new(Vec::with_capacity(encoded_len(&self.keys)));
        encode(&self.keys, &mut plaintext);
        let length = u32::try_from(plaintext.len()).expect("within MAX_FILE by the limits on keys");

        let mut file = Vec::with_capacity(SHORTEST + plaintext.len());
        file.extend_from_slice(&MAGIC);
        file.extend_from_slice(&FORMAT.to_be_bytes());
        file.push(match self.purpose {
            Purpose::Dev => 1,
            Purpose::Production => 2,
        });
        file.extend_from_slice(self.id.as_bytes());
        file.extend_from_slice(&salt);
        file.extend_from_slice(derived.check.expose());
        file.extend_from_slice(&length.to_be_bytes());
        let tag = derived.key.seal_in_place(&ONE_NONCE, &file, &mut plaintext);
        file.extend_from_slice(&plaintext);
        file.extend_from_slice(&tag.0);
        file.extend_from_slice(&digest::sha256(&file));
        Ok(file)
    }
}

/// What is derived for one write, from the sealing key and the salt.
struct Derived {
    /// Tells whether a reader has the same sealing key.
    check: Secret<CHECK>,
    /// Seals the contents.
    key: aead::Key,
}

impl Derived {
    /// HKDF-SHA-512(sealing key, `salt`, label ‖ `id`), once for each label.
    fn new(sealing: &SealingKey, salt: &[u8; SALT], id: Uuid) -> Self {
        let extracted = kdf::extract(salt, sealing.secret());
        let info = |label: &[u8]| [label, id.as_bytes()].concat();
        Self {
            check: extracted.expand(&info(b"keybroker keyring 1 check")),
            key: aead::Key::new(&extracted.expand(&info(b"keybroker keyring 1 file"))),
        }
    }
}

const MAGIC: [u8; 8] = *b"KBKEYRNG";
const FORMAT: u16 = 1;
const SALT: usize = 32;
const CHECK: usize = 16;
const CHECKSUM: usize = 32;
/// The length of what stands before the ciphertext.
pub(super) const HEADER: usize = MAGIC.len() + 2 + 1 + 16 + SALT + CHECK + 4;
/// The length of everything but the ciphertext.
const SHORTEST: usize = HEADER + aead::TAG + CHECKSUM;
/// Sound because each write has a key of its own.
const ONE_NONCE: [u8; aead::NONCE] = [0; aead::NONCE];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::collections::BTreeMap;
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::*;
    use crate::kms::local::contents::Key;
    use crate::kms::local::contents::MAX_KEYS;
    use crate::kms::local::contents::State;
    use crate::kms::local::contents::Version;
    use crate::kms::local::contents::tests::sample;
    use crate::name::KeyId;

    #[test]
    fn contents_survive_sealing() {
        let contents = sample();
        let bytes = contents.seal(&sealing(7)).expect("sealed");
        let sealed = Sealed::parse(&bytes).expect("whole");
        let again = sealed.open(&sealing(7)).expect("opened");
        assert_eq!((again.id, again.purpose), (contents.id, contents.purpose));
        assert_eq!(flat(&again), flat(&contents));
    }

    #[test]
    fn each_write_has_its_own_salt() {
        let contents = sample();
        let one = contents.seal(&sealing(7)).expect("sealed");
        let two = contents.seal(&sealing(7)).expect("sealed");
        let salt = |bytes| *Sealed::parse(bytes).expect("whole").salt;
        assert_ne!(salt(&one), salt(&two));
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_an_error() {
        let bytes = sample().seal(&sealing(7)).expect("sealed");
        let open = |bytes: &[u8]| Sealed::parse(bytes)?.open(&sealing(7)).map(|_| ());
        assert_eq!(open(&bytes), Ok(()));
        for length in 0..bytes.len() {
            let cut = open(&bytes[..length]);
            assert!(matches!(cut, Err(Error::Short { .. })), "{length}: {cut:?}");
        }
        for place in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[place / 8] ^= 1 << (place % 8);
            let error = open(&bytes).expect_err("damaged");
            assert_ne!(error, Error::OtherKey, "bit {place}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert_eq!(open(&longer), Err(Error::Corrupt));
    }

    #[test]
    fn a_forged_header_with_a_right_checksum_does_not_open() {
        let mut bytes = sample().seal(&sealing(7)).expect("sealed");
        assert_eq!(bytes[10], 2, "the purpose");
        bytes[10] = 1;
        let summed = bytes.len() - CHECKSUM;
        let checksum = digest::sha256(&bytes[..summed]);
        bytes[summed..].copy_from_slice(&checksum);
        let sealed = Sealed::parse(&bytes).expect("whole by its own account");
        assert_eq!(sealed.purpose, Purpose::Dev);
        assert_eq!(sealed.open(&sealing(7)).err(), Some(Error::Corrupt));
    }

    #[test]
    fn another_sealing_key_is_called_that() {
        let bytes = sample().seal(&sealing(7)).expect("sealed");
        let sealed = Sealed::parse(&bytes).expect("whole");
        assert_eq!(sealed.open(&sealing(8)).err(), Some(Error::OtherKey));
    }

    #[test]
    fn the_largest_keyring_fits() {
        let version = |number| Version {
            number,
            created: Timestamp::UNIX_EPOCH,
            material: Arc::new(Secret::filled(|_| ())),
        };
        let full = Key {
            state: State::Enabled,
            primary: version(u32::MAX),
            earlier: (1..256).map(version).collect(),
        };
        let ids = (0..MAX_KEYS).map(|n| format!("{n:0>63}").parse().expect("a label"));
        let keys: BTreeMap<KeyId, Key> = ids.map(|id| (id, full.clone())).collect();
        assert_eq!(keys.len(), MAX_KEYS);
        assert!(SHORTEST + encoded_len(&keys) <= MAX_FILE);
    }

    proptest! {
        #[test]
        fn parsing_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            drop(Sealed::parse(&bytes));
            let framed = [&MAGIC[..], &FORMAT.to_be_bytes(), &bytes].concat();
            drop(Sealed::parse(&framed));
        }
    }

    fn flat(contents: &Contents) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&contents.keys, &mut bytes);
        bytes
    }

    fn sealing(seed: u8) -> SealingKey {
        SealingKey::new(Secret::filled(|key| key.fill(seed)))
    }
}
