//! The ciphertext format: AWS Encryption SDK message v2, suite 0x0478.
//!
//! Bytes in, bytes out, under a data key that somebody else supplies. Knows nothing of tenants,
//! policies or KMS.

pub mod context;

pub use context::EncryptionContext;

/// A data key as it stands in a message header, wrapped by a KMS key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EncryptedDataKey {
    /// Whose wrapping: `aws-kms` or `keybroker-local`.
    pub provider_id: String,
    /// Which key wrapped it: the ARN that KMS returned, or the local key's id and version.
    pub provider_info: String,
    /// The wrapped key, opaque, at most 6,144 bytes.
    pub ciphertext: Vec<u8>,
}
