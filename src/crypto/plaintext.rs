//! Plaintexts, which may be long.

use std::ops::Deref;
use std::ops::DerefMut;

/// Bytes that are wiped when they are dropped.
///
/// Without `Debug` and `Clone` on purpose.
#[derive(Default)]
pub struct Plaintext(Vec<u8>);

impl Plaintext {
    /// None yet, with room for `capacity` bytes. Growing beyond that leaves copies behind, unless
    /// [`Plaintext::reserve`] made the room or the allocator wipes them.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Makes room for `more` bytes. A buffer that is outgrown is wiped.
    pub fn reserve(&mut self, more: usize) {
        let needed = self.len().saturating_add(more);
        let capacity = self.capacity();
        if needed > capacity {
            // Twice as large at least, so that what grows step by step is rarely copied.
            let mut grown = Self::with_capacity(needed.max(capacity.saturating_mul(2)));
            grown.extend_from_slice(self);
            *self = grown;
        }
    }
}

/// Writes zeros over `bytes`, which no optimization leaves out: a `memset` where `zeroize` writes
/// byte by byte, which for 16 KiB is as long as to decrypt them.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // Nobody reads the zeros, so the compiler would leave them out. This does, for all it knows.
    zeroize::optimization_barrier(bytes);
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
        // To the last byte that it ever held.
        self.0.resize(self.0.capacity(), 0);
        wipe(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_keeps_its_bytes_and_rarely_moves() {
        let mut plaintext = Plaintext::default();
        let mut moves = 0;
        for n in 0..=255 {
            let before = plaintext.capacity();
            plaintext.reserve(1);
            moves += u32::from(plaintext.capacity() != before);
            plaintext.push(n);
        }
        assert!(plaintext.iter().copied().eq(0..=255));
        assert_eq!(moves, 9);
    }

    #[test]
    fn what_is_wiped_is_all_zeros() {
        let mut bytes = [7; 100];
        wipe(&mut bytes[10..]);
        assert_eq!(bytes[..10], [7; 10]);
        assert_eq!(bytes[10..], [0; 90]);
    }
}
