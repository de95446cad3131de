//! Plain hashing: SHA-256, for what is bound or compared and not secret.

use sha2::Digest;
use sha2::Sha256;

/// `SHA-256(bytes)` (FIPS 180-4).
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// `SHA-256(parts[0] ‖ parts[1] ‖ …)`, the parts not set apart: all but one are of a length that
/// is known.
pub fn sha256_of<const N: usize>(parts: [&[u8]; N]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standards_example_has_its_digest() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hex: String = sha256(b"abc").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, expected);
        assert_eq!(sha256_of([b"a", b"bc"]), sha256(b"abc"));
    }
}
