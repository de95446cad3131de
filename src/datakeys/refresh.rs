//! Refresh ahead: when a key is past a soft limit, one background task fetches its successor.
//!
//! Callers go on with the old key meanwhile. A refresh that fails is tried again after a pause
//! that grows, until the old key reaches its hard limit.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::clock::Instant;
use crate::kms::Fair;
use crate::name::TenantId;
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

/// Refreshes to be done, of which only so many run at once: by turns of the tenants, of which none
/// has more than a quarter of those that run.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    most: usize,
}

struct State<T> {
    waiting: Fair<(TenantId, T)>,
    added: u64,
    /// By tenant.
    running: HashMap<TenantId, usize>,
    runners: usize,
}

impl<T> Queue<T> {
    /// A queue from which at most `most` are taken at once.
    pub(super) fn new(most: usize) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: Fair::default(),
                added: 0,
                running: HashMap::new(),
                runners: 0,
            }),
            most,
        }
    }

    /// Adds `one` of `tenant`, whose weight this is. True when the caller is to start a runner,
    /// which does [`Queue::run`].
    pub(super) fn add(&self, tenant: &TenantId, weight: u32, one: T) -> bool {
        let mut state = lock(&self.state);
        state.added += 1;
        let number = state.added;
        state
            .waiting
            .push(tenant, weight, number, (tenant.clone(), one));
        let more = state.runners < self.most && room(&state.running, tenant, self.share());
        if more {
            state.runners += 1;
        }
        more
    }

    /// What a runner does: has `work` done with one after the other until there is none.
    pub(super) async fn run<F: Future<Output = ()>>(&self, work: impl Fn(T) -> F) {
        let mut done = None;
        while let Some((tenant, one)) = self.next(done.as_ref()) {
            let working = AssertUnwindSafe(async { work(one).await });
            // A panic is in the log; the runner is still wanted.
            drop(working.catch_unwind().await);
            done = Some(tenant);
        }
    }

    /// The next one for a runner that is through with one of the tenant `done`; with none the
    /// runner has ended. What waits then is left to those who run for its tenant.
    pub(super) fn next(&self, done: Option<&TenantId>) -> Option<(TenantId, T)> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if let Some(done) = done
            && let Some(running) = state.running.get_mut(done)
        {
            *running -= 1;
            if *running == 0 {
                state.running.remove(done);
            }
        }
        let (running, share) = (&state.running, self.share());
        let next = state.waiting.pop(|tenant| room(running, tenant, share));
        match &next {
            Some((tenant, _)) => *state.running.entry(tenant.clone()).or_default() += 1,
            None => state.runners -= 1,
        }
        next
    }

    /// How many of a tenant's may run.
    fn share(&self) -> usize {
        self.most.div_ceil(4)
    }
}

/// Whether one more of `tenant` may run.
fn room(running: &HashMap<TenantId, usize>, tenant: &TenantId, share: usize) -> bool {
    running.get(tenant).is_none_or(|own| *own < share)
}

const UNDERWAY: u64 = u64::MAX;
const LEAST_PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(30);
