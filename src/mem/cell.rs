//! Where the bytes of a secret lie.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use zeroize::Zeroize;

use crate::mem;
use crate::mem::arena::SLOT;
use crate::mem::arena::Slot;

/// `N` bytes in a place of their own, which does not move and is wiped when the cell is dropped: a
/// slot of the arena if they fit one and one is free, ordinary memory otherwise.
///
/// Without `Debug` and `Clone` on purpose.
pub struct Cell<const N: usize>(Place<N>);

enum Place<const N: usize> {
    Arena(Slot),
    Outside(Box<[u8; N]>),
}

impl<const N: usize> Cell<N> {
    /// A cell of zeros.
    pub fn zeroed() -> Self {
        let slot = match N <= SLOT {
            true => mem::arena().and_then(Slot::take),
            false => None,
        };
        Self::in_place(slot)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; N] {
        match &self.0 {
            Place::Arena(slot) => slot.bytes().first_chunk().expect("N is at most a slot"),
            Place::Outside(bytes) => bytes,
        }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8; N] {
        match &mut self.0 {
            Place::Arena(slot) => slot
                .bytes_mut()
                .first_chunk_mut()
                .expect("N is at most a slot"),
            Place::Outside(bytes) => bytes,
        }
    }

    fn in_place(slot: Option<Slot>) -> Self {
        Self(match slot {
            Some(slot) => Place::Arena(slot),
            None => {
                OUTSIDE.fetch_add(1, Ordering::Relaxed);
                Place::Outside(Box::new([0; N]))
            }
        })
    }
}

impl<const N: usize> Drop for Cell<N> {
    fn drop(&mut self) {
        match &mut self.0 {
            // Wiped by the slot itself.
            Place::Arena(_) => {}
            Place::Outside(bytes) => {
                // The allocator wipes as well, where it is ours.
                bytes.zeroize();
                OUTSIDE.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// How many cells lie outside of the arena.
pub(super) fn outside() -> usize {
    OUTSIDE.load(Ordering::Relaxed)
}

static OUTSIDE: AtomicUsize = AtomicUsize::new(0);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Config;
    use crate::mem::arena::Arena;

    #[test]
    fn a_cell_holds_what_was_written_in_either_place() {
        let (arena, _) = Arena::make(&Config::default(), 4096);
        let arena: &'static Arena = Box::leak(Box::new(arena.unwrap()));
        let mut inside = Cell::<32>::in_place(Slot::take(arena));
        let mut outside = Cell::<32>::in_place(None);
        for cell in [&mut inside, &mut outside] {
            assert_eq!(cell.bytes(), &[0; 32]);
            cell.bytes_mut().fill(7);
            assert_eq!(cell.bytes(), &[7; 32]);
        }
        assert_eq!(arena.slots().used(), 1);
        assert!(mem::status().outside > 0);
        drop(inside);
        assert_eq!(arena.slots().used(), 0);
    }

    #[test]
    fn a_cell_longer_than_a_slot_is_ordinary_memory() {
        let mut cell = Cell::<100>::zeroed();
        cell.bytes_mut().fill(1);
        assert_eq!(cell.bytes(), &[1; 100]);
    }
}
