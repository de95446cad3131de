//! What is left of a sealing key: messages and bytes, taken before use and never given back.
//! Every interleaving is tried in `tests/models`, which includes this file.

use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering;

/// Counts down from two limits; neither is passed under any interleaving.
pub(super) struct Budget {
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// What a budget still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

/// Which limit does not suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spent {
    Bytes,
    Messages,
}

impl Budget {
    pub(super) fn new(whole: Left) -> Self {
        Self {
            messages: AtomicU64::new(whole.messages),
            bytes: AtomicU64::new(whole.bytes),
        }
    }

    /// Takes one message of `bytes`, and tells what is left. When either does not suffice, what
    /// was taken by then stays taken, which errs on the safe side.
    pub(super) fn reserve(&self, bytes: u64) -> Result<Left, Spent> {
        Ok(Left {
            messages: take(&self.messages, 1).ok_or(Spent::Messages)?,
            bytes: take(&self.bytes, bytes).ok_or(Spent::Bytes)?,
        })
    }

    /// What is left now.
    pub(super) fn left(&self) -> Left {
        Left {
            messages: self.messages.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

fn take(left: &AtomicU64, amount: u64) -> Option<u64> {
    // Relaxed: each counter guards itself alone.
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        left.checked_sub(amount)
    })
    .ok()?
    .checked_sub(amount)
}
