//! Bytes that must not be printed, copied or left behind.

use subtle::ConstantTimeEq;

use crate::crypto::random;
use crate::mem::Cell;

/// `N` secret bytes in a cell of their own, in locked memory where there is room ([`crate::mem`]),
/// filled in place and wiped on drop.
///
/// Without `Debug`, `Clone`, `PartialEq`, `Serialize` and `Deref` on purpose: the bytes leave
/// through [`Secret::expose`] alone.
pub struct Secret<const N: usize>(Cell<N>);

impl<const N: usize> Secret<N> {
    /// A secret that `fill` writes in place. It starts as zeros.
    pub fn filled(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut cell = Cell::zeroed();
        fill(cell.bytes_mut());
        Self(cell)
    }

    /// A secret of random bytes from the operating system.
    ///
    /// # Errors
    /// The generator's own failure.
    pub fn random() -> Result<Self, random::Error> {
        let mut cell = Cell::zeroed();
        random::fill(cell.bytes_mut())?;
        Ok(Self(cell))
    }

    /// A copy of `bytes`, `None` unless there are exactly `N`. The caller wipes the original.
    pub fn copied(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == N).then(|| Self::filled(|cell| cell.copy_from_slice(bytes)))
    }

    /// The bytes. Every use of a secret goes through this name.
    pub fn expose(&self) -> &[u8; N] {
        self.0.bytes()
    }

    /// Equality in constant time.
    pub fn matches(&self, other: &[u8; N]) -> bool {
        self.expose().ct_eq(other).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_takes_exactly_its_length() {
        assert!(Secret::<4>::copied(&[1, 2, 3]).is_none());
        assert!(Secret::<4>::copied(&[1, 2, 3, 4, 5]).is_none());
        let secret = Secret::<4>::copied(&[1, 2, 3, 4]).expect("four bytes");
        assert!(secret.matches(&[1, 2, 3, 4]));
        assert!(!secret.matches(&[1, 2, 3, 5]));
    }

    #[test]
    fn random_secrets_differ() {
        let one = Secret::<32>::random().expect("randomness");
        let two = Secret::<32>::random().expect("randomness");
        assert!(!one.matches(two.expose()));
    }
}
