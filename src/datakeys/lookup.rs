//! The look-up of a data key: in the cache, then with KMS, until there is one that may be used.

use std::sync::Arc;

use crate::datakeys::DataKeys;
use crate::datakeys::Error;
use crate::datakeys::Source;
use crate::datakeys::id::Id;
use crate::datakeys::key::Opener;
use crate::datakeys::key::OpeningKey;
use crate::datakeys::key::Reservation;
use crate::datakeys::key::Reserved;
use crate::datakeys::key::SealingKey;
use crate::datakeys::key::Spoiled;
use crate::datakeys::question::Question;
use crate::datakeys::question::Wraps;
use crate::datakeys::question::ours;
use crate::datakeys::share::Share;
use crate::datakeys::slot::Entry;
use crate::datakeys::waiters::Patience;
use crate::kms;
use crate::message::EncryptedDataKey;
use crate::metrics::Lookup;
use crate::metrics::Retirement;
use crate::policy::Permit;

impl DataKeys {
    /// As [`DataKeys::sealing_several`].
    pub(super) async fn reserved(
        &self,
        permit: &Permit,
        sizes: &[u64],
        patience: &Patience,
    ) -> Result<Reserved, Error> {
        let Some(first) = sizes.first() else {
            return Err(Error::Bug("a data key for no message"));
        };
        let id = Id::sealing(permit.key(), permit.context().serialized());
        let share = self.upstream.shares.of(permit.tenant());
        if *first > permit.key().limits().max_bytes {
            return Box::pin(self.single_use(&share, permit, id, patience)).await;
        }
        if let Some(reserved) = self.cached_sealing(&share, permit, &id, sizes)? {
            return Ok(reserved);
        }
        patience.wait(&self.upstream.waiters, &share)?;
        loop {
            let question = sealing_question(&share, permit, id, patience);
            // In a box: most calls never wait, and would carry its state along.
            let (key, source) = Box::pin(self.upstream.sealing(question)).await?;
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

    /// A message beyond the limit of bytes has a data key of its own, used once.
    pub(super) async fn single_use(
        &self,
        share: &Arc<Share>,
        permit: &Permit,
        id: Id,
        patience: &Patience,
    ) -> Result<Reserved, Error> {
        patience.wait(&self.upstream.waiters, share)?;
        loop {
            let question = sealing_question(share, permit, id, patience);
            let (sealing, request_ids) = self.upstream.single_use(&question).await?;
            match sealing.ended(self.upstream.clock.now()) {
                None => {
                    let source = Source::Miss(request_ids);
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

    /// The data key of one of `wrapped`, for as many `messages`.
    pub(super) async fn unwrapped(
        &self,
        permit: &Permit,
        wrapped: &[EncryptedDataKey],
        messages: usize,
        patience: &Patience,
    ) -> Result<Opener, Error> {
        let share = self.upstream.shares.of(permit.tenant());
        let (key, pairs) = (permit.key(), permit.context().serialized());
        let ours = ours(key, wrapped).map(|(one, _)| one);
        let id = Id::opening(key, pairs, ours).ok_or(Error::NoWrappedKey)?;
        if let Some(opener) = self.cached_opening(&share, permit, &id, messages)? {
            return Ok(opener);
        }
        patience.wait(&self.upstream.waiters, &share)?;
        loop {
            let wraps = Wraps::of(&share, key, wrapped).ok_or(Error::NoWrappedKey)?;
            let question = Question {
                origin: Arc::clone(&wraps.first.origin),
                share: Arc::clone(&share),
                id,
                context: permit.context().clone(),
                demand: patience.demand(permit),
            };
            // As in `reserved`.
            let (key, source) = Box::pin(self.upstream.opening(question, wraps)).await?;
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

    /// Counts a look-up that served `messages`: each is one that a caller alone would have made.
    fn count(&self, share: &Share, source: &Source, messages: usize) {
        let metrics = &self.upstream.metrics;
        if !metrics.counting() {
            return;
        }
        let (first, others) = match source {
            Source::Coalesced => (Lookup::Coalesced, Lookup::Coalesced),
            Source::Hit => (Lookup::Hit, Lookup::Hit),
            Source::Miss(_) => (Lookup::Miss, Lookup::Coalesced),
            Source::Stale => (Lookup::Stale, Lookup::Stale),
        };
        let messages = u64::try_from(messages).unwrap_or(u64::MAX);
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

fn sealing_question(share: &Arc<Share>, permit: &Permit, id: Id, patience: &Patience) -> Question {
    let key = permit.key();
    let binding = key.kms();
    Question {
        origin: share.origin(key, binding.primary_version(), binding.primary()),
        share: Arc::clone(share),
        id,
        context: permit.context().clone(),
        demand: patience.demand(permit),
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
