//! Reads any bytes as a warm file, and in a second turn as entries behind a true first line; what
//! is read is written and read back as it was.
#![no_main]

use keybroker::datakeys::warm;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);

    let behind = [warm::encode(&[]).as_slice(), bytes].concat();
    read(&behind);
});

fn read(bytes: &[u8]) {
    match warm::parse(bytes) {
        Ok(recent) => {
            let again = warm::parse(&warm::encode(&recent));
            assert_eq!(again.as_ref(), Ok(&recent));
        }
        Err(flaw) => drop(flaw.to_string()),
    }
}
