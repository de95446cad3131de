//! What is counted of the requests to KMS, by Region.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::AsyncInstrument;
use opentelemetry::metrics::Histogram;
use opentelemetry::metrics::Meter;

use crate::metrics::Circuit;
use crate::metrics::KmsOperation;
use crate::metrics::KmsOutcome;

/// The Regions' tallies.
pub(super) struct Regions {
    own: Mutex<HashMap<Arc<str>, Arc<KmsTally>>>,
    other: Arc<KmsTally>,
    durations: Histogram<f64>,
}

/// What the requests to KMS in one Region came to.
pub struct KmsTally {
    decrypt: OutcomeCounts,
    describe_key: OutcomeCounts,
    encrypt: OutcomeCounts,
    generate_data_key: OutcomeCounts,
    retries: AtomicU64,
    failovers: AtomicU64,
    missing_wraps: AtomicU64,
    shed: AtomicU64,
    half: AtomicI64,
    open: AtomicI64,
    queued: AtomicI64,
    rate: Mutex<f64>,
    region: Arc<str>,
    durations: Histogram<f64>,
}

#[derive(Default)]
struct OutcomeCounts {
    abandoned: AtomicU64,
    credentials: AtomicU64,
    done: AtomicU64,
    invalid: AtomicU64,
    refused: AtomicU64,
    throttled: AtomicU64,
    unavailable: AtomicU64,
}

impl KmsTally {
    fn new(region: Arc<str>, durations: Histogram<f64>) -> Self {
        Self {
            decrypt: OutcomeCounts::default(),
            describe_key: OutcomeCounts::default(),
            encrypt: OutcomeCounts::default(),
            generate_data_key: OutcomeCounts::default(),
            retries: AtomicU64::new(0),
            failovers: AtomicU64::new(0),
            missing_wraps: AtomicU64::new(0),
            shed: AtomicU64::new(0),
            queued: AtomicI64::new(0),
            rate: Mutex::new(0.0),
            half: AtomicI64::new(0),
            open: AtomicI64::new(0),
            region,
            durations,
        }
    }

    /// The Region's name.
    pub(super) fn region(&self) -> &Arc<str> {
        &self.region
    }

    /// Counts a request that ended after it `took` so long.
    pub fn request(&self, operation: KmsOperation, outcome: KmsOutcome, took: Duration) {
        self.count(operation, outcome).fetch_add(1, Relaxed);
        let labels = [
            KeyValue::new("operation", operation.label()),
            KeyValue::new("region", Arc::clone(&self.region)),
        ];
        self.durations.record(took.as_secs_f64(), &labels);
    }

    /// Requests that ended so, so far.
    pub fn requests(&self, operation: KmsOperation, outcome: KmsOutcome) -> u64 {
        self.count(operation, outcome).load(Relaxed)
    }

    /// Counts a request that is made again.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    /// Requests made again so far.
    pub fn retries(&self) -> u64 {
        self.retries.load(Relaxed)
    }

    /// Counts a call that failed here and goes on to another Region or key.
    pub fn failed_over(&self) {
        self.failovers.fetch_add(1, Relaxed);
    }

    /// Calls that failed here and went on to another Region or key.
    pub fn failovers(&self) -> u64 {
        self.failovers.load(Relaxed)
    }

    /// Counts a data key that serves without the wrap of a key here.
    pub fn wrap_missing(&self) {
        self.missing_wraps.fetch_add(1, Relaxed);
    }

    /// Data keys that served without the wrap of a key here.
    pub fn missing_wraps(&self) -> u64 {
        self.missing_wraps.load(Relaxed)
    }

    /// Requests throttled so far.
    pub fn throttles(&self) -> u64 {
        let throttled = |operation| self.requests(operation, KmsOutcome::Throttled);
        KmsOperation::ALL.map(throttled).into_iter().sum()
    }

    /// Notes that the circuit of one of the Region's keys was `from` and is `to`. One that was not
    /// told of is closed.
    pub fn circuit(&self, from: Circuit, to: Circuit) {
        for (circuit, change) in [(to, 1), (from, -1)] {
            match circuit {
                Circuit::Closed => {}
                Circuit::Half => _ = self.half.fetch_add(change, Relaxed),
                Circuit::Open => _ = self.open.fetch_add(change, Relaxed),
            }
        }
    }

    /// The worst circuit of the Region's keys: 0 closed, 1 half open, 2 open.
    pub fn circuit_state(&self) -> u64 {
        let any = |circuits: &AtomicI64| circuits.load(Relaxed) > 0;
        match (any(&self.open), any(&self.half)) {
            (true, _) => 2,
            (false, true) => 1,
            (false, false) => 0,
        }
    }

    /// Counts a call that was not made because its turn would not have come in time.
    pub fn shed(&self) {
        self.shed.fetch_add(1, Relaxed);
    }

    /// Calls that were not made because their turn would not have come in time.
    pub fn sheds(&self) -> u64 {
        self.shed.load(Relaxed)
    }

    /// Notes that one of the Region's queues had so many calls in it and has so many now.
    pub fn queued(&self, from: usize, to: usize) {
        let signed = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
        self.queued.fetch_add(signed(to) - signed(from), Relaxed);
    }

    /// Calls that wait for their turn.
    pub fn queue_length(&self) -> u64 {
        self.queued.load(Relaxed).try_into().unwrap_or(0)
    }

    /// Notes that the Region may be sent so many requests a second more, or fewer.
    pub fn rate(&self, change: f64) {
        *self.rate.lock().unwrap_or_else(PoisonError::into_inner) += change;
    }

    /// Requests a second that the Region may be sent, over all accounts.
    pub fn requests_per_second(&self) -> f64 {
        let rate = *self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        rate.max(0.0)
    }

    fn count(&self, operation: KmsOperation, outcome: KmsOutcome) -> &AtomicU64 {
        let counts = match operation {
            KmsOperation::Decrypt => &self.decrypt,
            KmsOperation::DescribeKey => &self.describe_key,
            KmsOperation::Encrypt => &self.encrypt,
            KmsOperation::GenerateDataKey => &self.generate_data_key,
        };
        match outcome {
            KmsOutcome::Abandoned => &counts.abandoned,
            KmsOutcome::Credentials => &counts.credentials,
            KmsOutcome::Done => &counts.done,
            KmsOutcome::Invalid => &counts.invalid,
            KmsOutcome::Refused => &counts.refused,
            KmsOutcome::Throttled => &counts.throttled,
            KmsOutcome::Unavailable => &counts.unavailable,
        }
    }
}

impl Regions {
    /// No Regions yet, and the instruments that read them in `meter`, which keeps them.
    pub(super) fn new(meter: &Meter) -> Arc<Self> {
        let durations = meter
            .f64_histogram("keybroker_kms_request_duration")
            .with_unit("s")
            .with_description("Time that requests to KMS took, by operation and Region.")
            .with_boundaries(DURATIONS.to_vec())
            .build();
        let regions = Arc::new(Self {
            own: Mutex::default(),
            other: Arc::new(KmsTally::new(OTHER.into(), durations.clone())),
            durations,
        });
        regions.register(meter);
        regions
    }

    pub(super) fn tally(&self, region: &str) -> Arc<KmsTally> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tally) = own.get(region) {
            return Arc::clone(tally);
        }
        if own.len() >= REGIONS {
            return Arc::clone(&self.other);
        }
        let region: Arc<str> = region.into();
        let tally = KmsTally::new(Arc::clone(&region), self.durations.clone());
        Arc::clone(own.entry(region).or_insert_with(|| Arc::new(tally)))
    }

    /// All, copied: whoever looks for a tally shall not wait for a scrape.
    pub(super) fn read(&self) -> Vec<Arc<KmsTally>> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.values().chain([&self.other]).cloned().collect()
    }

    fn register(self: &Arc<Self>, meter: &Meter) {
        meter
            .u64_observable_counter("keybroker_kms_requests")
            .with_description("Requests to KMS, by operation, Region and how they ended.")
            .with_callback(self.reading(|tally, region, instrument| {
                for operation in KmsOperation::ALL {
                    for outcome in KmsOutcome::ALL {
                        let labels = [
                            KeyValue::new("operation", operation.label()),
                            region.clone(),
                            KeyValue::new("outcome", outcome.label()),
                        ];
                        instrument.observe(tally.requests(operation, outcome), &labels);
                    }
                }
            }))
            .build();
        meter
            .u64_observable_counter("keybroker_kms_throttles")
            .with_description("Requests that KMS throttled, by Region.")
            .with_callback(self.reading(|tally, region, instrument| {
                instrument.observe(tally.throttles(), &[region]);
            }))
            .build();
        meter
            .u64_observable_counter("keybroker_kms_retries")
            .with_description("Requests to KMS that were made again, by Region.")
            .with_callback(self.reading(|tally, region, instrument| {
                instrument.observe(tally.retries(), &[region]);
            }))
            .build();
        meter
            .u64_observable_counter("keybroker_kms_failovers")
            .with_description(
                "Calls to KMS that went on to another Region or key, by the Region that failed.",
            )
            .with_callback(self.reading(|tally, region, instrument| {
                instrument.observe(tally.failovers(), &[region]);
            }))
            .build();
        meter
            .u64_observable_counter("keybroker_kms_missing_wraps")
            .with_description("Data keys that one KMS key of two has not wrapped, by its Region.")
            .with_callback(self.reading(|tally, region, instrument| {
                instrument.observe(tally.missing_wraps(), &[region]);
            }))
            .build();
        meter
            .u64_observable_counter("keybroker_kms_shed")
            .with_description(
                "Calls to KMS that were not made because their turn would not have come in time, \
                 by Region.",
            )
            .with_callback(self.reading(|tally, region, instrument| {
                instrument.observe(tally.sheds(), &[region]);
            }))
            .build();
        meter
            .u64_observable_gauge("keybroker_kms_queue_length")
            .with_description("Calls to KMS that wait for their turn, by Region.")
            .with_callback(self.reading(|tally, region, instrument| {
                instrument.observe(tally.queue_length(), &[region]);
            }))
            .build();
        meter
            .f64_observable_gauge("keybroker_kms_requests_per_second")
            .with_description(
                "Requests that KMS may be sent in a second, by Region: lowered when it throttles.",
            )
            .with_callback(self.reading(|tally, region, instrument| {
                instrument.observe(tally.requests_per_second(), &[region]);
            }))
            .build();
        meter
            .u64_observable_gauge("keybroker_kms_circuit_state")
            .with_description(
                "The worst circuit of a Region's keys: 0 closed, 1 half open, 2 open.",
            )
            .with_callback(self.reading(|tally, region, instrument| {
                instrument.observe(tally.circuit_state(), &[region]);
            }))
            .build();
    }

    /// A callback that gives `observe` each Region's tally.
    fn reading<T: 'static>(
        self: &Arc<Self>,
        observe: fn(&KmsTally, KeyValue, &dyn AsyncInstrument<T>),
    ) -> impl Fn(&dyn AsyncInstrument<T>) + Send + Sync + use<T> {
        let regions = Arc::clone(self);
        move |instrument| {
            for tally in regions.read() {
                let region = KeyValue::new("region", Arc::clone(&tally.region));
                observe(&tally, region, instrument);
            }
        }
    }
}

/// Most Regions with series of their own; AWS has about forty.
pub const REGIONS: usize = 64;

/// The label of the Regions beyond [`REGIONS`]; no Region's name holds an underscore.
const OTHER: &str = "_other";

/// Of requests, in seconds: the embedded KMS takes microseconds, AWS KMS 50 to 300 ms as a rule.
const DURATIONS: [f64; 14] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn a_region_has_one_tally_and_those_beyond_the_bound_share_one() {
        let metrics = Metrics::unread();
        let first = metrics.kms("r0");
        for number in 0..REGIONS {
            metrics.kms(&format!("r{number}"));
        }
        assert!(Arc::ptr_eq(&first, &metrics.kms("r0")));
        let other = metrics.kms("late");
        assert!(Arc::ptr_eq(&other, &metrics.kms("later")));
        assert!(!Arc::ptr_eq(&other, &first));
    }

    #[test]
    fn a_region_shows_the_worst_of_its_circuits() {
        let tally = Metrics::unread().kms("r0");
        let states = [
            (Circuit::Closed, Circuit::Open),
            (Circuit::Closed, Circuit::Open),
            (Circuit::Open, Circuit::Half),
            (Circuit::Open, Circuit::Half),
            (Circuit::Half, Circuit::Half),
            (Circuit::Half, Circuit::Closed),
            (Circuit::Half, Circuit::Closed),
        ]
        .map(|(from, to)| {
            tally.circuit(from, to);
            tally.circuit_state()
        });
        assert_eq!(states, [2, 2, 2, 1, 1, 1, 0]);
    }
}
