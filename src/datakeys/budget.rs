//! What is left of a sealing key: messages and bytes, taken before use and never given back.
//! Every interleaving is tried in `tests/models`, which includes this file.

use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering;

/// Counts down from two limits; neither is passed under any interleaving.
pub(super) struct Budget {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Budget {
    pub(super) fn new(messages: u64, bytes: u64) -> Self {
        Self {
            messages: AtomicU64::new(messages),
            bytes: AtomicU64::new(bytes),
        }
    }

    /// Takes one message of `bytes`. False when either does not suffice; what was taken by then
    /// stays taken, which errs on the safe side.
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        take(&self.messages, 1) && take(&self.bytes, bytes)
    }
}

fn take(left: &AtomicU64, amount: u64) -> bool {
    // Relaxed: each counter guards itself alone.
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        left.checked_sub(amount)
    })
    .is_ok()
}
