//! Signatures for records that others check: Ed25519 (RFC 8032) of our own, and those that AWS KMS
//! makes.

mod public;

use std::fmt;

use aws_lc_rs::signature::Ed25519KeyPair;
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

pub use public::Algorithm;
pub use public::PublicKey;

/// Signs.
pub struct SigningKey(Ed25519KeyPair);

/// What a [`SigningKey`] makes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature([u8; SIGNATURE]);

/// The length of a signature, in bytes.
pub const SIGNATURE: usize = 64;

/// The bytes are no key of a kind that is known here, and no signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no key of Ed25519, or of ECDSA over P-256 or P-384")]
pub struct Malformed;

/// The operating system gave no randomness for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no randomness for a signing key")]
pub struct Unrandom;

impl SigningKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`Unrandom`].
    pub fn random() -> Result<Self, Unrandom> {
        Ed25519KeyPair::generate().map(Self).map_err(|_| Unrandom)
    }

    /// Reads a private key in PKCS#8, as PEM: what `openssl genpkey -algorithm ed25519` makes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, Malformed> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| Malformed)?;
        Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der())
            .map(Self)
            .map_err(|_| Malformed)
    }

    /// The private key as PEM, for a file that its owner alone can read.
    ///
    /// # Errors
    /// [`Malformed`] when it has no such form, which no key of this type is known for.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, Malformed> {
        let der = self.0.to_pkcs8v1().map_err(|_| Malformed)?;
        let base64 = Zeroizing::new(BASE64_STANDARD.encode(der.as_ref()));
        // 48 bytes are one line.
        let begin = "-----BEGIN PRIVATE KEY-----\n";
        let end = "\n-----END PRIVATE KEY-----\n";
        Ok(Zeroizing::new([begin, &base64, end].concat()))
    }

    /// `Ed25519(key, message)`.
    pub fn sign(&self, message: &[u8]) -> Signature {
        let signature = self.0.sign(message);
        let bytes = signature.as_ref().try_into();
        Signature(bytes.expect("an Ed25519 signature has 64 bytes"))
    }

    /// The half of it that others check with.
    pub fn public(&self) -> PublicKey {
        let bytes = self.0.public_key().as_ref().try_into();
        PublicKey::ed25519(bytes.expect("an Ed25519 public key has 32 bytes"))
    }
}

impl Signature {
    /// Reads what [`Signature`]'s `Display` writes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(text: &[u8]) -> Result<Self, Malformed> {
        decode(text).map(Self)
    }
}

impl AsRef<[u8]> for Signature {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        BASE64_URL_SAFE_NO_PAD.encode(self.0).fmt(f)
    }
}

/// The `N` bytes that `text` is in base64url.
fn decode<const N: usize>(text: &[u8]) -> Result<[u8; N], Malformed> {
    let mut bytes = [0; N];
    match BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
        Ok(length) if length == N => Ok(bytes),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_as_it_was_written() {
        let key = SigningKey::random().unwrap();
        let read = SigningKey::from_pem(key.to_pem().unwrap().as_bytes()).unwrap();
        assert_eq!(read.public(), key.public());
        let signature = read.sign(b"message");
        assert!(key.public().verifies(b"message", signature.as_ref()));
        assert!(!key.public().verifies(b"massage", signature.as_ref()));
        let other = SigningKey::random().unwrap().public();
        assert!(!other.verifies(b"message", signature.as_ref()));
        let text = signature.to_string();
        assert_eq!(Signature::parse(text.as_bytes()), Ok(signature));
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
    }

    #[test]
    fn keys_of_openssl_are_read() {
        let private = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
            -----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\n\
            MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
            -----END PUBLIC KEY-----\n";
        let private = SigningKey::from_pem(private.as_bytes()).unwrap();
        let public = PublicKey::from_pem(public.as_bytes()).unwrap();
        assert_eq!(private.public(), public, "test 1 of RFC 8032, section 7.1");
        assert_eq!(PublicKey::from_pem(b"no key"), Err(Malformed));
        assert!(SigningKey::from_pem(b"").is_err());
    }
}
