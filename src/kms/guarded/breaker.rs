//! When one key's KMS is not asked: a breaker. What an attempt came to and what time it is are
//! arguments.
//!
//! Interleavings are tried in `tests/models`, which includes this file.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Circuit;
use crate::sync::Mutex;
use crate::sync::lock;

/// Lets attempts pass until [`FEWEST`] or more were made within 10 s and half of them failed. Then
/// none passes for 1 to 5 s, and after that one at a time, the probe, until one does not fail.
pub(super) struct Breaker(Mutex<State>);

/// What an attempt says about the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It does not work.
    Failure,
    /// It answers; whether it works is left open.
    Neutral,
    /// It works.
    Success,
}

/// What an attempt changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A probe did not fail: attempts pass again.
    Close,
    /// So many of the latest attempts failed: none passes for a while.
    Open { failures: u64, attempts: u64 },
}

/// Permission for one attempt. Dropped without a verdict it was none, and if it was the probe, the
/// next attempt is.
pub(super) struct Pass<'a> {
    breaker: &'a Breaker,
    epoch: u64,
}

struct State {
    phase: Phase,
    /// Counts the phases, so that an attempt of an earlier one changes nothing.
    epoch: u64,
    heard: Instant,
}

enum Phase {
    Closed(Window),
    Open {
        until: Instant,
    },
    /// The next attempt is the probe.
    Half,
    Probing,
}

impl Breaker {
    /// One that lets all attempts pass.
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(State {
            phase: Phase::Closed(Window::default()),
            epoch: 0,
            heard: now,
        }))
    }

    /// Asks whether an attempt may be made.
    pub(super) fn admit(&self, now: Instant) -> Option<Pass<'_>> {
        let mut state = lock(&self.0);
        state.heard = state.heard.max(now);
        match state.phase {
            Phase::Closed(_) => {}
            Phase::Open { until } if now < until => return None,
            Phase::Open { .. } | Phase::Half => state.turn(Phase::Probing),
            Phase::Probing => return None,
        }
        Some(Pass {
            breaker: self,
            epoch: state.epoch,
        })
    }

    /// Whether an attempt would not pass: asked before waiting for anything else.
    pub(super) fn refuses(&self, now: Instant) -> bool {
        match lock(&self.0).phase {
            Phase::Closed(_) | Phase::Half => false,
            Phase::Open { until } => now < until,
            Phase::Probing => true,
        }
    }

    /// For the gauge.
    pub(super) fn circuit(&self) -> Circuit {
        match lock(&self.0).phase {
            Phase::Closed(_) => Circuit::Closed,
            Phase::Open { .. } => Circuit::Open,
            Phase::Half | Phase::Probing => Circuit::Half,
        }
    }

    /// Whether nobody has asked for so long that what is known here is of no use any more.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        now.saturating_duration_since(lock(&self.0).heard) >= IDLE
    }
}

impl Pass<'_> {
    /// Ends the attempt. `chance` is random.
    pub(super) fn settle(self, verdict: Verdict, now: Instant, chance: u16) -> Option<Change> {
        let mut state = lock(&self.breaker.0);
        if state.epoch != self.epoch {
            return None;
        }
        match (&mut state.phase, verdict) {
            (Phase::Closed(window), Verdict::Failure) => {
                let (failures, attempts) = window.note(now, 1);
                if attempts < FEWEST || failures * 2 < attempts {
                    return None;
                }
                state.open(now, chance);
                Some(Change::Open { failures, attempts })
            }
            // It opens on a failure alone: who succeeds is no reason to.
            (Phase::Closed(window), Verdict::Success) => {
                window.note(now, 0);
                None
            }
            (Phase::Probing, Verdict::Failure) => {
                state.open(now, chance);
                None
            }
            (Phase::Probing, Verdict::Neutral | Verdict::Success) => {
                state.turn(Phase::Closed(Window::default()));
                Some(Change::Close)
            }
            (Phase::Closed(_), Verdict::Neutral) | (Phase::Open { .. } | Phase::Half, _) => None,
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.breaker.0);
        // A verdict has ended the epoch of a probe.
        if state.epoch == self.epoch && matches!(state.phase, Phase::Probing) {
            state.turn(Phase::Half);
        }
    }
}

impl State {
    fn open(&mut self, now: Instant, chance: u16) {
        let until = now + SHORTEST + SPREAD * u32::from(chance) / u32::from(u16::MAX);
        self.turn(Phase::Open { until });
    }

    fn turn(&mut self, phase: Phase) {
        self.phase = phase;
        self.epoch += 1;
    }
}

/// The attempts of the last 10 s, by the second: one counts for 9 to 10 s.
#[derive(Default)]
struct Window(VecDeque<Second>);

struct Second {
    began: Instant,
    failures: u64,
    attempts: u64,
}

impl Window {
    /// Adds an attempt with its 0 or 1 `failures`, and returns all failures and attempts.
    fn note(&mut self, now: Instant, failures: u64) -> (u64, u64) {
        self.0
            .retain(|second| now.saturating_duration_since(second.began) < WINDOW);
        match self.0.back_mut() {
            Some(second) if now.saturating_duration_since(second.began) < SECOND => {
                second.failures += failures;
                second.attempts += 1;
            }
            Some(_) | None => self.0.push_back(Second {
                began: now,
                failures,
                attempts: 1,
            }),
        }
        let sum = |of: fn(&Second) -> u64| self.0.iter().map(of).sum();
        (sum(|second| second.failures), sum(|second| second.attempts))
    }
}

/// Fewest attempts that a judgment is based on.
pub(super) const FEWEST: u64 = 20;
const WINDOW: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);
/// Shortest time open; a random part of [`SPREAD`] comes on top, so that probes of many keys and
/// processes do not come at once.
const SHORTEST: Duration = Duration::from_secs(1);
const SPREAD: Duration = Duration::from_secs(4);
/// Longer than any call takes and any pause is.
const IDLE: Duration = Duration::from_secs(60);
