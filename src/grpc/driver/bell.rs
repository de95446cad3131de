//! Wakes a connection's task, and knows when it need not: while the task polls, a wake-up is
//! noted, and the task looks for it before it rests.
//!
//! Every interleaving is tried in `tests/models`, which includes this file.

use std::task::Waker;

use crate::sync::Mutex;
use crate::sync::atomic::AtomicUsize;
use crate::sync::atomic::Ordering;
use crate::sync::lock;

/// What all that a connection waits for rings.
pub(super) struct Bell {
    state: AtomicUsize,
    task: Mutex<Waker>,
}

impl Bell {
    /// A bell that has rung already, so that a first poll is never waited for.
    pub(super) fn new() -> Self {
        Self {
            state: AtomicUsize::new(RUNG),
            task: Mutex::new(Waker::noop().clone()),
        }
    }

    /// The task begins to poll: what rang so far is answered by this poll, and what rings from now
    /// on while it rests wakes `task`.
    pub(super) fn begin(&self, task: &Waker) {
        lock(&self.task).clone_from(task);
        self.state.swap(POLLING, Ordering::AcqRel);
    }

    /// Whether it rang since [`Bell::begin`], or since this was last asked.
    pub(super) fn rang(&self) -> bool {
        self.leave(RUNG, POLLING)
    }

    /// The task goes to rest. `false` when it must not, because it rang: nobody will wake it.
    #[must_use]
    pub(super) fn rest(&self) -> bool {
        self.leave(POLLING, RESTING)
    }

    /// Something is ready.
    pub(super) fn ring(&self) {
        // Always a swap, never a look first: what the ringer did has to be seen by whoever takes
        // the ring.
        if self.state.swap(RUNG, Ordering::AcqRel) == RESTING {
            lock(&self.task).wake_by_ref();
        }
    }

    fn leave(&self, from: usize, to: usize) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// The task has returned, and waits to be woken.
const RESTING: usize = 0;
/// The task is in its poll.
const POLLING: usize = 1;
/// Something is ready that no poll has answered.
const RUNG: usize = 2;
