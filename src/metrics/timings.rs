//! What calls and decisions came to, and how long they took.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::AsyncInstrument;
use opentelemetry::metrics::Meter;

use crate::metrics::CallOutcome;
use crate::metrics::Code;
use crate::metrics::Decision;
use crate::metrics::durations::Durations;
use crate::metrics::durations::Spread;

/// The histograms that are not the SDK's. Cheap to clone.
#[derive(Clone, Default)]
pub struct Timings(Arc<Inner>);

struct Inner {
    counting: bool,
    /// By method.
    calls: Mutex<BTreeMap<Arc<str>, Arc<CallTally>>>,
    allowed: AtomicU64,
    denied: AtomicU64,
    invalid: AtomicU64,
    undecided: AtomicU64,
    decisions: Durations,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            counting: true,
            calls: Mutex::default(),
            allowed: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            invalid: AtomicU64::new(0),
            undecided: AtomicU64::new(0),
            decisions: Durations::new(&OF_DECISIONS),
        }
    }
}

/// A histogram as it is collected. Names are OpenTelemetry's.
pub struct Histogram {
    /// Its name, without a unit.
    pub name: &'static str,
    /// What it counts.
    pub description: &'static str,
    /// What it has of each set of labels.
    pub series: Vec<Series>,
}

/// One of a histogram's series.
pub struct Series {
    /// Its labels, with their values.
    pub labels: Vec<(&'static str, Arc<str>)>,
    /// What it holds.
    pub spread: Spread,
}

/// What the calls of one method came to.
pub struct CallTally {
    counting: bool,
    method: Arc<str>,
    /// By the code's number.
    codes: [Durations; Code::ALL.len()],
    /// Of those that were not served: an error may take a lock.
    reasons: Mutex<BTreeMap<(CallOutcome, &'static str), u64>>,
}

impl CallTally {
    fn new(method: Arc<str>, counting: bool) -> Self {
        Self {
            counting,
            method,
            codes: Code::ALL.map(|_| Durations::new(&OF_CALLS)),
            reasons: Mutex::default(),
        }
    }

    /// The method with its service, as in `keybroker.v1.KeyBrokerService/Encrypt`.
    pub fn method(&self) -> &Arc<str> {
        &self.method
    }

    /// Whether its calls are counted.
    pub fn counting(&self) -> bool {
        self.counting
    }

    /// Counts a call that was served.
    pub fn served(&self, took: Duration) {
        self.of(Code::Ok).record(took);
    }

    /// Counts a call that ended in an error, for `reason`.
    pub fn ended(&self, code: Code, reason: &'static str, took: Duration) {
        self.of(code).record(took);
        let key = (code.outcome(), reason);
        *self.reasons().entry(key).or_default() += 1;
    }

    fn of(&self, code: Code) -> &Durations {
        let durations = self.codes.get(code.number());
        durations.expect("there are as many as there are codes")
    }

    fn reasons(&self) -> MutexGuard<'_, BTreeMap<(CallOutcome, &'static str), u64>> {
        let reasons = self.reasons.lock();
        reasons.unwrap_or_else(PoisonError::into_inner)
    }

    /// The method without its service.
    fn operation(&self) -> &str {
        let method: &str = &self.method;
        method
            .rsplit_once('/')
            .map_or(method, |(_, operation)| operation)
    }

    /// How often what happened, the served first.
    fn outcomes(&self) -> Vec<((CallOutcome, &'static str), u64)> {
        let served = ((CallOutcome::Done, ""), self.of(Code::Ok).count());
        let reasons = self
            .reasons()
            .iter()
            .map(|(key, count)| (*key, *count))
            .collect::<Vec<_>>();
        [served].into_iter().chain(reasons).collect()
    }

    /// The codes that were answered, and how long that took; OK even if it was not.
    fn spreads(&self) -> impl Iterator<Item = (Code, Spread)> {
        Code::ALL
            .into_iter()
            .map(|code| (code, self.of(code).spread()))
            .filter(|(code, spread)| *code == Code::Ok || spread.count() > 0)
    }
}

impl Timings {
    /// Those of [`Metrics::uncounted`](crate::metrics::Metrics::uncounted).
    pub(super) fn uncounted() -> Self {
        Self(Arc::new(Inner {
            counting: false,
            ..Inner::default()
        }))
    }

    pub(super) fn counting(&self) -> bool {
        self.0.counting
    }

    /// The tally of `method`, which is named with its service; to be kept by whoever counts.
    pub(super) fn calls(&self, method: &str) -> Arc<CallTally> {
        let mut calls = self.all();
        if let Some(tally) = calls.get(method) {
            return Arc::clone(tally);
        }
        let method: Arc<str> = method.into();
        let tally = Arc::new(CallTally::new(Arc::clone(&method), self.0.counting));
        calls.insert(method, Arc::clone(&tally));
        tally
    }

    /// Counts a decision that took so long.
    pub(super) fn decided(&self, decision: Decision, took: Duration) {
        self.decisions(decision).fetch_add(1, Relaxed);
        self.0.decisions.record(took);
    }

    /// Counts a decision that could not be made.
    pub(super) fn undecided(&self) {
        self.0.undecided.fetch_add(1, Relaxed);
    }

    fn decisions(&self, decision: Decision) -> &AtomicU64 {
        match decision {
            Decision::Allow => &self.0.allowed,
            Decision::Deny => &self.0.denied,
            Decision::Invalid => &self.0.invalid,
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<CallTally>>> {
        let calls = self.0.calls.lock();
        calls.unwrap_or_else(PoisonError::into_inner)
    }

    /// Copied: whoever looks for a tally shall not wait for a scrape.
    fn tallies(&self) -> Vec<Arc<CallTally>> {
        self.all().values().cloned().collect()
    }

    /// What there is to collect.
    pub fn histograms(&self) -> [Histogram; 2] {
        let mut series = Vec::new();
        for tally in self.tallies() {
            for (code, spread) in tally.spreads() {
                let mut labels = vec![
                    ("rpc.system.name", "grpc".into()),
                    ("rpc.method", Arc::clone(&tally.method)),
                    ("rpc.response.status_code", code.label().into()),
                ];
                if code.outcome() == CallOutcome::Failed {
                    labels.push(("error.type", code.label().into()));
                }
                series.push(Series { labels, spread });
            }
        }
        [
            Histogram {
                name: "rpc.server.call.duration",
                description: "Time that calls took, by method and status.",
                series,
            },
            Histogram {
                name: "keybroker_authz_duration",
                description: "Time that it took to decide whether a caller may use a key.",
                series: vec![Series {
                    labels: Vec::new(),
                    spread: self.0.decisions.spread(),
                }],
            },
        ]
    }

    /// The counters that go with them, in `meter`, which keeps them.
    pub(super) fn register(&self, meter: &Meter) {
        meter
            .u64_observable_counter("keybroker_operations")
            .with_description("Calls, by operation and what became of them, with the reason.")
            .with_callback(self.reading(|timings, instrument| {
                for tally in timings.tallies() {
                    for ((outcome, reason), count) in tally.outcomes() {
                        let labels = [
                            KeyValue::new("operation", tally.operation().to_owned()),
                            KeyValue::new("outcome", outcome.label()),
                            KeyValue::new("reason", reason),
                        ];
                        instrument.observe(count, &labels);
                    }
                }
            }))
            .build();
        meter
            .u64_observable_counter("keybroker_authz_decisions")
            .with_description("Decisions whether a caller may use a key.")
            .with_callback(self.reading(|timings, instrument| {
                for one in Decision::ALL {
                    let count = timings.decisions(one).load(Relaxed);
                    instrument.observe(count, &[KeyValue::new("decision", one.label())]);
                }
            }))
            .build();
        meter
            .u64_observable_counter("keybroker_authz_errors")
            .with_description("Decisions that could not be made: the store was out of reach.")
            .with_callback(self.reading(|timings, instrument| {
                instrument.observe(timings.0.undecided.load(Relaxed), &[]);
            }))
            .build();
    }

    /// A callback that gives `observe` these.
    fn reading(
        &self,
        observe: fn(&Self, &dyn AsyncInstrument<u64>),
    ) -> impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + use<> {
        let timings = self.clone();
        move |instrument| observe(&timings, instrument)
    }
}

/// OpenTelemetry's bounds for calls, and below them as fine: a data key from the cache serves a call
/// in 50 µs.
const OF_CALLS: [Duration; 20] = [
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(75),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(750),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_millis(7_500),
    Duration::from_secs(10),
];

/// A policy of a few statements is decided on in a microsecond.
const OF_DECISIONS: [Duration; 9] = [
    Duration::from_nanos(500),
    Duration::from_micros(1),
    Duration::from_nanos(2_500),
    Duration::from_micros(5),
    Duration::from_micros(10),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_millis(1),
    Duration::from_millis(10),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_has_one_tally_and_tells_what_its_calls_came_to() {
        let timings = Timings::default();
        let tally = timings.calls("a.v1.A/Encrypt");
        assert!(Arc::ptr_eq(&tally, &timings.calls("a.v1.A/Encrypt")));
        tally.served(Duration::from_micros(40));
        tally.ended(
            Code::Unavailable,
            "KMS_UNAVAILABLE",
            Duration::from_secs(60),
        );
        tally.ended(Code::PermissionDenied, "POLICY_DENIED", Duration::ZERO);
        tally.ended(Code::PermissionDenied, "POLICY_DENIED", Duration::ZERO);
        assert_eq!(tally.operation(), "Encrypt");
        assert_eq!(
            tally.outcomes(),
            [
                ((CallOutcome::Done, ""), 1),
                ((CallOutcome::Failed, "KMS_UNAVAILABLE"), 1),
                ((CallOutcome::Refused, "POLICY_DENIED"), 2),
            ]
        );
        let [calls, _] = timings.histograms();
        let seen: Vec<_> = calls
            .series
            .iter()
            .map(|Series { labels, spread }| {
                let error = labels.iter().find(|(name, _)| *name == "error.type");
                let (_, code) = &labels[2];
                (code.as_ref(), error.is_some(), spread.count(), spread.rest)
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("OK", false, 1, 0),
                ("PERMISSION_DENIED", false, 2, 0),
                ("UNAVAILABLE", true, 1, 1),
            ]
        );
    }
}
