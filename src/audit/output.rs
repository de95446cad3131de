//! What the lots are linked by and written to, by whoever has the pen, and who may take it up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use crate::audit::chain::Chain;
use crate::audit::countersign::Tray;
use crate::audit::out::KEPT;
use crate::audit::out::Out;
use crate::audit::out::Post;
use crate::audit::queue::Outcome;
use crate::audit::queue::Pen;
use crate::audit::relay::Relay;
use crate::clock::Clock;
use crate::metrics::Audited;
use crate::metrics::Dependency;
use crate::metrics::Metrics;
use crate::sync::Mutex;
use crate::sync::lock;

/// Where the lines end up.
pub(super) struct Output {
    /// Locked by the one who has the pen, and so never waited for.
    desk: Mutex<Desk>,
    writers: Writers,
    /// Whether the last write was.
    slow: AtomicBool,
    /// Whether there are records that no signature vouches for.
    unsigned: AtomicBool,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

/// Who may write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Writers {
    /// Whoever flushes, while writes are fast.
    Callers,
    /// The sink's thread alone: nobody knows how long a write waits.
    Thread,
}

/// Where a linked lot goes.
pub(super) enum Outlet {
    /// Into one sink, written by whoever has the pen.
    One(Post),
    /// To the threads of several.
    Many(Vec<Relay>),
}

struct Desk {
    chain: Chain,
    outlet: Outlet,
    lines: Vec<u8>,
    /// Whether the last lot has failed, which is said once.
    failing: bool,
}

impl Output {
    pub(super) fn new(
        outlet: Outlet,
        writers: Writers,
        chain: Chain,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Self {
        Self {
            desk: Mutex::new(Desk {
                chain,
                outlet,
                lines: Vec::new(),
                failing: false,
            }),
            writers,
            slow: AtomicBool::new(false),
            unsigned: AtomicBool::new(false),
            clock,
            metrics,
        }
    }

    /// Whether one who flushes may write, by what the last write has shown.
    pub(super) fn near(&self) -> bool {
        match self.writers {
            Writers::Callers => !self.slow.load(Ordering::Relaxed),
            Writers::Thread => false,
        }
    }

    /// Whether there are records that no signature vouches for.
    pub(super) fn unsigned(&self) -> bool {
        self.unsigned.load(Ordering::Relaxed)
    }

    /// Where countersignatures of its records come from.
    pub(super) fn tray(&self) -> Arc<Tray> {
        lock(&self.desk).chain.tray()
    }

    /// Links and writes the next lot, and settles it. `false` when there is none.
    pub(super) fn write(&self, pen: &Pen<'_>) -> bool {
        let mut desk = lock(&self.desk);
        let Desk {
            chain,
            outlet,
            lines,
            failing,
        } = &mut *desk;
        if !pen.take(lines) {
            return false;
        }
        let began = self.clock.now();
        let before = length(chain);
        let passed = outlet.pass(chain, |chain, lot| chain.seal(lines, lot));
        let took = self.clock.now().since(began);
        self.slow.store(took > FAST, Ordering::Relaxed);
        // Before the lot is settled: the watch looks for it after that.
        self.unsigned.store(chain.unsigned(), Ordering::Relaxed);
        chain.publish();
        let outcome = match passed {
            Ok(missing) => {
                self.accepted(length(chain) - before, missing);
                *failing = false;
                Outcome::Accepted
            }
            Err(Refused(why)) => {
                self.failed(lines, why.filter(|_| !*failing));
                *failing = true;
                Outcome::Failed
            }
        };
        pen.settle(outcome);
        // A usual lot fits; what a stalled sink has heaped up is given back.
        lines.clear();
        lines.shrink_to(KEPT);
        true
    }

    /// Ends the chain, and gives the sinks so long for what they have.
    pub(super) fn stop(&self, patience: Duration) {
        let mut desk = lock(&self.desk);
        let Desk { chain, outlet, .. } = &mut *desk;
        // An end that no sink takes is an open one, which shows.
        let _ = outlet.pass(chain, |chain, lot| chain.stop(lot));
        if let Outlet::Many(relays) = outlet {
            for relay in relays.drain(..) {
                relay.close(patience);
            }
        }
    }

    fn accepted(&self, records: u64, missing: usize) {
        let missing = u64::try_from(missing).unwrap_or_default();
        self.metrics.audited(Audited::Accepted, records);
        if missing > 0 {
            let missed = records.saturating_mul(missing);
            self.metrics.audited(Audited::Missed, missed);
        }
        self.metrics.degraded(Dependency::Audit, false);
    }

    fn failed(&self, lines: &[u8], why: Option<io::Error>) {
        // An empty one asks for a signature.
        let records = lines.split(|byte| *byte == b'\n');
        let records = records.filter(|line| !line.is_empty()).count();
        let records = u64::try_from(records).unwrap_or_default();
        self.metrics.audited(Audited::Failed, records);
        self.metrics.degraded(Dependency::Audit, true);
        if let Some(error) = why {
            tracing::error!(%error, "no audit sink takes records");
        }
    }
}

/// How many records it has.
fn length(chain: &Chain) -> u64 {
    chain.last().map_or(0, |last| last.seq + 1)
}

/// No sink has taken a lot, or none in time. Of several, each has told why.
struct Refused(Option<io::Error>);

impl Outlet {
    /// One sink.
    pub(super) fn one(out: impl Out + 'static) -> Self {
        Self::One(Post::new(out))
    }

    /// Has the lot that `fill` links written. How many sinks will miss it.
    fn pass(
        &mut self,
        chain: &mut Chain,
        fill: impl FnOnce(&mut Chain, &mut Vec<u8>),
    ) -> Result<usize, Refused> {
        match self {
            Self::One(post) => match post.send(|lot| fill(chain, lot)) {
                Ok(()) => Ok(0),
                Err(error) => Err(Refused(Some(error))),
            },
            // What they have failed with comes first: nothing is linked that might stand nowhere.
            Self::Many(relays) if relays.iter().all(Relay::fails) => Err(Refused(None)),
            Self::Many(relays) => {
                let head = chain.head();
                let mut lot = Vec::new();
                fill(chain, &mut lot);
                let lot = Arc::new(lot);
                let (taken, told) = mpsc::channel();
                let offered = relays.iter_mut().map(|relay| relay.offer(&lot, &taken));
                let missing = offered.filter(Result::is_err).count();
                drop(taken);
                if missing == relays.len() {
                    chain.rewind(head);
                    return Err(Refused(None));
                }
                // The first is enough. Err: all have failed, or have had their time.
                match told.recv_timeout(LONGEST) {
                    Ok(()) => Ok(missing),
                    Err(_) => Err(Refused(None)),
                }
            }
        }
    }
}

/// What a write takes at most where callers may write: far longer than one into the page cache, and
/// no longer than the calls of a thread can wait.
const FAST: Duration = Duration::from_millis(5);
/// How long several sinks have for a lot: its calls wait no longer.
const LONGEST: Duration = Duration::from_secs(2);
