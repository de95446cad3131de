//! Watches how long work stands in the runtime's queue, and has calls shed when it stands too long.
//!
//! Small calls end within a turn of their connection, so no count of what is under way shows that
//! there are too many: what grows is the time until a connection gets its turn. A queue that empties
//! now and then is a burst and let alone, so at first the shortest delay of a while counts (as in
//! CoDel). Then tenants are served up to a level, which falls while the mean delay is too long, rises
//! while it is not, and goes when nobody has been over it for a while. Once some are refused anyway,
//! those who are served shall not stand in line for as long as that took to show: the level falls for
//! a much shorter delay, as long as that costs little of what can be done, and while a line stands only
//! part of the level counts.

mod bell;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::clock::Instant;
use crate::clock::System;
use crate::quota::Level;
use crate::quota::Passed;
use crate::quota::Quotas;
use crate::quota::Rate;

use bell::Bell;

/// Keeps the delay about `target` at most, as long as this is polled.
pub(super) async fn watch(broker: Arc<Broker>, target: Duration) {
    let Err(error) = look(broker.quotas(), target).await;
    broker.quotas().set_level(None);
    tracing::error!(%error, "nobody is refused any more for how long work stands in line");
}

async fn look(quotas: &Quotas, target: Duration) -> io::Result<Infallible> {
    let mut control = Control::new(target);
    // Nothing stands in line while the machine is suspended.
    let (origin, began) = (System.now(), tokio::time::Instant::now());
    let now = || origin + began.elapsed();
    let bell = Bell::new()?;
    loop {
        let pause = control.pause();
        let due = now() + pause;
        bell.ring(pause).await?;
        stand_in_line().await;
        let before = control.in_force();
        control.see(due, now(), || quotas.passed());
        let after = control.in_force();
        if after == before {
            continue;
        }
        quotas.set_level(after);
        match (before, after) {
            (None, _) => {
                tracing::warn!("work stands in line: who is over its tenant's share is refused");
            }
            (_, None) => tracing::info!("no more work stands in line than can be done"),
            (Some(_), Some(_)) => {}
        }
    }
}

/// Resolves when all that this thread has to do now has had its turn.
async fn stand_in_line() {
    let mut stood = false;
    poll_fn(|cx| {
        if mem::replace(&mut stood, true) {
            return Poll::Ready(());
        }
        // A task that wakes itself goes to the end of the queue. `yield_now` waits longer, for
        // sockets and timers too.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What follows from the delays.
struct Control {
    target: Duration,
    /// What there is room for, as far as the windows show.
    level: Option<Level>,
    window: Option<Window>,
    /// How late the last look was.
    line: Duration,
    /// Windows on end without delay.
    good: u32,
    /// Those among them, on end, in which nobody was refused.
    quiet: u32,
    /// Whether anybody has been over the level since there is one.
    found: bool,
    /// Units a second that pass of late while some are refused, and the most that have since there
    /// is a level.
    rate: u64,
    best: u64,
}

/// A while in which the delay is looked at.
struct Window {
    began: Instant,
    sum: Duration,
    looks: u32,
}

impl Control {
    fn new(target: Duration) -> Self {
        Self {
            target,
            level: None,
            window: None,
            line: Duration::ZERO,
            good: 0,
            quiet: 0,
            found: false,
            rate: 0,
            best: 0,
        }
    }

    /// The level that counts until the next look: of a line, few are served, for they have stood in
    /// it, and so it is soon gone.
    fn in_force(&self) -> Option<Level> {
        let level = self.level?;
        if level == COUNTING {
            return Some(level);
        }
        let long = self.line.saturating_sub(self.target / PART);
        let kept = 1000 - thousandths(long, self.target).min(MOST_LESS);
        Some(Level {
            units: units(u64::from(level.units) * kept / 1000),
            ..level
        })
    }

    /// Until the next look: who idles is not woken often.
    fn pause(&self) -> Duration {
        match (self.level, &self.window) {
            (None, None) => IDLE,
            (None, Some(_)) | (Some(COUNTING), _) => BUSY,
            (Some(_), _) => SHEDDING,
        }
    }

    /// Takes a look that was `due` then and happened `now`. `passed` is what went by since it was
    /// last asked.
    fn see(&mut self, due: Instant, now: Instant, passed: impl FnOnce() -> Passed) {
        let delay = now.since(due);
        self.line = delay;
        if self.level.is_none() && delay < self.target {
            self.window = None;
            return;
        }
        let window = self.window.get_or_insert_with(|| Window::new(due));
        window.sum += delay;
        window.looks += 1;
        let mean = window.sum / window.looks;
        let lasted = now.since(window.began);
        let whole = match self.level {
            None => WINDOW,
            Some(_) => WINDOW / 2,
        };
        if lasted < whole {
            return;
        }
        let passed = passed();
        let rate = passed.units.saturating_mul(1000) / thousandths(lasted, SECOND).max(1);
        self.level = match self.level {
            None => Some(COUNTING),
            // A line of next to nothing is not ours: somebody else has the processor.
            Some(COUNTING) if mean < self.target || rate < FEW => None,
            Some(COUNTING) => {
                (self.good, self.quiet, self.found) = (0, 0, false);
                (self.rate, self.best) = (rate, rate);
                // One tenant can have no more than what all have together.
                Some(Level {
                    units: units(rate * 4 / 5),
                    ..COUNTING
                })
            }
            Some(level) => {
                self.found |= passed.refused > 0;
                // Less passes where less is asked for, too.
                if passed.refused > 0 {
                    self.rate = (self.rate * 7 + rate) / 8;
                    self.best = self.best.max(self.rate);
                }
                // Where others have the processor, too, there is a line whatever is refused. And a
                // longer line is done faster, a connection's calls together.
                let dear = self.rate < self.best * 2 / 5;
                let (target, least, most) = match dear {
                    true => (self.target, 20, 20),
                    false => (self.target / PART, 50, 300),
                };
                if mean < target {
                    self.raised(level, passed)
                } else {
                    // The line is gone by the next look if so much less comes.
                    let late = thousandths(mean.saturating_sub(self.target), WINDOW);
                    Some(self.lowered(level, late.clamp(least, most), passed))
                }
            }
        };
        self.window = self.level.map(|_| Window::new(now));
    }

    /// None when nobody has been over it for a while.
    fn raised(&mut self, level: Level, passed: Passed) -> Option<Level> {
        self.good += 1;
        if passed.refused == 0 {
            self.quiet += 1;
            return (self.quiet < QUIET).then_some(level);
        }
        self.quiet = 0;
        // By little after delay, by more and more without.
        let more = u64::from(level.units) * u64::from(self.good) / 200 + 1;
        Some(Level {
            units: units(u64::from(level.units) + more),
            hold: hold(level.hold, passed),
        })
    }

    /// By `less` thousandths.
    fn lowered(&mut self, level: Level, less: u64, passed: Passed) -> Level {
        (self.good, self.quiet) = (0, 0);
        let kept = match self.found {
            true => 1000 - less,
            // All that is known is that no tenant wants so much.
            false => 500,
        };
        Level {
            units: units(u64::from(level.units) * kept / 1000),
            hold: hold(level.hold, passed),
        }
    }
}

impl Window {
    fn new(began: Instant) -> Self {
        Self {
            began,
            sum: Duration::ZERO,
            looks: 0,
        }
    }
}

/// To refuse costs a good part of what it costs to serve, so there shall be few refusals for what
/// passes: who waits for one asks for nothing else.
fn hold(hold: Duration, passed: Passed) -> Duration {
    let refused = passed.refused.saturating_mul(8);
    if refused > passed.units {
        (hold * 2).min(LONGEST_HOLD)
    } else if refused < passed.units / 4 {
        (hold / 2).max(COUNTING.hold)
    } else {
        hold
    }
}

fn units(units: u64) -> u32 {
    let units = u32::try_from(units).unwrap_or(u32::MAX);
    units.clamp(Rate::LEAST, COUNTING.units)
}

fn thousandths(part: Duration, whole: Duration) -> u64 {
    let thousandths = part.as_nanos() * 1000 / whole.as_nanos().max(1);
    u64::try_from(thousandths).unwrap_or(u64::MAX)
}

/// Refuses nobody: it has what passes counted, which calls are spared otherwise.
const COUNTING: Level = Level {
    units: Rate::MOST,
    hold: Duration::from_millis(100),
};
/// Delay that stands so long is no burst.
const WINDOW: Duration = Duration::from_millis(100);
/// So many half windows after the last refusal the level goes: no sooner than those who were refused come
/// back.
const QUIET: u32 = 60;
/// Units a second that are no load.
const FEW: u64 = 100;
/// Between two looks, while nothing stands in line.
const IDLE: Duration = Duration::from_millis(50);
/// The same while something does.
const BUSY: Duration = Duration::from_millis(5);
/// The same under a level.
const SHEDDING: Duration = Duration::from_millis(2);
/// The part of the target that is aimed at under a level.
const PART: u32 = 10;
/// By so many thousandths the level is less for a line of the target or longer. Tenants that want
/// little are hardly refused anything for it.
const MOST_LESS: u64 = 750;
/// The longest mean, at which each stream brings a refusal every other second or so.
const LONGEST_HOLD: Duration = Duration::from_millis(1600);
const SECOND: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
