//! What the cache asks of KMS: data keys that callers wait for, and successors ahead of time.

use std::mem;
use std::slice;
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use crate::clock::Clock;
use crate::clock::Instant;
use crate::crypto::random;
use crate::datakeys::Error;
use crate::datakeys::Source;
use crate::datakeys::flight::Landed;
use crate::datakeys::id::Id;
use crate::datakeys::key;
use crate::datakeys::key::OpeningKey;
use crate::datakeys::key::SealingKey;
use crate::datakeys::origin::Material;
use crate::datakeys::outage::Outages;
use crate::datakeys::question::Ask;
use crate::datakeys::question::Question;
use crate::datakeys::question::Wraps;
use crate::datakeys::refresh::Queue;
use crate::datakeys::refusal::Refusals;
use crate::datakeys::share::Share;
use crate::datakeys::shares::Shares;
use crate::datakeys::slot::Entry;
use crate::datakeys::slot::Slot;
use crate::datakeys::waiters::Waiters;
use crate::datakeys::warm::Backlog;
use crate::datakeys::wraps::Need;
use crate::datakeys::wraps::Reported;
use crate::directory::Key;
use crate::kms;
use crate::kms::Demand;
use crate::kms::KeyRef;
use crate::kms::Kms;
use crate::message::EncryptedDataKey;
use crate::message::EncryptionContext;
use crate::message::Envelope;
use crate::metrics::KmsOperation;
use crate::metrics::Metrics;
use crate::metrics::Refresh;
use crate::metrics::Retirement;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering;
use crate::sync::spawn;

/// KMS, and the shares that its answers go to.
pub(super) struct Upstream {
    pub(super) shares: Shares,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    /// None where nothing is kept for a restart.
    pub(super) backlog: Option<Backlog>,
    kms: Arc<dyn Kms>,
    calls: AtomicU64,
    successors: Queue<Successor>,
    pub(super) waiters: Waiters,
    /// KMS keys that are disabled, pending deletion or not there in their preferred Region, whoever asks
    /// and whatever replicas they name.
    pub(super) unusable: Refusals<KeyRef>,
    pub(super) outages: Outages,
    /// KMS keys whose missing wraps are in the log.
    pub(super) reported: Reported,
}

/// An entry whose key is to be succeeded.
struct Successor {
    share: Arc<Share>,
    slot: Weak<Slot<SealingKey>>,
}

impl Upstream {
    /// An upstream that has at most `refreshes` successors fetched, and `waiters` waiting, at once.
    pub(super) fn new(
        kms: Arc<dyn Kms>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        shares: Shares,
        refreshes: usize,
        waiters: u64,
        backlog: Option<Backlog>,
    ) -> Self {
        Self {
            outages: Outages::new(metrics.clone()),
            waiters: Waiters::new(waiters, metrics.clone()),
            shares,
            clock,
            metrics,
            backlog,
            kms,
            calls: AtomicU64::new(0),
            successors: Queue::new(refreshes),
            unusable: Refusals::default(),
            reported: Reported::default(),
        }
    }

    /// Calls to KMS so far.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The sealing key of `question`, by the one KMS call that is under way for it.
    pub(super) async fn sealing(
        self: &Arc<Self>,
        question: Question,
    ) -> Result<(Arc<SealingKey>, Source), Error> {
        self.admit_making(&question).await?;
        let share = Arc::clone(&question.share);
        let id = question.id;
        let demand = question.demand.clone();
        let cached = || share.sealing(&id)?.key();
        let fetch = Arc::clone(self).fetch_sealing(question);
        share.sealing_flights.join(id, &demand, cached, fetch).await
    }

    /// The opening key of `question`, which is about `wraps` and of the origin of the first,
    /// likewise.
    pub(super) async fn opening(
        self: &Arc<Self>,
        question: Question,
        wraps: Wraps,
    ) -> Result<(Arc<OpeningKey>, Source), Error> {
        self.admit(&question.ask(&wraps.first.kms_key, KmsOperation::Decrypt))
            .await?;
        let share = Arc::clone(&question.share);
        let id = question.id;
        let demand = question.demand.clone();
        let cached = || share.opening(&id)?.key();
        let fetch = Arc::clone(self).fetch_opening(question, wraps);
        share.opening_flights.join(id, &demand, cached, fetch).await
    }

    /// A sealing key for one message. To seal it stays out of the cache.
    pub(super) async fn single_use(
        self: &Arc<Self>,
        question: &Question,
    ) -> Result<(SealingKey, Vec<String>), Error> {
        self.admit_making(question).await?;
        let (sealing, request_ids) = self.sealing_key(question, Need::One).await?;
        self.put_opener(question, &sealing);
        self.shares.make_room();
        Ok((sealing, request_ids))
    }

    /// Has a successor fetched for the key in `slot`, which is past a soft limit or lacks a wrap,
    /// unless somebody else does already.
    pub(super) fn refresh(
        self: &Arc<Self>,
        share: &Arc<Share>,
        slot: &Arc<Slot<SealingKey>>,
        key: &SealingKey,
    ) {
        let now = self.clock.now();
        if !key.pace().begin(now) {
            return;
        }
        let kms_keys = key.origin().kms_keys();
        let mut all = kms_keys.iter();
        let waits = kms_keys.additional().is_some() && key.has_time(now);
        if waits && all.any(|kms_key| self.outages.knows(kms_key)) {
            // One with a wrap alone would be no better.
            return key.pace().put_off(now);
        }
        let successor = Successor {
            share: Arc::clone(share),
            slot: Arc::downgrade(slot),
        };
        let tenant = key.origin().key().tenant();
        if self.successors.add(tenant.id(), tenant.weight(), successor) {
            let upstream = Arc::clone(self);
            drop(spawn(async move {
                let succeed = |successor| upstream.succeed(successor);
                upstream.successors.run(succeed).await;
            }));
        }
    }

    /// Forgets what KMS said long ago, and tells metrics and health whether it answers.
    pub(super) fn sweep(&self, now: Instant) {
        self.unusable.sweep(now);
        self.outages.sweep(now);
        self.metrics.waiters(self.waiters.count());
    }

    async fn succeed(self: &Arc<Self>, successor: Successor) {
        let Successor { share, slot } = successor;
        let Some((slot, key)) = slot.upgrade().and_then(|slot| {
            let key = slot.key()?;
            Some((slot, key))
        }) else {
            return;
        };
        let context = EncryptionContext::parse(key.envelope().context())
            .expect("an envelope is made of a context");
        let id = *slot.id();
        // Others' callers may keep a call ahead of time from its turn, but not until its own callers
        // have nothing left.
        let demand = ahead_of(key.time(self.clock.now()), key.origin().key());
        let question = Question {
            share: Arc::clone(&share),
            origin: Arc::clone(key.origin()),
            id,
            context,
            demand: demand.clone(),
        };
        // A flight for a caller may have landed since this one was queued.
        let cached = || {
            let current = share.sealing(&id)?;
            current.key().filter(|_| !Arc::ptr_eq(&current, &slot))
        };
        let fetch = Arc::clone(self).fetch_sealing(question);
        let flight = share.sealing_flights.join(id, &demand, cached, fetch);
        let outcome = match flight.await {
            Ok(_) => Refresh::Done,
            Err(error) => {
                key.pace().failed(self.clock.now(), chance());
                match error {
                    Error::Kms(error) if error.is_refusal() => Refresh::Refused,
                    Error::Bug(_) | Error::Full | Error::Kms(_) | Error::NoWrappedKey => {
                        Refresh::Failed
                    }
                }
            }
        };
        self.metrics.refreshed(outcome);
    }

    async fn fetch_sealing(self: Arc<Self>, question: Question) -> Landed<Arc<SealingKey>> {
        let share = &question.share;
        let current = share.sealing(&question.id).and_then(|slot| slot.key());
        let need = match current {
            Some(current) if current.has_time(self.clock.now()) => Need::All,
            Some(_) | None => Need::One,
        };
        let (sealing, request_ids) = self.sealing_key(&question, need).await?;
        let sealing = Arc::new(sealing);
        let now = self.clock.now();
        let previous = share.sealing(&question.id);
        // A successor takes over the last use too: unused itself, it has no successor.
        let used = previous
            .as_ref()
            .map_or_else(|| now.millis(), |slot| slot.used());
        let why = previous.and_then(|slot| {
            let key = slot.key()?;
            let incomplete = key.lacks_wrap().then_some(Retirement::Incomplete);
            key.due(now).or(incomplete)
        });
        self.put_opener(&question, &sealing);
        let slot = Slot::new(question.id, Arc::clone(&sealing), used);
        let why = why.unwrap_or(Retirement::Age);
        share.put(Entry::Sealing(Arc::new(slot)), why, now);
        self.shares.make_room();
        Ok((sealing, request_ids))
    }

    /// Has what `sealing` seals opened here without KMS.
    fn put_opener(&self, question: &Question, sealing: &SealingKey) {
        let now = self.clock.now();
        let wrapped = sealing.envelope().encrypted_data_keys();
        let pairs = sealing.envelope().context();
        let Some(id) = Id::opening(question.origin.key(), pairs, &wrapped) else {
            return;
        };
        let opener = Arc::new(sealing.opener(self.kept(&question.context, &wrapped)));
        let slot = Slot::new(id, opener, now.millis());
        let entry = Entry::Opening(Arc::new(slot));
        question.share.put(entry, Retirement::Age, now);
    }

    async fn fetch_opening(
        self: Arc<Self>,
        question: Question,
        wraps: Wraps,
    ) -> Landed<Arc<OpeningKey>> {
        // Its age counts from before the call.
        let born = self.clock.now();
        let (wrap, unwrapped) = self.unwrap_any(&question, &wraps).await?;
        let origin = &wrap.origin;
        let primary = unwrapped.current && origin.is_primary();
        let version = origin.named(slice::from_ref(&wrap.wrapped), primary);
        let material = Arc::new(Material::new(unwrapped.plaintext, origin));
        let kept = self.kept(&question.context, &wraps.wrapped());
        let opening = Arc::new(OpeningKey::new(material, version, born, kept));
        let now = self.clock.now();
        let slot = Slot::new(question.id, Arc::clone(&opening), now.millis());
        let entry = Entry::Opening(Arc::new(slot));
        question.share.put(entry, Retirement::Age, now);
        self.shares.make_room();
        Ok((opening, unwrapped.request_id.into_iter().collect()))
    }

    /// What an opening key keeps for a restart.
    fn kept(&self, context: &EncryptionContext, wrapped: &[EncryptedDataKey]) -> Option<Envelope> {
        self.backlog.as_ref()?;
        Envelope::new(context, wrapped).ok()
    }

    /// A new data key from KMS, whose age counts from before the call.
    async fn sealing_key(
        self: &Arc<Self>,
        question: &Question,
        need: Need,
    ) -> Result<(SealingKey, Vec<String>), Error> {
        let born = self.clock.now();
        let mut made = self.make(question, need).await?;
        let request_ids = mem::take(&mut made.request_ids);
        let (context, origin) = (&question.context, &question.origin);
        let sealing = key::sealing(made, context, origin, born, chance())?;
        Ok((sealing, request_ids))
    }

    /// KMS, for one more call of the tenant of `question`.
    pub(super) fn kms(&self, question: &Question) -> &dyn Kms {
        self.calls.fetch_add(1, Ordering::Relaxed);
        question.share.tally.called_kms();
        &*self.kms
    }

    /// Whether KMS would do it.
    pub(super) async fn rehearse(&self, ask: &Ask<'_>) -> Result<(), kms::Error> {
        let (context, demand) = (&ask.question.context, &ask.question.demand);
        let kms = self.kms(ask.question);
        kms.dry_run(ask.operation, ask.kms_key, context, demand)
            .await
    }

    /// Whether `kms_key` can be used, as far as KMS tells without context.
    pub(super) async fn describe(&self, kms_key: &KeyRef) -> Result<(), kms::Error> {
        self.kms.describe_key(kms_key).await
    }

    /// Draws the conclusions from an answer.
    pub(super) fn answered<T>(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        answer: Result<T, kms::Error>,
    ) -> Result<T, Error> {
        match &answer {
            Ok(_) => {
                self.outages.over(ask.kms_key);
                self.allowed(ask);
            }
            Err(error) if error.is_refusal() => self.learn(ask, error),
            // It was not asked, or is there and has no room, or nobody can read what it said.
            Err(kms::Error::Crowded { .. } | kms::Error::Invalid(_) | kms::Error::Throttled) => {}
            Err(_) => self.outages.note(ask.kms_key, self.clock.now()),
        }
        Ok(answer?)
    }
}

/// What is asked for `key` ahead of time.
pub(super) fn ahead(key: &Key) -> Demand {
    let tenant = key.tenant();
    let until = tokio::time::Instant::now() + AHEAD;
    Demand::ahead(tenant.id().clone(), tenant.weight(), until)
}

/// As [`ahead`], when callers are about to wait for it after so much `time`.
pub(super) fn ahead_of(time: Duration, key: &Key) -> Demand {
    let tenant = key.tenant();
    let now = tokio::time::Instant::now();
    Demand::ahead_of(
        now + time,
        tenant.id().clone(),
        tenant.weight(),
        now + AHEAD,
    )
}

/// A random number that spreads what would otherwise happen at once. Without randomness nothing
/// is spread, and nothing else is lost.
pub(super) fn chance() -> u8 {
    let mut byte = [0];
    let _ = random::fill(&mut byte);
    u8::from_be_bytes(byte)
}

/// So long a call ahead of time waits for its turn: then it is tried again later.
pub(super) const AHEAD: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::name::TenantId;

    #[tokio::test]
    async fn one_that_panics_is_through_and_its_runner_goes_on() {
        let queue = Queue::new(8);
        let tenants = ["acme", "globex"].map(|name| name.parse::<TenantId>().expect("a tenant"));
        let mut runners = 0;
        for round in 1..=3 {
            for number in 0..10 {
                for tenant in &tenants {
                    runners += usize::from(queue.add(tenant, 1, number));
                }
            }
            let done = AtomicUsize::new(0);
            for _ in 0..mem::take(&mut runners) {
                let work = async |number: u32| {
                    done.fetch_add(1, Ordering::SeqCst);
                    assert!(number.is_multiple_of(2), "as told");
                };
                queue.run(work).await;
            }
            assert_eq!(done.into_inner(), 20, "in round {round}");
        }
    }
}
