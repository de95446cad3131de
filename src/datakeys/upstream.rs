//! What the cache asks of KMS: data keys that callers wait for, and successors ahead of time.

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
use crate::datakeys::origin::Origin;
use crate::datakeys::outage::Outages;
use crate::datakeys::refresh::Queue;
use crate::datakeys::refusal::Refusals;
use crate::datakeys::share::Share;
use crate::datakeys::shares::Shares;
use crate::datakeys::slot::Entry;
use crate::datakeys::slot::Slot;
use crate::datakeys::waiters::Waiters;
use crate::datakeys::warm::Backlog;
use crate::directory::Key;
use crate::kms;
use crate::kms::Demand;
use crate::kms::KeyRef;
use crate::kms::Kms;
use crate::message::EncryptedDataKey;
use crate::message::EncryptionContext;
use crate::message::Envelope;
use crate::metrics::Metrics;
use crate::metrics::Refresh;
use crate::metrics::Retirement;
use crate::policy::Direction;
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
    /// KMS keys that are disabled, pending deletion or not there, whoever asks.
    pub(super) unusable: Refusals<KeyRef>,
    pub(super) outages: Outages,
}

/// For what KMS is asked, and for whom: owned, because the answer is awaited in a task of its own.
#[derive(Clone)]
pub(super) struct Question {
    pub(super) share: Arc<Share>,
    pub(super) origin: Arc<Origin>,
    /// The entry that the answer is for.
    pub(super) id: Id,
    pub(super) direction: Direction,
    pub(super) context: EncryptionContext,
    pub(super) demand: Demand,
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
            shares,
            clock,
            metrics,
            backlog,
            kms,
            calls: AtomicU64::new(0),
            successors: Queue::new(refreshes),
            waiters: Waiters::new(waiters),
            unusable: Refusals::default(),
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
        self.admit(&question).await?;
        let share = Arc::clone(&question.share);
        let id = question.id;
        let demand = question.demand.clone();
        let cached = || share.sealing(&id)?.key();
        let fetch = Arc::clone(self).fetch_sealing(question);
        share.sealing_flights.join(id, &demand, cached, fetch).await
    }

    /// The opening key of `question`, which is about `wrapped`, likewise.
    pub(super) async fn opening(
        self: &Arc<Self>,
        question: Question,
        wrapped: EncryptedDataKey,
    ) -> Result<(Arc<OpeningKey>, Source), Error> {
        self.admit(&question).await?;
        let share = Arc::clone(&question.share);
        let id = question.id;
        let demand = question.demand.clone();
        let cached = || share.opening(&id)?.key();
        let fetch = Arc::clone(self).fetch_opening(question, wrapped);
        share.opening_flights.join(id, &demand, cached, fetch).await
    }

    /// A sealing key for one message. To seal it stays out of the cache.
    pub(super) async fn single_use(
        self: &Arc<Self>,
        question: &Question,
    ) -> Result<(SealingKey, Option<String>), Error> {
        self.admit(question).await?;
        let (sealing, wrapped, request_id) = self.generate(question).await?;
        self.put_opener(question, &sealing, &wrapped);
        self.shares.make_room();
        Ok((sealing, request_id))
    }

    /// Has a successor fetched for the key in `slot`, which is past a soft limit, unless somebody
    /// else does already.
    pub(super) fn refresh(
        self: &Arc<Self>,
        share: &Arc<Share>,
        slot: &Arc<Slot<SealingKey>>,
        key: &SealingKey,
    ) {
        if !key.pace().begin(self.clock.now()) {
            return;
        }
        let successor = Successor {
            share: Arc::clone(share),
            slot: Arc::downgrade(slot),
        };
        if self.successors.add(successor) {
            let upstream = Arc::clone(self);
            drop(spawn(async move {
                while let Some(successor) = upstream.successors.next() {
                    upstream.succeed(successor).await;
                }
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
        let demand = ahead(key.origin().key());
        let question = Question {
            share: Arc::clone(&share),
            origin: Arc::clone(key.origin()),
            id,
            direction: Direction::Seal,
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
        let (sealing, wrapped, request_id) = self.generate(&question).await?;
        let sealing = Arc::new(sealing);
        let now = self.clock.now();
        let share = &question.share;
        let previous = share.sealing(&question.id);
        // A successor takes over the last use too: unused itself, it has no successor.
        let used = previous
            .as_ref()
            .map_or_else(|| now.millis(), |slot| slot.used());
        let why = previous.and_then(|slot| slot.key()?.due(now));
        self.put_opener(&question, &sealing, &wrapped);
        let slot = Slot::new(question.id, Arc::clone(&sealing), used);
        let why = why.unwrap_or(Retirement::Age);
        share.put(Entry::Sealing(Arc::new(slot)), why, now);
        self.shares.make_room();
        Ok((sealing, request_id))
    }

    /// Has what `sealing` seals opened here without KMS.
    fn put_opener(&self, question: &Question, sealing: &SealingKey, wrapped: &EncryptedDataKey) {
        let now = self.clock.now();
        let opener = Arc::new(sealing.opener(self.kept(&question.context, wrapped)));
        let pairs = sealing.envelope().context();
        let id = Id::opening(question.origin.key(), pairs, wrapped);
        let slot = Slot::new(id, opener, now.millis());
        let entry = Entry::Opening(Arc::new(slot));
        question.share.put(entry, Retirement::Age, now);
    }

    async fn fetch_opening(
        self: Arc<Self>,
        question: Question,
        wrapped: EncryptedDataKey,
    ) -> Landed<Arc<OpeningKey>> {
        // Its age counts from before the call.
        let born = self.clock.now();
        let origin = &question.origin;
        let answer = self.unwrap(&question, &wrapped).await;
        let unwrapped = self.answered(&question, answer)?;
        let primary = unwrapped.current && origin.is_primary();
        let version = origin.named(&wrapped, primary);
        let material = Arc::new(Material::new(unwrapped.plaintext, origin));
        let kept = self.kept(&question.context, &wrapped);
        let opening = Arc::new(OpeningKey::new(material, version, born, kept));
        let now = self.clock.now();
        let slot = Slot::new(question.id, Arc::clone(&opening), now.millis());
        let entry = Entry::Opening(Arc::new(slot));
        question.share.put(entry, Retirement::Age, now);
        self.shares.make_room();
        Ok((opening, unwrapped.request_id))
    }

    /// What an opening key keeps for a restart.
    fn kept(&self, context: &EncryptionContext, wrapped: &EncryptedDataKey) -> Option<Envelope> {
        self.backlog.as_ref()?;
        Envelope::new(context, std::slice::from_ref(wrapped)).ok()
    }

    /// Has KMS make a data key, whose age counts from before the call.
    async fn generate(
        self: &Arc<Self>,
        question: &Question,
    ) -> Result<(SealingKey, EncryptedDataKey, Option<String>), Error> {
        let born = self.clock.now();
        let answer = self.wrap(question).await;
        let data_key = self.answered(question, answer)?;
        let wrapped = data_key.wrapped.clone();
        let request_id = data_key.request_id.clone();
        let origin = &question.origin;
        let sealing = key::sealing(data_key, &question.context, origin, born, chance())?;
        Ok((sealing, wrapped, request_id))
    }

    fn count(&self, question: &Question) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        question.share.tally.called_kms();
    }

    /// A new data key from KMS.
    pub(super) async fn wrap(&self, question: &Question) -> Result<kms::DataKey, kms::Error> {
        self.count(question);
        let (key, context) = (question.origin.kms_key(), &question.context);
        let kms = &self.kms;
        kms.generate_data_key(key, context, &question.demand).await
    }

    /// A known data key from KMS.
    pub(super) async fn unwrap(
        &self,
        question: &Question,
        wrapped: &EncryptedDataKey,
    ) -> Result<kms::Unwrapped, kms::Error> {
        self.count(question);
        let (key, context) = (question.origin.kms_key(), &question.context);
        let kms = &self.kms;
        kms.decrypt(key, wrapped, context, &question.demand).await
    }

    /// Whether KMS would do what `question` asks for.
    pub(super) async fn rehearse(&self, question: &Question) -> Result<(), kms::Error> {
        self.count(question);
        let kms_key = question.origin.kms_key();
        let (operation, context) = (question.operation(), &question.context);
        let kms = &self.kms;
        kms.dry_run(operation, kms_key, context, &question.demand)
            .await
    }

    /// Whether `kms_key` can be used, as far as KMS tells without context.
    pub(super) async fn describe(&self, kms_key: &KeyRef) -> Result<(), kms::Error> {
        self.kms.describe_key(kms_key).await
    }

    fn answered<T>(
        self: &Arc<Self>,
        question: &Question,
        answer: Result<T, kms::Error>,
    ) -> Result<T, Error> {
        let kms_key = question.origin.kms_key();
        match &answer {
            Ok(_) => {
                self.outages.over(kms_key);
                self.allowed(question);
            }
            Err(error) if error.is_refusal() => self.learn(question, error),
            // It was not asked.
            Err(kms::Error::Crowded { .. }) => {}
            Err(_) => self.outages.note(kms_key, self.clock.now()),
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

/// A random number that spreads what would otherwise happen at once. Without randomness nothing
/// is spread, and nothing else is lost.
pub(super) fn chance() -> u8 {
    let mut byte = [0];
    let _ = random::fill(&mut byte);
    u8::from_be_bytes(byte)
}

/// So long a call ahead of time waits for its turn: then it is tried again later.
const AHEAD: Duration = Duration::from_secs(30);
