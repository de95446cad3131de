//! The cache of data keys: a KMS call now and then serves the calls in between, within hard
//! limits.
//!
//! A data key is reached through a [`Permit`] alone, so nobody gets to one without authorization,
//! and an entry's identity is made from the permit's tenant, key and context. Keys have a
//! direction: a [`SealingKey`] owns its budget of messages and bytes, an [`OpeningKey`] can only
//! open. Past a limit there is a new key or an error, never a stale key.

mod budget;
mod flight;
mod id;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use moka::sync::Cache;

use crate::clock::Clock;
use crate::clock::Instant;
use crate::crypto::Secret;
use crate::crypto::random;
use crate::directory::Key;
use crate::kms;
use crate::kms::Kms;
use crate::message;
use crate::message::EncryptedDataKey;
use crate::message::Envelope;
use crate::message::Flaw;
use crate::message::Message;
use crate::policy::Permit;

use budget::Budget;
use flight::Flights;
use id::Id;

/// Data keys of all tenants, and the KMS behind them.
pub struct DataKeys {
    shared: Arc<Shared>,
    sealing_flights: Flights<Arc<SealingKey>>,
    opening_flights: Flights<Arc<OpeningKey>>,
}

/// What a flight, which outlives its callers, works with.
struct Shared {
    kms: Arc<dyn Kms>,
    clock: Arc<dyn Clock>,
    sealing: Cache<Id, Arc<SealingKey>>,
    opening: Cache<Id, Arc<OpeningKey>>,
    counts: Counts,
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
    /// Calls to KMS.
    pub kms_calls: u64,
}

impl DataKeys {
    /// An empty cache in front of `kms`, for at most `capacity` entries in each direction.
    pub fn new(kms: Arc<dyn Kms>, clock: Arc<dyn Clock>, capacity: u64) -> Self {
        // moka's own clock stops in suspend, so its expiry is housekeeping; what counts is
        // `born`, looked at on every use.
        let shared = Shared {
            kms,
            clock,
            sealing: Cache::builder()
                .max_capacity(capacity)
                .time_to_live(LONGEST_AGE)
                .time_to_idle(IDLE)
                .build(),
            opening: Cache::builder()
                .max_capacity(capacity)
                .time_to_live(LONGEST_AGE)
                .time_to_idle(IDLE)
                .build(),
            counts: Counts::default(),
        };
        Self {
            shared: Arc::new(shared),
            sealing_flights: Flights::default(),
            opening_flights: Flights::default(),
        }
    }

    /// A data key to seal one message of `bytes` of plaintext with, already counted against the
    /// key's limits.
    ///
    /// # Errors
    /// What KMS answers, when the cache has no key with room.
    pub async fn sealing(&self, permit: &Permit, bytes: u64) -> Result<Reserved, Error> {
        let key = permit.key();
        if bytes > key.limits().max_bytes {
            return self.single_use(permit).await;
        }
        let id = Id::sealing(key, permit.context());
        let mut found = self
            .shared
            .sealing
            .get(&id)
            .map(|sealing| (sealing, Source::Hit));
        loop {
            if let Some((sealing, source)) = found {
                let alive = sealing.serves(permit, self.shared.clock.now());
                if alive && sealing.budget.reserve(bytes) {
                    self.shared.counts.count(&source);
                    return Ok(Reserved {
                        key: sealing,
                        source,
                    });
                }
                self.shared.retire(&id, &sealing);
            }
            // The flight's own result is used: a full cache may have refused to keep it.
            let (landed, source) = self.sealing_flight(id, permit).await?;
            if matches!(source, Source::Miss(_)) {
                self.fresh(permit, landed.born)?;
            }
            found = Some((landed, source));
        }
    }

    /// The data key of `message`, from the cache or unwrapped by KMS under one of the permitted
    /// key's KMS keys. No other KMS key is called, whatever the message names.
    ///
    /// # Errors
    /// [`Error::NoWrappedKey`] without any KMS call, or what KMS answers.
    pub async fn opening(&self, permit: &Permit, message: &Message<'_>) -> Result<Opener, Error> {
        let key = permit.key();
        let mut last = Error::NoWrappedKey;
        for wrapped in message.encrypted_data_keys() {
            let Some(position) = key.kms().unwrapper(wrapped) else {
                continue;
            };
            match self.opening_one(permit, wrapped, position).await {
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

    /// How the cache has served so far.
    pub fn stats(&self) -> Stats {
        self.shared.counts.stats()
    }

    /// Drops from memory what has expired; without it an expired key lies there until the next
    /// look-up. To be called about once a second.
    pub fn sweep(&self) {
        self.shared.sealing.run_pending_tasks();
        self.shared.opening.run_pending_tasks();
    }

    async fn sealing_flight(
        &self,
        id: Id,
        permit: &Permit,
    ) -> Result<(Arc<SealingKey>, Source), Error> {
        let shared = Arc::clone(&self.shared);
        let key = Arc::clone(permit.key());
        let context = permit.context().clone();
        let cached = || self.shared.sealing.get(&id);
        self.sealing_flights
            .join(id, cached, async move {
                let (sealing, request_id) = shared.generate(&key, context).await?;
                let sealing = Arc::new(sealing);
                shared.sealing.insert(id, Arc::clone(&sealing));
                let opening = sealing.opener(&key);
                shared.opening.insert(opening.id, Arc::new(opening));
                Ok((sealing, request_id))
            })
            .await
    }

    /// A message beyond the limit of bytes has a data key of its own, used once.
    async fn single_use(&self, permit: &Permit) -> Result<Reserved, Error> {
        let context = permit.context().clone();
        let (sealing, request_id) = self.shared.generate(permit.key(), context).await?;
        let source = Source::Miss(request_id);
        self.shared.counts.count(&source);
        Ok(Reserved {
            key: Arc::new(sealing),
            source,
        })
    }

    async fn opening_one(
        &self,
        permit: &Permit,
        wrapped: &EncryptedDataKey,
        position: usize,
    ) -> Result<Opener, Error> {
        let id = Id::opening(permit.key(), permit.context(), wrapped);
        let now = self.shared.clock.now();
        if let Some(opening) = self.shared.opening.get(&id) {
            if opening.born.serves(permit.key(), now) {
                self.shared.counts.count(&Source::Hit);
                return Ok(Opener {
                    key: opening,
                    source: Source::Hit,
                });
            }
            self.shared.opening.invalidate(&id);
        }
        let shared = Arc::clone(&self.shared);
        let key = Arc::clone(permit.key());
        let context = permit.context().clone();
        let wrapped = wrapped.clone();
        let cached = || self.shared.opening.get(&id);
        let (opening, source) = self
            .opening_flights
            .join(id, cached, async move {
                let kms_key = key
                    .kms()
                    .iter()
                    .nth(position)
                    .ok_or(Error::Bug("a position in the list"))?;
                shared.counts.kms_calls.fetch_add(1, Ordering::Relaxed);
                let born = Born {
                    generation: key.generation(),
                    at: shared.clock.now(),
                };
                let unwrapped = shared.kms.decrypt(kms_key, &wrapped, &context).await?;
                let mut version = Version::of(&key, position, &wrapped);
                version.primary &= unwrapped.current;
                let opening = Arc::new(OpeningKey {
                    id,
                    material: Arc::new(unwrapped.plaintext),
                    version,
                    born,
                });
                shared.opening.insert(id, Arc::clone(&opening));
                Ok((opening, unwrapped.request_id))
            })
            .await?;
        self.fresh(permit, opening.born)?;
        self.shared.counts.count(&source);
        Ok(Opener {
            key: opening,
            source,
        })
    }

    /// Refuses a key that was too old when it came: the machine slept while KMS was asked.
    fn fresh(&self, permit: &Permit, born: Born) -> Result<(), Error> {
        match born.serves(permit.key(), self.shared.clock.now()) {
            true => Ok(()),
            false => Err(kms::Error::Unavailable("the answer came too late".into()).into()),
        }
    }
}

impl Shared {
    /// Has KMS make a data key; its age counts from before the call.
    async fn generate(
        &self,
        key: &Arc<Key>,
        context: message::EncryptionContext,
    ) -> Result<(SealingKey, Option<String>), Error> {
        self.counts.kms_calls.fetch_add(1, Ordering::Relaxed);
        let born = Born {
            generation: key.generation(),
            at: self.clock.now(),
        };
        let data_key = self
            .kms
            .generate_data_key(key.kms().primary(), &context)
            .await?;
        let wrapped = data_key.wrapped;
        let sealing = SealingKey {
            material: Arc::new(data_key.plaintext),
            envelope: Envelope::new(&context, std::slice::from_ref(&wrapped))
                .map_err(|_| Error::Bug("a wrapped data key over the format's limits"))?,
            version: Version::of(key, key.kms().primary_version().saturating_sub(1), &wrapped),
            budget: Budget::new(key.limits().max_messages, key.limits().max_bytes),
            context,
            wrapped,
            born,
        };
        Ok((sealing, data_key.request_id))
    }

    /// Takes `spent` out, unless a successor has its place already.
    fn retire(&self, id: &Id, spent: &Arc<SealingKey>) {
        if self
            .sealing
            .get(id)
            .is_some_and(|current| Arc::ptr_eq(&current, spent))
        {
            self.sealing.invalidate(id);
        }
    }
}

/// A data key that seals, with what stands in the header of each of its messages.
pub struct SealingKey {
    material: Arc<Secret<{ kms::DATA_KEY }>>,
    envelope: Envelope,
    version: Version,
    budget: Budget,
    context: message::EncryptionContext,
    wrapped: EncryptedDataKey,
    born: Born,
}

impl SealingKey {
    /// Whether it may serve `permit` now. The identity says so already; a hit is checked all the
    /// same, as if it came from KMS.
    fn serves(&self, permit: &Permit, now: Instant) -> bool {
        self.born.serves(permit.key(), now) && self.context == *permit.context()
    }

    /// The same data key for the other direction, so that what was wrapped here is never unwrapped
    /// by KMS.
    fn opener(&self, key: &Key) -> OpeningKey {
        OpeningKey {
            id: Id::opening(key, &self.context, &self.wrapped),
            material: Arc::clone(&self.material),
            version: self.version.clone(),
            born: self.born,
        }
    }
}

/// A data key that opens.
pub struct OpeningKey {
    id: Id,
    material: Arc<Secret<{ kms::DATA_KEY }>>,
    version: Version,
    born: Born,
}

/// A sealing key with one message already counted.
pub struct Reserved {
    key: Arc<SealingKey>,
    /// Where the data key came from.
    pub source: Source,
}

impl Reserved {
    /// Seals the one message that was reserved.
    ///
    /// # Errors
    /// The random generator's failure.
    pub fn seal(self, associated_data: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, random::Error> {
        message::seal(
            &self.key.material,
            &self.key.envelope,
            associated_data,
            plaintext,
        )
    }

    /// The key version that wraps the data key.
    pub fn version(&self) -> &Version {
        &self.key.version
    }
}

/// An opening key on its way to a message.
pub struct Opener {
    key: Arc<OpeningKey>,
    /// Where the data key came from.
    pub source: Source,
}

impl Opener {
    /// Opens `message`.
    ///
    /// # Errors
    /// [`Flaw`]: nothing of the plaintext is returned.
    pub fn open(&self, message: &Message<'_>, associated_data: &[u8]) -> Result<Vec<u8>, Flaw> {
        message.open(&self.key.material, associated_data)
    }

    /// The key version that wrapped the data key.
    pub fn version(&self) -> &Version {
        &self.key.version
    }
}

/// Which version of a key wrapped a data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `tenants/{tenant}/keys/{key}/versions/{version}`: the position in the key's list of KMS
    /// keys, or the local KMS's own number.
    pub name: Arc<str>,
    /// Whether that is the version that seals, as far as was known when the data key was fetched.
    pub primary: bool,
    /// The KMS key: what stands in the message as provider info.
    pub kms_key: Arc<str>,
}

impl Version {
    fn of(key: &Key, position: usize, wrapped: &EncryptedDataKey) -> Self {
        let number = match wrapped.provider_id.as_str() {
            kms::LOCAL_PROVIDER => wrapped
                .provider_info
                .rsplit('/')
                .next()
                .unwrap_or("0")
                .into(),
            _ => position.saturating_add(1).to_string(),
        };
        Self {
            name: format!("{}/versions/{number}", key.name()).into(),
            primary: position.saturating_add(1) == key.kms().primary_version(),
            kms_key: wrapped.provider_info.as_str().into(),
        }
    }
}

/// When, and under which state of its key, a data key was asked for.
#[derive(Clone, Copy)]
struct Born {
    generation: u64,
    at: Instant,
}

impl Born {
    fn serves(self, key: &Key, now: Instant) -> bool {
        self.generation == key.generation() && now.since(self.at) < key.limits().max_age
    }
}

#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    coalesced: AtomicU64,
    kms_calls: AtomicU64,
}

impl Counts {
    fn count(&self, source: &Source) {
        let counter = match source {
            Source::Coalesced => &self.coalesced,
            Source::Hit => &self.hits,
            Source::Miss(_) => &self.misses,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn stats(&self) -> Stats {
        Stats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            coalesced: self.coalesced.load(Ordering::Relaxed),
            kms_calls: self.kms_calls.load(Ordering::Relaxed),
        }
    }
}

/// The ceiling of every key's `max_age`: after it nothing is worth keeping.
const LONGEST_AGE: Duration = Duration::from_secs(3600);
/// Unused for so long, an entry goes: its tenant is idle.
const IDLE: Duration = Duration::from_secs(60);
