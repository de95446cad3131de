//! Reads a tenants file.
#![no_main]

use std::path::Path;

use keybroker::directory::Directory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = Directory::parse(text, Path::new("tenants.toml")) {
        drop(error.to_string());
    }
});
