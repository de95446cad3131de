//! Reads a client certificate, and the SPIFFE id that one may hold.
#![no_main]

use keybroker::identity::Leaf;
use keybroker::identity::SpiffeId;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    drop(Leaf::parse(bytes));
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(id) = text.parse::<SpiffeId>()
    {
        assert_eq!(
            id.to_string(),
            text,
            "an id that is read is written as it was"
        );
    }
});
