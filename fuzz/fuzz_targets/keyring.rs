//! Reads a keyring file, and the keys inside it.
#![no_main]

use keybroker::kms::local::contents::parse_keys;
use keybroker::kms::local::file::Sealed;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    drop(Sealed::parse(bytes));
    drop(parse_keys(bytes));
});
