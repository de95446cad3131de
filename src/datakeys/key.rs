//! Data keys by direction: what seals has a budget and ends; what opens has an age.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Instant;
use crate::crypto::Plaintext;
use crate::crypto::random;
use crate::datakeys::Error;
use crate::datakeys::Source;
use crate::datakeys::budget::Budget;
use crate::datakeys::budget::Left;
use crate::datakeys::budget::Spent;
use crate::datakeys::origin::Material;
use crate::datakeys::origin::Origin;
use crate::datakeys::origin::Version;
use crate::datakeys::refresh::Pace;
use crate::datakeys::stream::Opening;
use crate::datakeys::stream::Sealing;
use crate::datakeys::wraps::Made;
use crate::datakeys::wraps::Wrapping;
use crate::message;
use crate::message::Envelope;
use crate::message::Flaw;
use crate::message::Message;
use crate::message::stream::Sealer;
use crate::metrics::Retirement;
use crate::policy::Permit;

/// A data key that seals, with what stands in the header of each of its messages.
pub struct SealingKey {
    material: Arc<Material>,
    envelope: Envelope,
    version: Arc<Version>,
    budget: Budget,
    born: Instant,
    soft: Soft,
    pace: Pace,
    wrapping: Wrapping,
}

/// Where a successor is fetched: before a hard limit, at a point of each key's own.
struct Soft {
    age: Duration,
    left: Left,
}

/// How a reservation went.
pub(super) enum Reservation {
    /// Below all soft limits.
    Fresh,
    /// Past one, or without a wrap that it should have: a successor is due.
    Stale,
}

impl SealingKey {
    /// A key asked for at `born`. `chance` is random: it decides where its soft limits are, so
    /// that keys of one hour do not all end in the same second. One whose `wrapping` is
    /// incomplete asks for a successor at once.
    pub(super) fn new(
        material: Arc<Material>,
        envelope: Envelope,
        version: Arc<Version>,
        born: Instant,
        chance: u8,
        wrapping: Wrapping,
    ) -> Self {
        let limits = material.origin().key().limits();
        let soft = Soft {
            age: limits.max_age * (SOFT_LEAST + SOFT_SPREAD * u32::from(chance) / 255) / 1000,
            left: Left {
                messages: rest(limits.max_messages, chance),
                bytes: rest(limits.max_bytes, chance),
            },
        };
        Self {
            budget: Budget::new(Left {
                messages: limits.max_messages,
                bytes: limits.max_bytes,
            }),
            pace: match wrapping {
                Wrapping::Complete => Pace::new(born + soft.age),
                Wrapping::Incomplete => Pace::soon(born, chance),
            },
            wrapping,
            material,
            envelope,
            version,
            born,
            soft,
        }
    }

    /// Counts messages of these `sizes` in bytes, from the first and as many as there is room for,
    /// for the holder of `permit`, and tells how many that are: at least one. The identity of the
    /// entry says already that its key and context are this key's; a hit is checked all the same,
    /// as if it came from KMS.
    ///
    /// # Errors
    /// Why this key is spent.
    pub(super) fn reserve(
        &self,
        permit: &Permit,
        now: Instant,
        sizes: &[u64],
    ) -> Result<(usize, Reservation), Spoiled> {
        let context = permit.context().serialized();
        if !self.origin().is_of(permit.key()) || self.envelope.context() != context {
            return Err(Spoiled::Mistaken);
        }
        if let Some(why) = self.ended(now) {
            return Err(Spoiled::Spent(why));
        }
        let (count, left) = self.budget.reserve(sizes).map_err(|spent| match spent {
            Spent::Bytes => Spoiled::Spent(Retirement::Bytes),
            Spent::Messages => Spoiled::Spent(Retirement::Messages),
        })?;
        let reservation = match self.soft_limit(now, left) {
            Some(_) => Reservation::Stale,
            None if self.wants_wrap(now) => Reservation::Stale,
            None => Reservation::Fresh,
        };
        Ok((count, reservation))
    }

    /// Why it may serve no more, whatever its budget.
    pub(super) fn ended(&self, now: Instant) -> Option<Retirement> {
        let old = || (now >= self.hard()).then_some(Retirement::Age);
        self.origin().cut().or_else(old)
    }

    /// Which soft limit is passed, if one is.
    pub(super) fn due(&self, now: Instant) -> Option<Retirement> {
        self.soft_limit(now, self.budget.left())
    }

    fn soft_limit(&self, now: Instant, left: Left) -> Option<Retirement> {
        if now.since(self.born) >= self.soft.age {
            return Some(Retirement::Age);
        }
        if left.messages < self.soft.left.messages {
            return Some(Retirement::Messages);
        }
        (left.bytes < self.soft.left.bytes).then_some(Retirement::Bytes)
    }

    /// Whether it is time to look for a successor that has all wraps.
    fn wants_wrap(&self, now: Instant) -> bool {
        let due = || self.pace.next().is_some_and(|next| next <= now.millis());
        self.lacks_wrap() && due()
    }

    /// Whether one of its KMS keys should have wrapped it as well and has not.
    pub(super) fn lacks_wrap(&self) -> bool {
        self.wrapping == Wrapping::Incomplete
    }

    /// Whether it can serve for a good while yet, so that a successor may wait for both its wraps.
    pub(super) fn has_time(&self, now: Instant) -> bool {
        !self.time(now).is_zero()
    }

    /// How long it can serve before callers are about to wait for a successor: up to halfway between
    /// the soft limits and the hard ones.
    pub(super) fn time(&self, now: Instant) -> Duration {
        let left = self.budget.left();
        let is_low =
            left.messages < self.soft.left.messages / 2 || left.bytes < self.soft.left.bytes / 2;
        if is_low || self.ended(now).is_some() {
            return Duration::ZERO;
        }
        let limit = self.origin().key().limits().max_age;
        let half = (self.soft.age + limit) / 2;
        half.saturating_sub(now.since(self.born))
    }

    /// The same data key for the other direction, so that what was wrapped here is never unwrapped
    /// by KMS; `kept` as in [`OpeningKey::new`].
    pub(super) fn opener(&self, kept: Option<Envelope>) -> OpeningKey {
        OpeningKey {
            material: Arc::clone(&self.material),
            version: Arc::clone(&self.version),
            born: self.born,
            kept,
        }
    }

    pub(super) fn origin(&self) -> &Arc<Origin> {
        self.material.origin()
    }

    pub(super) fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// When it was asked for.
    pub(super) fn born(&self) -> Instant {
        self.born
    }

    /// When it serves no more.
    pub(super) fn hard(&self) -> Instant {
        self.born + self.origin().key().limits().max_age
    }

    /// How many messages it was reserved for.
    pub(super) fn uses(&self) -> u64 {
        let most = self.origin().key().limits().max_messages;
        most.saturating_sub(self.budget.left().messages)
    }
}

/// Why a sealing key was not reserved.
pub(super) enum Spoiled {
    /// It is not of this identity: a fault of our own.
    Mistaken,
    /// It has reached a limit or was cut off.
    Spent(Retirement),
}

/// A data key that opens.
pub struct OpeningKey {
    material: Arc<Material>,
    version: Arc<Version>,
    born: Instant,
    kept: Option<Envelope>,
}

impl OpeningKey {
    /// A key asked for at `born`. `kept` is what KMS was asked, where that is kept for a restart.
    pub(super) fn new(
        material: Arc<Material>,
        version: Arc<Version>,
        born: Instant,
        kept: Option<Envelope>,
    ) -> Self {
        Self {
            material,
            version,
            born,
            kept,
        }
    }

    /// Why it may serve no more.
    pub(super) fn ended(&self, now: Instant) -> Option<Retirement> {
        let old = || (now >= self.hard()).then_some(Retirement::Age);
        self.origin().cut().or_else(old)
    }

    pub(super) fn origin(&self) -> &Arc<Origin> {
        self.material.origin()
    }

    /// The context and the wrapped keys that KMS may be asked with, if they are kept.
    pub(super) fn kept(&self) -> Option<&Envelope> {
        self.kept.as_ref()
    }

    /// When it serves no more.
    pub(super) fn hard(&self) -> Instant {
        self.born + self.origin().key().limits().max_age
    }
}

/// A sealing key with messages already counted.
pub struct Reserved {
    pub(super) key: Arc<SealingKey>,
    pub(super) messages: usize,
    /// Where the data key came from.
    pub source: Source,
}

impl Reserved {
    /// How many messages are counted, of the sizes asked for the first.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Seals one message; others that were counted are lost.
    ///
    /// # Errors
    /// The random generator's failure.
    pub fn seal(self, associated_data: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, random::Error> {
        let key = &self.key;
        message::seal(
            key.material.secret(),
            &key.envelope,
            associated_data,
            plaintext,
        )
    }

    /// Seals the first of `texts`, each associated data and plaintext: as many as are still
    /// counted, which then are fewer.
    ///
    /// # Errors
    /// The random generator's failure.
    pub fn seal_each(&mut self, texts: &[(&[u8], &[u8])]) -> Result<Vec<Vec<u8>>, random::Error> {
        let (texts, _) = texts.split_at(texts.len().min(self.messages));
        self.messages -= texts.len();
        let key = &self.key;
        message::seal_each(key.material.secret(), &key.envelope, texts)
    }

    /// Begins one message, and returns its header; others that were counted are lost.
    ///
    /// # Errors
    /// The random generator's failure.
    pub fn begin(self, associated_data: &[u8]) -> Result<(Sealing, Vec<u8>), random::Error> {
        let secret = self.key.material.secret();
        let (sealer, header) = Sealer::new(secret, &self.key.envelope, associated_data)?;
        Ok((Sealing::new(sealer, self.key), header))
    }

    /// The key version that wraps the data key.
    pub fn version(&self) -> &Arc<Version> {
        &self.key.version
    }
}

/// An opening key on its way to a message.
pub struct Opener {
    pub(super) key: Arc<OpeningKey>,
    /// Where the data key came from.
    pub source: Source,
}

impl Opener {
    /// Opens `message`.
    ///
    /// # Errors
    /// [`Flaw`]: nothing of the plaintext is returned.
    pub fn open(&self, message: &Message<'_>, associated_data: &[u8]) -> Result<Plaintext, Flaw> {
        message.open(self.key.material.secret(), associated_data)
    }

    /// Opens each of `messages` with its associated data.
    pub fn open_each(&self, messages: &[(&Message<'_>, &[u8])]) -> Vec<Result<Plaintext, Flaw>> {
        message::open_each(self.key.material.secret(), messages)
    }

    /// Begins to open `message`, of which the header is whole at least: proves that.
    ///
    /// # Errors
    /// [`Flaw`] of the header.
    pub fn begin(self, message: &Message<'_>, associated_data: &[u8]) -> Result<Opening, Flaw> {
        let opener = message.unseal(self.key.material.secret(), associated_data)?;
        Ok(Opening::new(opener, self.key))
    }

    /// The key version that wrapped the data key.
    pub fn version(&self) -> &Arc<Version> {
        &self.key.version
    }
}

/// What KMS gave for sealing under `origin`, as a key.
pub(super) fn sealing(
    made: Made,
    context: &message::EncryptionContext,
    origin: &Arc<Origin>,
    born: Instant,
    chance: u8,
) -> Result<SealingKey, Error> {
    let envelope = Envelope::new(context, &made.wrapped)
        .map_err(|_| Error::Bug("a wrapped data key over the format's limits"))?;
    let version = origin.named(&made.wrapped, true);
    let material = Arc::new(Material::new(made.plaintext, origin));
    let wrapping = made.wrapping;
    Ok(SealingKey::new(
        material, envelope, version, born, chance, wrapping,
    ))
}

/// What is left of `most` at the soft limit: nothing of a small number, which then has none.
fn rest(most: u64, chance: u8) -> u64 {
    let share = 1000 - SOFT_LEAST - SOFT_SPREAD * u32::from(chance) / 255;
    most / 1000 * u64::from(share)
}

/// Soft limits lie at 0.7 to 0.9 of the hard ones, in thousandths: time enough to fetch a
/// successor, and spread enough that keys filled together are not refreshed together.
const SOFT_LEAST: u32 = 700;
const SOFT_SPREAD: u32 = 200;
