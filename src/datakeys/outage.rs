//! Which KMS keys do not answer: health tells of it, and finds out by itself when it is over.

use std::collections::BTreeMap;
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

/// Asks about a key of every Region of the directory when it has come there, and every few seconds
/// about one of every Region where one does not answer.
pub(super) async fn watch(
    upstream: Arc<Upstream>,
    directory: impl Fn() -> Arc<Directory> + Send + 'static,
) -> Infallible {
    let mut seen = Seen::default();
    loop {
        let keys = seen.due(&upstream.outages, &directory());
        let answers = join_all(keys.iter().map(|key| look(&upstream, key))).await;
        for (key, answer) in keys.iter().zip(answers) {
            seen.tell(key, answer);
        }
        sleep(match seen.asked.is_empty() {
            true => SHORT_PAUSE,
            false => PAUSE,
        })
        .await;
    }
}

/// The Regions that the watch knows.
#[derive(Default)]
struct Seen {
    /// Of the directory that they are from.
    generation: Option<u64>,
    /// Those that were asked.
    asked: HashSet<String>,
    /// Those of which it is told that they do not answer.
    silent: HashSet<String>,
}

impl Seen {
    /// The keys to ask about: of each Region where one does not answer the first that does not, and
    /// the first of each that is new.
    fn due(&mut self, outages: &Outages, directory: &Directory) -> Vec<KeyRef> {
        let generation = Some(directory.generation());
        if outages.is_empty() && self.silent.is_empty() && self.generation == generation {
            return Vec::new();
        }
        self.generation = generation;
        let mut keys = BTreeMap::new();
        add_one_a_region(&mut keys, directory, |key| outages.knows(key));
        add_one_a_region(&mut keys, directory, |key| {
            // Callers may have found out first that it is over, or its key may have gone.
            self.silent.contains(key.region()) || !self.asked.contains(key.region())
        });
        // Where the directory has no key any more nobody can tell, and nobody cares.
        self.silent.retain(|region| keys.contains_key(region));
        self.asked.extend(keys.keys().cloned());
        keys.into_values().collect()
    }

    /// Says once of a Region that it does not answer, and once that it does again.
    fn tell(&mut self, key: &KeyRef, answer: Result<(), kms::Error>) {
        let region = key.region();
        match answer {
            Err(error) => {
                if self.silent.insert(region.to_owned()) {
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
                if self.silent.remove(region) {
                    tracing::info!(region, %key, "KMS answers again");
                }
            }
        }
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

/// Adds the first KMS key for which `meant` holds of each Region that is not among `keys`.
fn add_one_a_region(
    keys: &mut BTreeMap<String, KeyRef>,
    directory: &Directory,
    meant: impl Fn(&KeyRef) -> bool,
) {
    for tenant in directory.tenants() {
        for key in directory.keys(tenant.id()) {
            for kms_key in key.kms().iter() {
                if !keys.contains_key(kms_key.region()) && meant(kms_key) {
                    keys.insert(kms_key.region().to_owned(), kms_key.clone());
                }
            }
        }
    }
}

/// For so long after a failure a KMS key counts as out of reach, unless it answers.
const LONGEST: Duration = Duration::from_secs(60);
/// Between two looks: an end of an outage shows soon, and costs nobody anything.
const PAUSE: Duration = Duration::from_secs(5);
/// While there are no keys yet, which asks KMS nothing: how it is shows as soon as there are.
const SHORT_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::Clock as _;
    use crate::clock::System;

    const NEAR: [&str; 2] = [
        "eu-west-1:111122223333:key/a",
        "eu-west-1:111122223333:key/b",
    ];
    const FAR: &str = "us-east-1:111122223333:key/a";

    fn arn(rest: &str) -> KeyRef {
        format!("arn:aws:kms:{rest}").parse().expect("an ARN")
    }

    /// A directory with these KMS keys, which comes after `before`.
    fn directory(before: &Directory, keys: &[&str]) -> Directory {
        let keys = keys.iter().enumerate().map(|(number, rest)| {
            format!("[[tenant.key]]\nid = \"k{number}\"\nkms = \"arn:aws:kms:{rest}\"\n")
        });
        let text = format!("[[tenant]]\nid = \"acme\"\n{}", keys.collect::<String>());
        let directory = Directory::parse(&text, Path::new("tenants.toml")).expect("a directory");
        directory.succeed(before)
    }

    fn away() -> Result<(), kms::Error> {
        Err(kms::Error::Unavailable("away".into()))
    }

    #[test]
    fn a_region_is_asked_when_it_comes_and_while_it_does_not_answer() {
        let (mut seen, outages) = (Seen::default(), Outages::new(Metrics::unread()));
        let none = Directory::default();
        assert_eq!(seen.due(&outages, &none), []);
        let near = directory(&none, &NEAR);
        assert_eq!(seen.due(&outages, &near), [arn(NEAR[0])]);
        assert_eq!(seen.due(&outages, &near), []);
        let both = directory(&near, &[NEAR[0], NEAR[1], FAR]);
        assert_eq!(seen.due(&outages, &both), [arn(FAR)]);

        outages.note(&arn(NEAR[1]), System.now());
        assert_eq!(seen.due(&outages, &both), [arn(NEAR[1])]);
        seen.tell(&arn(NEAR[1]), away());
        outages.over(&arn(NEAR[1]));
        assert_eq!(
            seen.due(&outages, &both),
            [arn(NEAR[0])],
            "whether it is over"
        );
        seen.tell(&arn(NEAR[0]), Ok(()));
        assert_eq!(seen.due(&outages, &both), []);
    }

    #[test]
    fn a_region_that_loses_its_last_key_while_it_is_away_is_not_said_to_answer() {
        let (mut seen, outages) = (Seen::default(), Outages::new(Metrics::unread()));
        let both = directory(&Directory::default(), &[NEAR[0], FAR]);
        seen.due(&outages, &both);
        outages.note(&arn(FAR), System.now());
        seen.tell(&arn(FAR), away());
        let near = directory(&both, &NEAR);
        assert_eq!(seen.due(&outages, &near), []);
        assert!(seen.silent.is_empty(), "nothing is left to be told");
        let back = directory(&near, &[NEAR[0], FAR]);
        assert_eq!(seen.due(&outages, &back), [arn(FAR)]);
    }
}
