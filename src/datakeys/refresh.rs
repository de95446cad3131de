//! Refresh ahead: when a key is past a soft limit, one background task fetches its successor.
//!
//! Callers go on with the old key meanwhile. A refresh that fails is tried again after a pause
//! that grows, until the old key reaches its hard limit.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Instant;
use crate::sync::Mutex;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering;
use crate::sync::lock;

/// When a key's successor may be asked for.
pub(super) struct Pace {
    soft: u64,
    /// In milliseconds of the boot clock; [`UNDERWAY`] while a refresh is.
    next: AtomicU64,
    failures: AtomicU32,
}

impl Pace {
    /// For a key whose soft age is reached at `soft`.
    pub(super) fn new(soft: Instant) -> Self {
        Self {
            soft: soft.millis(),
            next: AtomicU64::new(soft.millis()),
            failures: AtomicU32::new(0),
        }
    }

    /// For a key made at `now` that is better replaced at once, as after a refresh that failed;
    /// `chance` is random.
    pub(super) fn soon(now: Instant, chance: u8) -> Self {
        let pace = Self::new(now);
        pace.failed(now, chance);
        pace
    }

    /// Whether the caller, who found the key past a soft limit, is the one to have it refreshed.
    pub(super) fn begin(&self, now: Instant) -> bool {
        let now = now.millis();
        // A budget may run low long before the soft age; after a failure only the pause counts.
        let due = |next| next != UNDERWAY && (next <= now || next == self.soft);
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                due(next).then_some(UNDERWAY)
            })
            .is_ok()
    }

    /// The refresh that has begun failed; `chance` is random. The pause before the next is 1 s
    /// doubled with each failure, at most 30 s, of which a random half is waited.
    pub(super) fn failed(&self, now: Instant, chance: u8) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(5);
        let most = LEAST_PAUSE.saturating_mul(1 << failures).min(MOST_PAUSE);
        let pause = most / 2 + most / 2 * u32::from(chance) / 255;
        let next = (now + pause).millis();
        self.next.store(next, Ordering::Relaxed);
    }

    /// The refresh that has begun would bring nothing now: another may begin in a moment.
    pub(super) fn put_off(&self, now: Instant) {
        let next = (now + LEAST_PAUSE).millis();
        self.next.store(next, Ordering::Relaxed);
    }

    /// When a refresh may begin by itself, in milliseconds of the boot clock; none while one is
    /// under way.
    pub(super) fn next(&self) -> Option<u64> {
        match self.next.load(Ordering::Relaxed) {
            UNDERWAY => None,
            next => Some(next),
        }
    }
}

/// Refreshes to be done, of which only so many run at once.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    most: usize,
}

struct State<T> {
    waiting: VecDeque<T>,
    running: usize,
}

impl<T> Queue<T> {
    /// A queue from which at most `most` are taken at once.
    pub(super) fn new(most: usize) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                running: 0,
            }),
            most,
        }
    }

    /// Adds `one`. True when the caller is to start a runner, which takes with [`Queue::next`]
    /// until there is none.
    pub(super) fn add(&self, one: T) -> bool {
        let mut state = lock(&self.state);
        state.waiting.push_back(one);
        let more = state.running < self.most;
        if more {
            state.running += 1;
        }
        more
    }

    /// The next one for a runner; with none the runner has ended.
    pub(super) fn next(&self) -> Option<T> {
        let mut state = lock(&self.state);
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.running -= 1;
        }
        next
    }
}

const UNDERWAY: u64 = u64::MAX;
const LEAST_PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(30);
