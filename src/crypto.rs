//! Cryptographic primitives behind our own types: secrets, AEAD, MACs, key derivation, randomness.
//!
//! Knows nothing of messages or keys' owners. The crates behind it are named in one file each.

pub mod aead;
pub mod digest;
pub mod kdf;
pub mod mac;
pub mod plaintext;
pub mod random;
pub mod secret;
pub mod signature;

pub use plaintext::Plaintext;
pub use secret::Secret;
