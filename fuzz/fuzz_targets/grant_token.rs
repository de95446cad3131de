//! Reads a grant token, and what the MAC of one may vouch for.
#![no_main]

use keybroker::crypto::Secret;
use keybroker::grants::Claims;
use keybroker::grants::TokenKey;
use keybroker::grants::TokenKeys;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let keys = TokenKeys::new(TokenKey::new(Secret::filled(|cell| cell.fill(1))), None);
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(keys.open(text).is_none(), "a MAC was found");
    }
    if let Some(claims) = Claims::read(bytes) {
        let mut again = Vec::new();
        claims.write(&mut again);
        assert_eq!(
            again, bytes,
            "claims that are read are written as they were"
        );
        let token = keys.seal(&claims).into_text();
        assert_eq!(keys.open(&token), Some(claims));
    }
});
