//! Which KMS keys do not answer: health tells of it, and finds out by itself when it is over.

use std::collections::HashMap;
use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use crate::clock::Instant;
use crate::datakeys::upstream::Upstream;
use crate::directory::Directory;
use crate::kms;
use crate::kms::KeyRef;
use crate::metrics::Dependency;
use crate::metrics::Metrics;
use crate::sync::Mutex;
use crate::sync::lock;

/// KMS keys that did not answer, and when they last did not.
pub(super) struct Outages {
    known: Mutex<HashMap<KeyRef, Instant>>,
    metrics: Metrics,
}

impl Outages {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            known: Mutex::default(),
            metrics,
        }
    }

    /// `key` answered, be it with a refusal.
    pub(super) fn over(&self, key: &KeyRef) {
        lock(&self.known).remove(key);
    }

    /// `key` did not answer at `now`.
    pub(super) fn note(&self, key: &KeyRef, now: Instant) {
        lock(&self.known).insert(key.clone(), now);
        self.metrics.degraded(Dependency::Kms, true);
    }

    /// Forgets what nobody has asked about for long, and tells the metrics of the rest.
    pub(super) fn sweep(&self, now: Instant) {
        let mut known = lock(&self.known);
        known.retain(|_, since| now.since(*since) < LONGEST);
        self.metrics.degraded(Dependency::Kms, !known.is_empty());
    }

    /// Whether `key` did not answer when it was last asked.
    pub(super) fn knows(&self, key: &KeyRef) -> bool {
        lock(&self.known).contains_key(key)
    }

    fn is_empty(&self) -> bool {
        lock(&self.known).is_empty()
    }
}

/// Asks about a key of every Region of the directory, and then every few seconds about one of every
/// Region where one does not answer.
pub(super) async fn watch(
    upstream: Arc<Upstream>,
    directory: impl Fn() -> Arc<Directory> + Send + 'static,
) -> Infallible {
    let mut keys = one_a_region(&directory(), |_| true);
    let mut told = HashSet::new();
    loop {
        let answers = join_all(keys.iter().map(|key| look(&upstream, key))).await;
        for (key, answer) in keys.iter().zip(answers) {
            tell(&mut told, key, answer);
        }
        sleep(PAUSE).await;
        keys = match upstream.outages.is_empty() {
            true => Vec::new(),
            false => one_a_region(&directory(), |key| upstream.outages.knows(key)),
        };
        // Callers may have found out first.
        told.retain(|region: &String| {
            let lasts = keys.iter().any(|key| key.region() == region);
            if !lasts {
                tracing::info!(region, "KMS answers again");
            }
            lasts
        });
    }
}

/// Fails when `key` does not answer.
async fn look(upstream: &Upstream, key: &KeyRef) -> Result<(), kms::Error> {
    match upstream.describe(key).await {
        // It was not asked, or is there and has no room, or nobody can read what it said.
        Err(kms::Error::Crowded { .. } | kms::Error::Invalid(_) | kms::Error::Throttled) => Ok(()),
        Err(error) if !error.is_refusal() => {
            upstream.outages.note(key, upstream.clock.now());
            Err(error)
        }
        Err(_) | Ok(()) => {
            upstream.outages.over(key);
            Ok(())
        }
    }
}

/// Says once of a Region that it does not answer, and once that it does again.
fn tell(told: &mut HashSet<String>, key: &KeyRef, answer: Result<(), kms::Error>) {
    let region = key.region();
    match answer {
        Err(error) => {
            if told.insert(region.to_owned()) {
                tracing::warn!(
                    region,
                    %key,
                    %error,
                    "KMS does not answer: degraded, and data keys that are cached serve to their \
                     limits; it is asked again every few seconds"
                );
            }
        }
        Ok(()) => {
            if told.remove(region) {
                tracing::info!(region, %key, "KMS answers again");
            }
        }
    }
}

/// The first KMS key of each Region for which `meant` holds.
fn one_a_region(directory: &Directory, meant: impl Fn(&KeyRef) -> bool) -> Vec<KeyRef> {
    let mut regions = HashSet::new();
    let mut keys = Vec::new();
    for tenant in directory.tenants() {
        for key in directory.keys(tenant.id()) {
            for kms_key in key.kms().iter() {
                if !regions.contains(kms_key.region()) && meant(kms_key) {
                    regions.insert(kms_key.region().to_owned());
                    keys.push(kms_key.clone());
                }
            }
        }
    }
    keys
}

/// For so long after a failure a KMS key counts as out of reach, unless it answers.
const LONGEST: Duration = Duration::from_secs(60);
/// Between two looks: an end of an outage shows soon, and costs nobody anything.
const PAUSE: Duration = Duration::from_secs(5);
