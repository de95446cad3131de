//! HMAC-SHA-256 (RFC 2104), for what leaves us and comes back.

use hmac::Hmac;
use hmac::KeyInit;
use hmac::Mac;
use sha2::Sha256;

use crate::crypto::Secret;

/// The length of a MAC, in bytes.
pub const MAC: usize = 32;

/// `HMAC-SHA-256(key, parts[0] ‖ parts[1] ‖ …)`. Where one part ends must follow from its content.
pub fn hmac_sha256(key: &Secret<32>, parts: &[&[u8]]) -> [u8; MAC] {
    fed(key, parts).finalize().into_bytes().into()
}

/// Whether `mac` is [`hmac_sha256`] of the same, in constant time.
pub fn is_hmac_sha256(key: &Secret<32>, parts: &[&[u8]], mac: &[u8; MAC]) -> bool {
    fed(key, parts).verify_slice(mac).is_ok()
}

fn fed(key: &Secret<32>, parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes any key");
    parts.iter().for_each(|part| hmac.update(part));
    hmac
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test case 6 has a longer key; case 2's is shorter, hence padded here: zeros at a
    /// key's end change nothing (RFC 2104, section 2).
    #[test]
    fn the_standards_example_has_its_mac() {
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let key = Secret::filled(|cell| *cell = key);
        let parts: [&[u8]; 2] = [b"what do ya want ", b"for nothing?"];
        let mac = hmac_sha256(&key, &parts);
        let hex: String = mac.iter().map(|b| format!("{b:02x}")).collect();
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex, expected);
        assert!(is_hmac_sha256(&key, &parts, &mac));
        let mut other = mac;
        other[31] ^= 1;
        assert!(!is_hmac_sha256(&key, &parts, &other));
    }
}
