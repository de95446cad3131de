//! Keys that signatures are checked with: Ed25519 (RFC 8032), and ECDSA (FIPS 186-5) over P-256 and
//! P-384, as AWS KMS signs.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1;
use aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1;
use aws_lc_rs::signature::ED25519;
use aws_lc_rs::signature::UnparsedPublicKey;
use aws_lc_rs::signature::VerificationAlgorithm;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;

use crate::crypto::digest::sha256;
use crate::crypto::signature::Malformed;
use crate::crypto::signature::decode;

/// Tells whether a key has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(Point);

/// The key itself, as its algorithm writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    Ed25519([u8; 32]),
    /// Uncompressed, as those of P-384 are.
    P256([u8; 65]),
    P384([u8; 97]),
}

/// How a key signs: with the one algorithm that it has here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA over P-256 with SHA-256; signatures are in DER.
    EcdsaSha256,
    /// ECDSA over P-384 with SHA-384; signatures are in DER.
    EcdsaSha384,
    /// Ed25519; signatures have 64 bytes.
    Ed25519,
}

impl Algorithm {
    /// AWS KMS's name for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::EcdsaSha256 => "ECDSA_SHA_256",
            Self::EcdsaSha384 => "ECDSA_SHA_384",
            Self::Ed25519 => "ED25519_SHA_512",
        }
    }
}

impl PublicKey {
    /// An Ed25519 key.
    pub(super) fn ed25519(key: [u8; 32]) -> Self {
        Self(Point::Ed25519(key))
    }

    /// Reads a SubjectPublicKeyInfo as PEM: what `openssl pkey -pubout` makes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, Malformed> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| Malformed)?;
        Self::from_der(der.as_ref())
    }

    /// Reads a SubjectPublicKeyInfo (RFC 5280, section 4.1) as DER.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn from_der(der: &[u8]) -> Result<Self, Malformed> {
        let [ed25519, p256, p384] = [&ED25519_SPKI[..], &P256_SPKI, &P384_SPKI]
            .map(|begin| der.strip_prefix(begin).unwrap_or_default());
        let ed25519 = ed25519.try_into().map(Point::Ed25519);
        let p256 = || p256.try_into().map(Point::P256);
        let p384 = || p384.try_into().map(Point::P384);
        let point = ed25519.or_else(|_| p256()).or_else(|_| p384());
        point.map(Self).map_err(|_| Malformed)
    }

    /// The key as [`PublicKey::from_pem`] reads it.
    pub fn to_pem(&self) -> String {
        let begin: &[u8] = match self.0 {
            Point::Ed25519(_) => &ED25519_SPKI,
            Point::P256(_) => &P256_SPKI,
            Point::P384(_) => &P384_SPKI,
        };
        let base64 = BASE64_STANDARD.encode([begin, self.bytes()].concat());
        let lines = base64.as_bytes().chunks(LINE);
        let lines = lines.map(|line| String::from_utf8_lossy(line) + "\n");
        let body: String = lines.collect();
        format!("-----BEGIN PUBLIC KEY-----\n{body}-----END PUBLIC KEY-----\n")
    }

    /// A name for people: the key's SHA-256, as ssh-keygen writes it.
    pub fn id(&self) -> String {
        let digest = sha256(self.bytes());
        format!("SHA256:{}", BASE64_URL_SAFE_NO_PAD.encode(digest))
    }

    /// How it signs.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Point::Ed25519(_) => Algorithm::Ed25519,
            Point::P256(_) => Algorithm::EcdsaSha256,
            Point::P384(_) => Algorithm::EcdsaSha384,
        }
    }

    /// Whether `signature` is this key's, over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match self.algorithm() {
            Algorithm::EcdsaSha256 => &ECDSA_P256_SHA256_ASN1,
            Algorithm::EcdsaSha384 => &ECDSA_P384_SHA384_ASN1,
            Algorithm::Ed25519 => &ED25519,
        };
        let key = UnparsedPublicKey::new(algorithm, self.bytes());
        key.verify(message, signature).is_ok()
    }

    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Point::Ed25519(key) => key,
            Point::P256(key) => key,
            Point::P384(key) => key,
        }
    }
}

/// The key in base64url, whose length says which it is.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        BASE64_URL_SAFE_NO_PAD.encode(self.bytes()).fmt(f)
    }
}

impl FromStr for PublicKey {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let text = text.as_bytes();
        let ed25519 = decode(text).map(Point::Ed25519);
        let p256 = || decode(text).map(Point::P256);
        let p384 = || decode(text).map(Point::P384);
        let point = ed25519.or_else(|_| p256()).or_else(|_| p384());
        point.map(Self)
    }
}

/// What stands before the key in the DER of a SubjectPublicKeyInfo (RFC 8410, section 4).
const ED25519_SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// Likewise (RFC 5480, section 2).
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const P384_SPKI: [u8; 23] = [
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
    0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
];
/// Characters in a line of PEM (RFC 7468, section 2).
const LINE: usize = 64;

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
    use aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1_SIGNING;
    use aws_lc_rs::signature::EcdsaKeyPair;
    use aws_lc_rs::signature::KeyPair as _;

    use super::*;

    #[test]
    fn keys_of_every_kind_are_read_back_as_they_were_written_and_verify() {
        for (signing, spki, algorithm) in [
            (
                &ECDSA_P256_SHA256_ASN1_SIGNING,
                &P256_SPKI[..],
                Algorithm::EcdsaSha256,
            ),
            (
                &ECDSA_P384_SHA384_ASN1_SIGNING,
                &P384_SPKI[..],
                Algorithm::EcdsaSha384,
            ),
        ] {
            let pair = EcdsaKeyPair::generate(signing).unwrap();
            let der = [spki, pair.public_key().as_ref()].concat();
            let key = PublicKey::from_der(&der).unwrap();
            assert_eq!(key.algorithm(), algorithm);
            assert_eq!(PublicKey::from_pem(key.to_pem().as_bytes()), Ok(key));
            assert_eq!(key.to_string().parse(), Ok(key));
            let signature = pair.sign(&SystemRandom::new(), b"message").unwrap();
            assert!(key.verifies(b"message", signature.as_ref()));
            assert!(!key.verifies(b"massage", signature.as_ref()));
            assert!(!key.verifies(b"message", &[0; 64]));
            assert_eq!(PublicKey::from_der(&der[1..]), Err(Malformed));
            assert_eq!(
                PublicKey::from_der(&[&der, &b"x"[..]].concat()),
                Err(Malformed)
            );
        }
    }

    #[test]
    fn a_key_of_openssl_is_read_and_written() {
        // openssl ecparam -name prime256v1 -genkey -noout | openssl ec -pubout
        let pem = "-----BEGIN PUBLIC KEY-----\n\
            MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEn+dCkDVjOLkx5h9VWDFcHrXZYQg7\n\
            LQbKTzqWuBqc3sfkO0LZkCOJyuy/94u9ru+E0/pGs4LkIpzUZEnnO5qxtg==\n\
            -----END PUBLIC KEY-----\n";
        let key = PublicKey::from_pem(pem.as_bytes()).unwrap();
        assert_eq!(key.algorithm(), Algorithm::EcdsaSha256);
        assert_eq!(key.to_pem(), pem);
    }
}
