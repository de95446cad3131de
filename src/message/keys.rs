//! The keys of one message, derived from its data key and its id.

use crate::crypto::Secret;
use crate::crypto::aead;
use crate::crypto::kdf;

/// What a message is sealed with, and what commits to it.
pub(super) struct Keys {
    /// Seals the header and the frames of this one message.
    pub(super) content: aead::Key,
    /// Stands in the header: only one data key leads to it.
    pub(super) commitment: Secret<COMMITMENT>,
}

impl Keys {
    /// ```text
    /// PRK        = HKDF-Extract-SHA-512(salt = message id, IKM = data key)
    /// content    = HKDF-Expand(PRK, 04 78 ‖ "DERIVEKEY", 32)
    /// commitment = HKDF-Expand(PRK, "COMMITKEY", 32)
    /// ```
    /// (message format, section 3).
    pub(super) fn derive(data_key: &Secret<DATA_KEY>, message_id: &[u8; MESSAGE_ID]) -> Self {
        let prk = kdf::extract(message_id, data_key);
        Self::new([prk.expand(CONTENT), prk.expand(COMMIT)])
    }

    /// As [`Keys::derive`], of several messages; fastest of [`kdf::SIDE_BY_SIDE`].
    pub(super) fn derive_each(
        data_key: &Secret<DATA_KEY>,
        message_ids: &[[u8; MESSAGE_ID]],
    ) -> impl Iterator<Item = Self> {
        let derived = kdf::derive(message_ids, data_key, &[CONTENT, COMMIT]);
        derived.into_iter().map(Self::new)
    }

    fn new([content, commitment]: [Secret<32>; 2]) -> Self {
        Self {
            content: aead::Key::new(&content),
            commitment,
        }
    }
}

const CONTENT: &[u8] = b"\x04\x78DERIVEKEY";
const COMMIT: &[u8] = b"COMMITKEY";
/// The length of a data key, in bytes.
pub(super) const DATA_KEY: usize = 32;
/// The length of a message id, in bytes.
pub(super) const MESSAGE_ID: usize = 32;
/// The length of a commitment, in bytes.
pub(super) const COMMITMENT: usize = 32;
