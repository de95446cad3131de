//! What was asked of the fake, and how it ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Operation;

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    pub operation: Operation,
    /// The ARN of the key that was named; what was sent, if that names no key.
    pub key: Option<String>,
    /// The access key.
    pub caller: String,
    pub region: String,
    pub context: BTreeMap<String, String>,
    /// Whether nothing was to be done.
    pub dry: bool,
    /// When it arrived, on the fake's clock, after the fake's start.
    pub at: Duration,
    /// None while it lasts.
    pub outcome: Option<Outcome>,
    /// Its first and last place in the order of all that happened.
    pub(super) span: (usize, Option<usize>),
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The client went away before its answer was whole, or lost the Region.
    Abandoned,
    /// With the answer to what was asked.
    Answered,
    /// With something that is no answer, or a wrong one.
    Broken,
    /// With this error code.
    Refused(String),
}

/// How many calls ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them, those that still last included.
    pub calls: usize,
    pub abandoned: usize,
    pub answered: usize,
    pub broken: usize,
    /// Refused, but not throttled.
    pub refused: usize,
    pub throttled: usize,
}

impl Call {
    /// The tenant that the context names.
    pub fn tenant(&self) -> Option<&str> {
        self.context.get("keybroker:tenant").map(String::as_str)
    }
}

impl Counts {
    pub fn add(&mut self, call: &Call) {
        self.calls += 1;
        match &call.outcome {
            None => {}
            Some(Outcome::Abandoned) => self.abandoned += 1,
            Some(Outcome::Answered) => self.answered += 1,
            Some(Outcome::Broken) => self.broken += 1,
            Some(Outcome::Refused(code)) if code == THROTTLED => self.throttled += 1,
            Some(Outcome::Refused(_)) => self.refused += 1,
        }
    }
}

/// All calls in the order of their arrival.
#[derive(Clone, Default)]
pub struct Log(Arc<watch::Sender<Entries>>);

#[derive(Default)]
struct Entries {
    calls: Vec<Call>,
    /// Arrivals and ends so far.
    events: usize,
}

impl Log {
    /// Enters a call, which lasts until the result is dropped.
    pub fn open(&self, mut call: Call) -> Open {
        let mut index = 0;
        self.0.send_modify(|entries| {
            index = entries.calls.len();
            call.span = (entries.events, None);
            entries.events += 1;
            entries.calls.push(call);
        });
        Open {
            log: self.clone(),
            index,
            outcome: Outcome::Abandoned,
        }
    }

    pub fn read<T>(&self, look: impl FnOnce(&[Call]) -> T) -> T {
        look(&self.0.borrow().calls)
    }

    pub async fn until(&self, mut reached: impl FnMut(&[Call]) -> bool) {
        let mut entries = self.0.subscribe();
        let reached = entries.wait_for(|entries| reached(&entries.calls)).await;
        reached.expect("the log lives");
    }
}

/// A call that lasts.
pub struct Open {
    log: Log,
    index: usize,
    outcome: Outcome,
}

impl Open {
    /// Ends the call.
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.log.0.send_modify(|entries| {
            let call = &mut entries.calls[self.index];
            call.outcome = Some(self.outcome.clone());
            call.span.1 = Some(entries.events);
            entries.events += 1;
        });
    }
}

/// Most of `calls` that lasted at one time.
pub fn most_at_once<'a>(calls: impl Iterator<Item = &'a Call>) -> usize {
    let mut steps = BTreeMap::new();
    for call in calls {
        let (first, last) = call.span;
        steps.insert(first, 1);
        if let Some(last) = last {
            steps.insert(last, -1);
        }
    }
    let running = steps.values().scan(0_isize, |now, step| {
        *now += step;
        Some(*now)
    });
    running.max().unwrap_or_default().unsigned_abs()
}

pub const THROTTLED: &str = "ThrottlingException";
