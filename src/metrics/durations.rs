//! Histograms of what every call passes. The SDK's own take a lock for each record, and look its
//! labels up; in these a record is two relaxed increments, and the labels are bound beforehand.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Counts durations by how long they are.
pub(super) struct Durations {
    /// Ascending.
    bounds: &'static [Duration],
    /// One for each bound, of those up to it and over the one before; then one for the rest.
    counts: Box<[AtomicU64]>,
    nanos: AtomicU64,
}

/// What a histogram holds at a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// Each bound in seconds, and how many were counted up to it and over the one before.
    pub buckets: Vec<(f64, u64)>,
    /// How many were longer than the last bound.
    pub rest: u64,
    /// How long all were together, in seconds.
    pub sum: f64,
}

impl Spread {
    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum::<u64>() + self.rest
    }
}

impl Durations {
    pub(super) fn new(bounds: &'static [Duration]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            nanos: AtomicU64::new(0),
        }
    }

    pub(super) fn record(&self, took: Duration) {
        let place = self.bounds.partition_point(|bound| *bound < took);
        if let Some(count) = self.counts.get(place) {
            count.fetch_add(1, Relaxed);
        }
        let nanos = took.as_nanos().try_into().unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Relaxed);
    }

    /// How many were counted.
    pub(super) fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// What it holds. A record under way may be in one half of it alone.
    pub(super) fn spread(&self) -> Spread {
        let mut counts = self.counts.iter().map(|count| count.load(Relaxed));
        let bounds = self.bounds.iter().map(Duration::as_secs_f64);
        Spread {
            buckets: bounds.zip(counts.by_ref()).collect(),
            rest: counts.next().unwrap_or_default(),
            sum: Duration::from_nanos(self.nanos.load(Relaxed)).as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_what_lies_below_it() {
        const BOUNDS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(4)];
        let durations = Durations::new(&BOUNDS);
        for micros in [0, 1_000, 1_001, 4_000, 4_001] {
            durations.record(Duration::from_micros(micros));
        }
        let spread = durations.spread();
        assert_eq!(spread.buckets, [(0.001, 2), (0.004, 2)]);
        assert_eq!((spread.rest, spread.count(), durations.count()), (1, 5, 5));
        assert!((spread.sum - 0.010_002).abs() < 1e-9, "{}", spread.sum);
    }
}
