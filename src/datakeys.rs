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
//! | `lookup` | the way to a data key: the cache, then KMS |
//! | `id` | which entry is meant |
//! | `key`, `budget` | a data key by its direction, and what it may still do |
//! | `origin` | what data keys under one KMS key have in common: they can be cut off together |
//! | `slot`, `share`, `shares` | an entry, a tenant's entries, all tenants |
//! | `flight`, `upstream`, `refresh` | one KMS call for all who wait; successors ahead of time |
//! | `question`, `wraps` | what is asked of KMS, and of which of a key's KMS keys |
//! | `refusal`, `probe`, `learn` | what KMS refused, and whom that concerns |
//! | `outage` | which KMS keys do not answer |
//! | `waiters` | who waits for KMS, and until when |
//! | `stream` | a data key in use for as long as a stream goes on |
//! | `warm` | what a restart begins with |

mod budget;
mod config;
mod flight;
mod id;
mod key;
mod learn;
mod lookup;
mod origin;
mod outage;
mod probe;
mod question;
mod refresh;
mod refusal;
mod share;
mod shares;
mod slot;
mod stream;
mod upstream;
mod waiters;
pub mod warm;
mod wraps;

use std::convert::Infallible;
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
pub use waiters::Patience;

use crate::clock::Clock;
use crate::directory::Directory;
use crate::kms;
use crate::kms::Kms;
use crate::message::Message;
use crate::metrics::Metrics;
use crate::metrics::Retirement;
use crate::name::KeyName;
use crate::name::TenantId;
use crate::policy::Permit;

use origin::Origin;
use share::Allowance;
use shares::Shares;
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
    /// As many calls wait for KMS as may, of all tenants or of this one.
    #[error("too many calls wait for KMS")]
    Full,
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
    /// KMS was called for it, and names its calls so.
    Miss(Vec<String>),
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
        let upstream = Upstream::new(
            kms,
            clock,
            metrics,
            shares,
            config.refreshes,
            config.waiters,
            backlog,
        );
        Self {
            upstream: Arc::new(upstream),
        }
    }

    /// A data key to seal one message of `bytes` of plaintext with, already counted against the
    /// key's limits.
    ///
    /// # Errors
    /// [`Error::Full`], or what KMS answers, when the cache has no key with room.
    pub async fn sealing(
        &self,
        permit: &Permit,
        bytes: u64,
        patience: &Patience,
    ) -> Result<Reserved, Error> {
        self.sealing_several(permit, &[bytes], patience).await
    }

    /// A data key to seal messages of these `sizes` of plaintext in bytes with, at least one:
    /// [`Reserved::messages`] tells for how many of them, from the first, there was room. Those are
    /// counted against the key's limits; the rest is to be asked for again.
    ///
    /// # Errors
    /// As for one.
    pub async fn sealing_several(
        &self,
        permit: &Permit,
        sizes: &[u64],
        patience: &Patience,
    ) -> Result<Reserved, Error> {
        self.reserved(permit, sizes, patience).await
    }

    /// The data key of `message`, from the cache or unwrapped by KMS under one of the permitted
    /// key's KMS keys. No other KMS key is called, whatever the message names.
    ///
    /// # Errors
    /// [`Error::NoWrappedKey`] and [`Error::Full`] without any KMS call, or what KMS answers.
    pub async fn opening(
        &self,
        permit: &Permit,
        message: &Message<'_>,
        patience: &Patience,
    ) -> Result<Opener, Error> {
        self.opening_several(permit, message, 1, patience).await
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
        patience: &Patience,
    ) -> Result<Opener, Error> {
        let wrapped = message.encrypted_data_keys();
        self.unwrapped(permit, wrapped, messages, patience).await
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
        self.upstream.unusable.clear();
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
        let purged = |origin: &Origin| {
            let current = directory.tenant(origin.key().tenant().id());
            current.is_some_and(|current| current.purged() != origin.key().tenant().purged())
        };
        for share in self.upstream.shares.all() {
            let purged = share.cut_off(Retirement::Purge, purged);
            let outdated = share.cut_off(Retirement::Rotated, outdated);
            if !purged.is_empty() || !outdated.is_empty() {
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

    /// Asks KMS about a key of every Region of the directory, and from then on, every few seconds,
    /// about one of every Region where one does not answer: health knows of an outage, and of its
    /// end, without callers.
    pub fn watch(
        &self,
        directory: impl Fn() -> Arc<Directory> + Send + 'static,
    ) -> impl Future<Output = Infallible> + Send + 'static {
        outage::watch(Arc::clone(&self.upstream), directory)
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.upstream.metrics
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
}
