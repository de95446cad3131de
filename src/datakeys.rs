//! The cache of data keys: a KMS call now and then serves the calls in between, within hard
//! limits.
//!
//! A data key is reached through a [`Permit`] alone, so nobody gets to one without authorization,
//! and an entry's identity is made from the permit's tenant, key and context. Keys have a
//! direction: a [`SealingKey`] owns its budget of messages and bytes, an [`OpeningKey`] can only
//! open. Past a limit there is a new key or an error, never a stale key.
//!
//! | file | what it holds |
//! |---|---|
//! | `id` | which entry is meant |
//! | `key`, `budget` | a data key by its direction, and what it may still do |
//! | `origin` | what data keys under one KMS key have in common: they can be cut off together |
//! | `slot`, `share`, `shares` | an entry, a tenant's entries, all tenants |
//! | `flight`, `upstream`, `refresh` | one KMS call for all who wait; successors ahead of time |
//! | `refusal`, `probe`, `learn` | what KMS refused, and whom that concerns |
//! | `stream` | a data key in use for as long as a stream goes on |
//! | `warm` | what a restart begins with |

mod budget;
mod config;
mod flight;
mod id;
mod key;
mod learn;
mod origin;
mod probe;
mod refresh;
mod refusal;
mod share;
mod shares;
mod slot;
mod stream;
mod upstream;
pub mod warm;

use std::sync::Arc;

pub use config::Config;
pub use key::Opener;
pub use key::OpeningKey;
pub use key::Reserved;
pub use key::SealingKey;
pub use origin::Version;
pub use stream::Cut;
pub use stream::Opening;
pub use stream::Sealing;

use crate::clock::Clock;
use crate::directory::Directory;
use crate::kms;
use crate::kms::Kms;
use crate::message::EncryptedDataKey;
use crate::message::Message;
use crate::metrics::Lookup;
use crate::metrics::Metrics;
use crate::metrics::Retirement;
use crate::name::KeyName;
use crate::name::TenantId;
use crate::policy::Direction;
use crate::policy::Permit;

use id::Id;
use key::Reservation;
use key::Spoiled;
use origin::Origin;
use share::Allowance;
use share::Share;
use shares::Shares;
use slot::Entry;
use upstream::Question;
use upstream::Upstream;
use warm::Backlog;
use warm::Pace;
use warm::Recent;
use warm::Warmed;

/// Data keys of all tenants, and the KMS behind them.
pub struct DataKeys {
    upstream: Arc<Upstream>,
}

/// Why there is no data key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A fault of our own.
    #[error("{0}")]
    Bug(&'static str),
    /// KMS did not give it.
    #[error(transparent)]
    Kms(#[from] kms::Error),
    /// No wrapped key in the message belongs to the permitted key: KMS was not asked.
    #[error("no wrapped data key belongs to the key")]
    NoWrappedKey,
}

/// Where a data key came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Another call's KMS call brought it.
    Coalesced,
    /// It was in the cache.
    Hit,
    /// KMS was called for it, and names its call so.
    Miss(Option<String>),
    /// It was in the cache, past a soft limit: its successor was not there yet.
    Stale,
}

/// Which data keys are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// Those of a key.
    Key(KeyName),
    /// Those of a tenant.
    Tenant(TenantId),
}

/// How often the cache was asked, and how often it had to ask KMS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Served from the cache.
    pub hits: u64,
    /// Served by a KMS call of their own.
    pub misses: u64,
    /// Served by another call's KMS call.
    pub coalesced: u64,
    /// Served from the cache while a successor was due.
    pub stale: u64,
    /// Calls to KMS.
    pub kms_calls: u64,
}

impl DataKeys {
    /// An empty cache in front of `kms`, of the size that `config` says.
    pub fn new(
        kms: Arc<dyn Kms>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        config: &Config,
    ) -> Self {
        let allowance = Allowance {
            entries: config.tenant_entries,
            bytes: config.tenant_bytes,
        };
        let shares = Shares::new(
            config.entries,
            allowance,
            metrics.clone(),
            Arc::clone(&clock),
        );
        let backlog = config.warm_file.as_ref().map(|_| Backlog::default());
        let upstream = Upstream::new(kms, clock, metrics, shares, config.refreshes, backlog);
        Self {
            upstream: Arc::new(upstream),
        }
    }

    /// A data key to seal one message of `bytes` of plaintext with, already counted against the
    /// key's limits.
    ///
    /// # Errors
    /// What KMS answers, when the cache has no key with room.
    pub async fn sealing(&self, permit: &Permit, bytes: u64) -> Result<Reserved, Error> {
        self.sealing_several(permit, &[bytes]).await
    }

    /// A data key to seal messages of these `sizes` of plaintext in bytes with, at least one:
    /// [`Reserved::messages`] tells for how many of them, from the first, there was room. Those are
    /// counted against the key's limits; the rest is to be asked for again.
    ///
    /// # Errors
    /// What KMS answers, when the cache has no key with room.
    pub async fn sealing_several(&self, permit: &Permit, sizes: &[u64]) -> Result<Reserved, Error> {
        let Some(first) = sizes.first() else {
            return Err(Error::Bug("a data key for no message"));
        };
        let id = Id::sealing(permit.key(), permit.context().serialized());
        let share = self.upstream.shares.of(permit.tenant());
        if *first > permit.key().limits().max_bytes {
            return self.single_use(&share, permit, id).await;
        }
        if let Some(reserved) = self.cached_sealing(&share, permit, &id, sizes)? {
            return Ok(reserved);
        }
        loop {
            let question = sealing_question(&share, permit, id);
            let (key, source) = self.upstream.sealing(question).await?;
            // What landed is used itself: a full share may have refused to keep it.
            let now = self.upstream.clock.now();
            match key.reserve(permit, now, sizes) {
                Ok((messages, Reservation::Fresh | Reservation::Stale)) => {
                    self.count(&share, &source, messages);
                    return Ok(Reserved {
                        key,
                        messages,
                        source,
                    });
                }
                Err(Spoiled::Mistaken) => return Err(MISTAKEN),
                Err(Spoiled::Spent(Retirement::Age)) if matches!(source, Source::Miss(_)) => {
                    return Err(too_late());
                }
                // Those who waited as well have used it up, or it was cut off on its way.
                Err(Spoiled::Spent(why)) => retire_sealing(&share, &id, &key, why),
            }
        }
    }

    /// The data key of `message`, from the cache or unwrapped by KMS under one of the permitted
    /// key's KMS keys. No other KMS key is called, whatever the message names.
    ///
    /// # Errors
    /// [`Error::NoWrappedKey`] without any KMS call, or what KMS answers.
    pub async fn opening(&self, permit: &Permit, message: &Message<'_>) -> Result<Opener, Error> {
        self.opening_several(permit, message, 1).await
    }

    /// As [`DataKeys::opening`], for `messages` that have the context and the wrapped keys of
    /// `message`.
    ///
    /// # Errors
    /// As for one.
    pub async fn opening_several(
        &self,
        permit: &Permit,
        message: &Message<'_>,
        messages: usize,
    ) -> Result<Opener, Error> {
        let wrapped = message.encrypted_data_keys();
        self.unwrapped(permit, wrapped, messages).await
    }

    /// Makes the data keys of `scope` unusable, at once and those on their way included, and
    /// returns how many were in memory, when the calls that held one have ended and all are
    /// wiped.
    pub async fn purge(&self, scope: &Scope) -> usize {
        let shares = match scope {
            Scope::All => self.upstream.shares.all(),
            Scope::Key(key) => self
                .upstream
                .shares
                .known(&key.tenant)
                .into_iter()
                .collect(),
            Scope::Tenant(tenant) => self.upstream.shares.known(tenant).into_iter().collect(),
        };
        let meant = |origin: &Origin| match scope {
            Scope::All | Scope::Tenant(_) => true,
            Scope::Key(key) => origin.key().name() == key,
        };
        let mut origins = Vec::new();
        for share in &shares {
            share.refusals.clear();
            origins.extend(share.cut_off(Retirement::Purge, meant));
        }
        let living = origins.iter().map(|origin| origin.living()).sum();
        for share in &shares {
            share.remove_cut();
        }
        for origin in &origins {
            origin.emptied().await;
        }
        living
    }

    /// Drops the data keys of keys that `directory` no longer has in the state that they were
    /// fetched under.
    pub fn follow(&self, directory: &Directory) {
        let outdated = |origin: &Origin| {
            let current = directory.key(origin.key().name());
            current.is_none_or(|current| !origin.is_of(current))
        };
        for share in self.upstream.shares.all() {
            if !share.cut_off(Retirement::Rotated, outdated).is_empty() {
                share.remove_cut();
            }
        }
    }

    /// What a restart should begin with: the entries that were used most recently, most recent
    /// first, and of what [`DataKeys::warm`] has not got to yet. Empty unless
    /// [`Config::warm_file`] is set.
    pub fn recent(&self) -> Vec<Recent> {
        warm::recent(&self.upstream)
    }

    /// Has KMS give the data keys of `recent` again where they still belong to a key of
    /// `directory`, at `pace`, for callers to find in the cache; hands out none. From this call
    /// on they are part of [`DataKeys::recent`]; the rest waits for the future. Does nothing
    /// unless [`Config::warm_file`] is set.
    pub fn warm(
        &self,
        recent: Vec<Recent>,
        pace: Pace,
        directory: impl Fn() -> Arc<Directory> + Send + 'static,
    ) -> impl Future<Output = Warmed> + Send + 'static {
        let upstream = Arc::clone(&self.upstream);
        let backlog = warm::remember(&upstream, recent);
        warm::run(upstream, backlog, pace, directory)
    }

    /// How the cache has served so far.
    pub fn stats(&self) -> Stats {
        let lookups = self.upstream.metrics.lookups();
        Stats {
            hits: lookups.hits,
            misses: lookups.misses,
            coalesced: lookups.coalesced,
            stale: lookups.stale,
            kms_calls: self.upstream.calls(),
        }
    }

    /// Wipes what has served, has successors fetched for what is past its soft age, and tells the
    /// metrics how much there is. To be called about once a second.
    pub fn sweep(&self) {
        let upstream = &self.upstream;
        let now = upstream.clock.now();
        let (mut entries, mut bytes, mut empty) = (0, 0, false);
        for share in upstream.shares.all() {
            for slot in share.sweep(now) {
                if let Some(key) = slot.key() {
                    upstream.refresh(&share, &slot, &key);
                }
            }
            entries += share.entries();
            bytes += share.bytes();
            empty |= share.is_empty();
        }
        if empty {
            upstream.shares.forget_empty();
        }
        upstream.metrics.cache_size(entries, bytes);
        upstream.sweep(now);
    }

    async fn unwrapped(
        &self,
        permit: &Permit,
        wrapped: &[EncryptedDataKey],
        messages: usize,
    ) -> Result<Opener, Error> {
        let share = self.upstream.shares.of(permit.tenant());
        let mut last = Error::NoWrappedKey;
        for wrapped in wrapped {
            let Some((version, kms_key)) = permit.key().kms().unwrapper(wrapped) else {
                continue;
            };
            let id = Id::opening(permit.key(), permit.context().serialized(), wrapped);
            if let Some(opener) = self.cached_opening(&share, permit, &id, messages)? {
                return Ok(opener);
            }
            let question = || Question {
                origin: share.origin(permit.key(), version, kms_key),
                share: Arc::clone(&share),
                id,
                direction: Direction::Open,
                context: permit.context().clone(),
            };
            match self.fetch_opening(question, wrapped, messages).await {
                Ok(opener) => return Ok(opener),
                // Another Region may still answer; a refusal is an answer.
                Err(Error::Kms(error @ (kms::Error::Throttled | kms::Error::Unavailable(_)))) => {
                    last = error.into()
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn cached_sealing(
        &self,
        share: &Arc<Share>,
        permit: &Permit,
        id: &Id,
        sizes: &[u64],
    ) -> Result<Option<Reserved>, Error> {
        let Some(slot) = share.sealing(id) else {
            return Ok(None);
        };
        let now = self.upstream.clock.now();
        let Some(key) = slot.of_use(now) else {
            return Ok(None);
        };
        let (messages, source) = match key.reserve(permit, now, sizes) {
            Ok((messages, Reservation::Fresh)) => (messages, Source::Hit),
            Ok((messages, Reservation::Stale)) => {
                self.upstream.refresh(share, &slot, &key);
                (messages, Source::Stale)
            }
            Err(Spoiled::Mistaken) => return Err(MISTAKEN),
            Err(Spoiled::Spent(why)) => {
                share.retire(&Entry::Sealing(slot), why);
                return Ok(None);
            }
        };
        self.count(share, &source, messages);
        Ok(Some(Reserved {
            key,
            messages,
            source,
        }))
    }

    fn cached_opening(
        &self,
        share: &Share,
        permit: &Permit,
        id: &Id,
        messages: usize,
    ) -> Result<Option<Opener>, Error> {
        let Some(slot) = share.opening(id) else {
            return Ok(None);
        };
        let now = self.upstream.clock.now();
        let Some(key) = slot.of_use(now) else {
            return Ok(None);
        };
        if !key.origin().is_of(permit.key()) {
            return Err(MISTAKEN);
        }
        if let Some(why) = key.ended(now) {
            share.retire(&Entry::Opening(slot), why);
            return Ok(None);
        }
        let source = Source::Hit;
        self.count(share, &source, messages);
        Ok(Some(Opener { key, source }))
    }

    async fn fetch_opening(
        &self,
        question: impl Fn() -> Question,
        wrapped: &EncryptedDataKey,
        messages: usize,
    ) -> Result<Opener, Error> {
        loop {
            let question = question();
            let (share, id) = (Arc::clone(&question.share), question.id);
            let (key, source) = self.upstream.opening(question, wrapped.clone()).await?;
            match key.ended(self.upstream.clock.now()) {
                None => {
                    self.count(&share, &source, messages);
                    return Ok(Opener { key, source });
                }
                Some(Retirement::Age) if matches!(source, Source::Miss(_)) => {
                    return Err(too_late());
                }
                // It was cut off on its way, or somebody else's answer was too late.
                Some(why) => retire_opening(&share, &id, &key, why),
            }
        }
    }

    /// A message beyond the limit of bytes has a data key of its own, used once.
    async fn single_use(
        &self,
        share: &Arc<Share>,
        permit: &Permit,
        id: Id,
    ) -> Result<Reserved, Error> {
        loop {
            let question = sealing_question(share, permit, id);
            let (sealing, request_id) = self.upstream.single_use(&question).await?;
            match sealing.ended(self.upstream.clock.now()) {
                None => {
                    let source = Source::Miss(request_id);
                    self.count(share, &source, 1);
                    return Ok(Reserved {
                        key: Arc::new(sealing),
                        messages: 1,
                        source,
                    });
                }
                Some(Retirement::Age) => return Err(too_late()),
                // It was cut off on its way.
                Some(_) => {}
            }
        }
    }

    /// Counts a look-up that served `messages`: each is one that a caller alone would have made.
    fn count(&self, share: &Share, source: &Source, messages: usize) {
        let (first, others) = match source {
            Source::Coalesced => (Lookup::Coalesced, Lookup::Coalesced),
            Source::Hit => (Lookup::Hit, Lookup::Hit),
            Source::Miss(_) => (Lookup::Miss, Lookup::Coalesced),
            Source::Stale => (Lookup::Stale, Lookup::Stale),
        };
        let messages = u64::try_from(messages).unwrap_or(u64::MAX);
        let metrics = &self.upstream.metrics;
        metrics.lookup(first);
        if messages > 1 {
            metrics.lookups_of(others, messages - 1);
        }
        share.tally.avoided(match first {
            Lookup::Miss => messages - 1,
            Lookup::Coalesced | Lookup::Hit | Lookup::Stale => messages,
        });
    }
}

fn sealing_question(share: &Arc<Share>, permit: &Permit, id: Id) -> Question {
    let key = permit.key();
    let binding = key.kms();
    Question {
        origin: share.origin(key, binding.primary_version(), binding.primary()),
        share: Arc::clone(share),
        id,
        direction: Direction::Seal,
        context: permit.context().clone(),
    }
}

/// Takes `key` out of the entry `id`, if it is still there.
fn retire_sealing(share: &Share, id: &Id, key: &Arc<SealingKey>, why: Retirement) {
    if let Some(slot) = share.sealing(id)
        && slot.key().is_some_and(|current| Arc::ptr_eq(&current, key))
    {
        share.retire(&Entry::Sealing(slot), why);
    }
}

/// As [`retire_sealing`].
fn retire_opening(share: &Share, id: &Id, key: &Arc<OpeningKey>, why: Retirement) {
    if let Some(slot) = share.opening(id)
        && slot.key().is_some_and(|current| Arc::ptr_eq(&current, key))
    {
        share.retire(&Entry::Opening(slot), why);
    }
}

/// The machine slept while KMS was asked.
fn too_late() -> Error {
    kms::Error::Unavailable("the answer came too late".into()).into()
}

const MISTAKEN: Error = Error::Bug("a data key under another one's identity");
