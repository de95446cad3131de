//! Keys that sign in a KMS and never leave it.

use async_trait::async_trait;

use crate::crypto::signature::PublicKey;
use crate::kms::Arn;
use crate::kms::Error;

/// A key of a key management service that signs.
///
/// Calls are cancelled by dropping them; each ends by itself within the implementation's own
/// timeouts. No budget or breaker of the keys that wrap data keys counts them: they are few, the
/// service counts them apart, and whether this key answers says nothing of the others.
#[async_trait]
pub trait Signer: Send + Sync + 'static {
    /// Which key it is.
    fn key(&self) -> &Arn;

    /// What its signatures are checked with.
    ///
    /// # Errors
    /// The state of the key or of the service; [`Error::NotFound`] for a key that does not sign, or
    /// of a kind that [`PublicKey`] does not know.
    async fn public_key(&self) -> Result<PublicKey, Error>;

    /// Signs `message`, of 4,096 bytes at most, as keys like `public` do, which must be the key's
    /// own half.
    ///
    /// # Errors
    /// The state of the key or of the service; [`Error::Invalid`] for an answer that `public` does
    /// not take for a signature.
    async fn sign(&self, public: &PublicKey, message: &[u8]) -> Result<Vec<u8>, Error>;
}
