//! What a restart begins with: entries that were used recently, for which KMS is asked again at a
//! bounded rate, so that callers find them.
//!
//! This only fills the cache, by the way that a caller's miss takes; who reaches an entry is up
//! to permits as ever. Sealing keys are not taken over: how much of its budget a key had spent
//! died with the process, and a limit that may be passed already is none. Their contexts get
//! fresh keys, and what the old ones sealed opens by an entry of its own.

mod file;
mod run;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

pub use file::Error;
pub use file::Flaw;
pub use file::encode;
pub use file::parse;
pub use file::read;
pub use file::write;
pub use run::Warmed;

use crate::clock::Clock;
use crate::clock::Instant;
use crate::datakeys::Config;
use crate::datakeys::slot::Entry;
use crate::datakeys::upstream::Upstream;
use crate::datakeys::upstream::chance;
use crate::message::EncryptedDataKey;
use crate::message::EncryptionContext;
use crate::message::Envelope;
use crate::name::KeyName;
use crate::sync::Mutex;
use crate::sync::lock;

pub(super) use run::run;

/// An entry that was used recently: what KMS is asked to have it again. Nothing of it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recent {
    /// The key's full name.
    pub key: KeyName,
    /// The whole encryption context.
    pub context: EncryptionContext,
    /// When it was last used.
    pub used: Timestamp,
    /// What for.
    pub purpose: Purpose,
}

/// What an entry was used for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// To open messages with these wrapped keys, at least one: each of them is one of ours.
    Open(Vec<EncryptedDataKey>),
    /// To seal.
    Seal,
}

/// How fast KMS is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Most KMS calls a second; a probe after a refusal delays the calls behind it.
    pub rate: u32,
    /// What is waited before the first.
    pub delay: Duration,
}

impl Pace {
    /// The pace of `config`, after a random delay of up to 3 s, by which processes that start
    /// together do not ask together.
    pub fn of(config: &Config) -> Self {
        Self {
            rate: config.warm_rate,
            delay: MOST_DELAY * u32::from(chance()) / 255,
        }
    }
}

/// What an earlier process left and this one has not got to yet, by rank.
#[derive(Default)]
pub(super) struct Backlog(Mutex<BTreeMap<usize, Arc<Recent>>>);

/// One of the backlog.
pub(super) struct Ranked {
    rank: usize,
    one: Arc<Recent>,
}

impl Backlog {
    fn done(&self, rank: usize) {
        lock(&self.0).remove(&rank);
    }
}

/// The [`MOST_ENTRIES`] entries that were used most recently, most recent first.
pub(super) fn recent(upstream: &Upstream) -> Vec<Recent> {
    let Some(backlog) = &upstream.backlog else {
        return Vec::new();
    };
    let moment = Moment::of(&*upstream.clock);
    let shares = upstream.shares.all();
    let mut entries: Vec<(u64, Entry)> = shares.iter().flat_map(|share| share.all()).collect();
    if entries.len() > MOST_ENTRIES {
        entries.select_nth_unstable_by_key(MOST_ENTRIES, |(used, _)| Reverse(*used));
        entries.truncate(MOST_ENTRIES);
    }
    let described = entries
        .iter()
        .filter_map(|(_, entry)| moment.describe(entry));
    let mut recent: Vec<Recent> = described.collect();
    drop(entries);
    let present: HashSet<_> = recent.iter().map(Recent::identity).collect();
    let left: Vec<Recent> = lock(&backlog.0)
        .values()
        .filter(|one| moment.is_recent(one) && !present.contains(&one.identity()))
        .map(|one| Recent::clone(one))
        .collect();
    recent.extend(left);
    recent.sort_by_key(|one| Reverse(one.used));
    recent.truncate(MOST_ENTRIES);
    recent
}

/// Makes `recent` the backlog, but for what was used too long ago, and returns it, most recent
/// first.
pub(super) fn remember(upstream: &Upstream, mut recent: Vec<Recent>) -> VecDeque<Ranked> {
    let Some(backlog) = &upstream.backlog else {
        return VecDeque::new();
    };
    let moment = Moment::of(&*upstream.clock);
    recent.retain(|one| moment.is_recent(one));
    recent.sort_by_key(|one| Reverse(one.used));
    let ranked: BTreeMap<_, _> = recent.into_iter().map(Arc::new).enumerate().collect();
    let ranked = {
        let mut left = lock(&backlog.0);
        *left = ranked;
        left.clone()
    };
    let ranked = ranked.into_iter();
    ranked.map(|(rank, one)| Ranked { rank, one }).collect()
}

impl Recent {
    fn identity(&self) -> (&KeyName, &Purpose, &[u8]) {
        (&self.key, &self.purpose, self.context.serialized())
    }
}

/// Both clocks at one time: the file outlives the boot clock.
#[derive(Clone, Copy)]
struct Moment {
    boot: Instant,
    wall: Timestamp,
}

impl Moment {
    fn of(clock: &dyn Clock) -> Self {
        Self {
            boot: clock.now(),
            wall: clock.wall(),
        }
    }

    /// How long ago `used` was; a time to come is now.
    fn since(self, used: Timestamp) -> Duration {
        Duration::try_from(self.wall.duration_since(used)).unwrap_or_default()
    }

    fn is_recent(self, one: &Recent) -> bool {
        self.since(one.used) <= LONGEST_AGO
    }

    /// `used` in milliseconds of the boot clock, or its beginning.
    fn millis(self, used: Timestamp) -> u64 {
        let ago = self.since(used).as_millis().try_into().unwrap_or(u64::MAX);
        self.boot.millis().saturating_sub(ago)
    }

    /// What it takes to have `entry` again, if it can still serve.
    fn describe(self, entry: &Entry) -> Option<Recent> {
        let ago = Duration::from_millis(self.boot.millis().saturating_sub(entry.used()));
        let of = |key: &KeyName, envelope: &Envelope, purpose| Recent {
            key: key.clone(),
            context: EncryptionContext::parse(envelope.context())
                .expect("an envelope is made of a context"),
            used: self.wall.saturating_sub(ago).unwrap_or(Timestamp::MIN),
            purpose,
        };
        match entry {
            Entry::Opening(slot) => {
                let key = slot.key().filter(|key| key.ended(self.boot).is_none())?;
                let kept = key.kept()?;
                let wrapped = kept.encrypted_data_keys();
                Some(of(key.origin().key().name(), kept, Purpose::Open(wrapped)))
            }
            Entry::Sealing(slot) => {
                let key = slot.key().filter(|key| key.ended(self.boot).is_none())?;
                Some(of(key.origin().key().name(), key.envelope(), Purpose::Seal))
            }
        }
    }
}

/// Most entries that are kept: at the default rate, more would be old again before the last is
/// there.
pub const MOST_ENTRIES: usize = 4096;
/// What was used longer ago is not fetched: as long as a data key may live at most.
const LONGEST_AGO: Duration = Duration::from_secs(3600);
const MOST_DELAY: Duration = Duration::from_secs(3);
