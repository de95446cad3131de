//! The identity of a cache entry: a hash over fixed-length parts, so that two entries are one
//! exactly when all their parts are.

use crate::crypto::digest::sha256;
use crate::directory::Key;
use crate::message::EncryptedDataKey;

/// `SHA-256(H(tenant) ‖ direction ‖ suite ‖ H(key) ‖ u64 generation ‖ H(context) ‖ wrapped)`, where
/// `wrapped` is `SHA-256(H(provider) ‖ H(provider info) ‖ H(ciphertext))`, or zeros to seal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id([u8; 32]);

impl Id {
    /// The entry that seals under `key` with the serialized context `pairs`.
    pub(super) fn sealing(key: &Key, pairs: &[u8]) -> Self {
        Self::new(key, SEALING, pairs, [0; 32])
    }

    /// The entry that opens what `wrapped` is the data key of.
    pub(super) fn opening(key: &Key, pairs: &[u8], wrapped: &EncryptedDataKey) -> Self {
        let parts = [
            sha256(wrapped.provider_id.as_bytes()),
            sha256(wrapped.provider_info.as_bytes()),
            sha256(&wrapped.ciphertext),
        ];
        Self::new(key, OPENING, pairs, sha256(parts.as_flattened()))
    }

    fn new(key: &Key, direction: u8, pairs: &[u8], wrapped: [u8; 32]) -> Self {
        let [suite_high, suite_low] = SUITE;
        let mut parts = [0; 139];
        let mut rest = parts.as_mut_slice();
        for part in [
            sha256(key.name().tenant.as_str().as_bytes()).as_slice(),
            &[direction, suite_high, suite_low],
            &sha256(key.name().key.as_str().as_bytes()),
            &key.generation().to_be_bytes(),
            &sha256(pairs),
            &wrapped,
        ] {
            let (place, after) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = after;
        }
        debug_assert!(rest.is_empty(), "every byte is a part's");
        Self(sha256(&parts))
    }
}

#[cfg(test)]
impl Id {
    /// One that is none of a real entry.
    pub(super) fn any() -> Self {
        Self([0; 32])
    }
}

const SEALING: u8 = 1;
const OPENING: u8 = 2;
/// The one suite that is written and read.
const SUITE: [u8; 2] = [0x04, 0x78];
