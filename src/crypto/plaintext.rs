//! Plaintexts, which may be long.

use std::ops::Deref;
use std::ops::DerefMut;

/// Bytes that are wiped when they are dropped: a `memset` where `zeroize` writes byte by byte,
/// which for 16 KiB is as long as to decrypt them.
///
/// Without `Debug` and `Clone` on purpose.
#[derive(Default)]
pub struct Plaintext(Vec<u8>);

impl Plaintext {
    /// None yet, with room for `capacity` bytes. Growing beyond that leaves copies behind, unless
    /// the allocator wipes them.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }
}

impl From<Vec<u8>> for Plaintext {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for Plaintext {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Plaintext {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl AsRef<[u8]> for Plaintext {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Plaintext {
    fn drop(&mut self) {
        self.0.clear();
        // To the last byte that it ever held.
        self.0.resize(self.0.capacity(), 0);
        // Nobody reads the zeros, so the compiler would leave them out. This does, for all it knows.
        zeroize::optimization_barrier(self.0.as_slice());
    }
}
