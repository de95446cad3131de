//! How much a test does: enough to fail in the usual run, more in `tests/run long`.

use std::env;

/// `short`, or `long` where the long forms were asked for.
pub fn scaled<T>(short: T, long: T) -> T {
    match env::var_os("KEYBROKER_TEST_LONG") {
        None => short,
        Some(_) => long,
    }
}
