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

    /// Takes as many of the messages with these `sizes` in bytes, from the first, as are left of
    /// both, and tells how many and what is left then; never none. Messages that are taken before
    /// the bytes turn out not to suffice for them stay taken, which errs on the safe side.
    pub(super) fn reserve(&self, sizes: &[u64]) -> Result<(usize, Left), Spent> {
        let (count, messages) = take(&self.messages, |left| {
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            let count = left.min(sizes.len());
            (count, u64::try_from(count).unwrap_or(u64::MAX))
        })
        .ok_or(Spent::Messages)?;
        let sizes = sizes.get(..count).unwrap_or_default();
        let (count, bytes) = take(&self.bytes, |left| fitting(sizes, left)).ok_or(Spent::Bytes)?;
        Ok((count, Left { messages, bytes }))
    }

    /// What is left now.
    pub(super) fn left(&self) -> Left {
        Left {
            messages: self.messages.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// Takes what `share` makes of what is left: how many messages, and how much for them. `None` when
/// that is no message.
fn take(left: &AtomicU64, share: impl Fn(u64) -> (usize, u64)) -> Option<(usize, u64)> {
    // Relaxed: each counter guards itself alone.
    let before = left
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            let (count, amount) = share(left);
            left.checked_sub(amount).filter(|_| count > 0)
        })
        .ok()?;
    let (count, amount) = share(before);
    Some((count, before.checked_sub(amount)?))
}

/// How many of `sizes`, from the first, come to at most `left`, and what they come to.
fn fitting(sizes: &[u64], left: u64) -> (usize, u64) {
    let mut sum: u64 = 0;
    for (count, size) in sizes.iter().enumerate() {
        match sum.checked_add(*size).filter(|sum| *sum <= left) {
            Some(larger) => sum = larger,
            None => return (count, sum),
        }
    }
    (sizes.len(), sum)
}
