//! Which slots of the arena are taken: a bit for each, in words that threads change without a lock.

use crate::sync::atomic::AtomicBool;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering;
use crate::sync::atomic::fence;

/// Slots, each of which has one holder at most.
pub(crate) struct Slots {
    words: Box<[AtomicU64]>,
    count: usize,
    /// No slot was free when last looked for, and none was released since: a hint, so that secrets
    /// of a moment don't search a full arena each.
    full: AtomicBool,
}

impl Slots {
    /// `count` free slots.
    pub(crate) fn new(count: usize) -> Self {
        let word = |first: usize| match count - first {
            // Bits without a slot are taken for ever.
            rest @ ..WORD => AtomicU64::new(u64::MAX << rest),
            _ => AtomicU64::new(0),
        };
        Self {
            words: (0..count).step_by(WORD).map(word).collect(),
            count,
            full: AtomicBool::new(false),
        }
    }

    /// A slot that nobody holds, if one is found, which is then the caller's until
    /// [`Slots::release`]. Looks first near the slot `near`: threads that start apart don't get in
    /// each other's way.
    ///
    /// All that its last holder did has happened before.
    pub(crate) fn take(&self, near: usize) -> Option<usize> {
        if self.full.load(Ordering::Relaxed) {
            return None;
        }
        if let Some(slot) = self.search(near) {
            return Some(slot);
        }
        self.full.store(true, Ordering::Relaxed);
        // Against a release meanwhile: either it sees the hint and takes it back, or its slot is
        // seen here.
        fence(Ordering::SeqCst);
        let slot = self.search(near)?;
        self.full.store(false, Ordering::Relaxed);
        Some(slot)
    }

    /// Ends the hold on `slot`, which the caller must have.
    pub(crate) fn release(&self, slot: usize) {
        if let Some(word) = self.words.get(slot / WORD) {
            word.fetch_and(!(1 << (slot % WORD)), Ordering::Release);
        }
        fence(Ordering::SeqCst);
        if self.full.load(Ordering::Relaxed) {
            self.full.store(false, Ordering::Relaxed);
        }
    }

    fn search(&self, near: usize) -> Option<usize> {
        let first = (near / WORD).checked_rem(self.words.len())?;
        let (front, back) = self.words.split_at(first);
        let mut words = (first..).zip(back).chain((0..).zip(front));
        words.find_map(|(index, word)| {
            let bit = take_bit(word)?;
            Some(index * WORD + bit)
        })
    }

    /// How many are held. Others may be taking and releasing meanwhile.
    pub(crate) fn used(&self) -> usize {
        let free: usize = self.words.iter().map(free).sum();
        self.count - free
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

fn take_bit(word: &AtomicU64) -> Option<usize> {
    let mut seen = word.load(Ordering::Relaxed);
    while seen != u64::MAX {
        let lowest = !seen & seen.wrapping_add(1);
        // Acquire: what the last holder wrote, the wiping above all, comes before what we write.
        seen = word.fetch_or(lowest, Ordering::Acquire);
        if seen & lowest == 0 {
            return usize::try_from(lowest.trailing_zeros()).ok();
        }
    }
    None
}

fn free(word: &AtomicU64) -> usize {
    let zeros = word.load(Ordering::Relaxed).count_zeros();
    usize::try_from(zeros).unwrap_or(WORD)
}

/// Slots in a word.
const WORD: usize = 64;
