//! Countersignatures: a key in a KMS signs what the process's own key has signed, so that whoever
//! has that one has no trail to show of his own.
//!
//! KMS is asked aside, by a task: nothing waits for it but the records that are not countersigned
//! yet. What it has signed is put on a [`Tray`], and the chain's next signed record carries it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::interval;
use tokio::time::sleep;
use tokio::time::timeout;

use crate::audit::Audit;
use crate::audit::chain::REMINDER;
use crate::audit::link::Place;
use crate::audit::queue::Ask;
use crate::audit::queue::Queue;
use crate::crypto::random::jittered;
use crate::crypto::signature::PublicKey;
use crate::kms::Error;
use crate::kms::Signer;
use crate::metrics::Countersigned;
use crate::metrics::Dependency;
use crate::metrics::Metrics;
use crate::sync::Mutex;
use crate::sync::lock;

/// What another key says of a record: that it, and all before it, stood there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Countersignature {
    /// A signed record.
    pub(super) of: Place,
    /// The key's ARN.
    pub(super) key_id: String,
    /// The key itself, in base64url.
    pub(super) public_key: String,
    /// How it signs, as KMS names it.
    pub(super) algorithm: String,
    /// Over the record's place, in base64url.
    pub(super) signature: String,
}

impl Countersignature {
    fn new(of: Place, signer: &dyn Signer, public: &PublicKey, signature: &[u8]) -> Self {
        Self {
            of,
            key_id: signer.key().as_str().to_owned(),
            public_key: public.to_string(),
            algorithm: public.algorithm().label().to_owned(),
            signature: BASE64_URL_SAFE_NO_PAD.encode(signature),
        }
    }

    /// The key that has signed; none where it has not.
    pub(super) fn signer(&self) -> Option<PublicKey> {
        let public: PublicKey = self.public_key.parse().ok()?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(&self.signature).ok()?;
        self.of.signed(&public, &signature).then_some(public)
    }
}

/// Between a chain and who countersigns it. Neither waits for the other.
#[derive(Default)]
pub(super) struct Tray {
    progress: watch::Sender<Progress>,
    done: Mutex<Option<Done>>,
}

/// How far a chain has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The last signed record.
    pub(super) signed: Option<Place>,
    /// Calls on record before it.
    pub(super) covered: u64,
    /// Calls on record, all in all.
    pub(super) calls: u64,
}

/// The last countersignature.
struct Done {
    countersignature: Arc<Countersignature>,
    /// Calls on record before the record that it is about.
    covered: u64,
}

impl Tray {
    /// The chain's: has come so far. Whoever waits for a signed record is woken by a new one.
    pub(super) fn publish(&self, now: Progress) {
        self.progress.send_if_modified(|progress| {
            let old = std::mem::replace(progress, now);
            old.signed != now.signed
        });
    }

    /// The chain's: what is to be carried, if the last that was is about the record `carried`.
    pub(super) fn fresh(&self, carried: Option<u64>) -> Option<Arc<Countersignature>> {
        let done = lock(&self.done);
        let one = &done.as_ref()?.countersignature;
        (Some(one.of.seq) > carried).then(|| Arc::clone(one))
    }

    /// The last signed record, if there is more to countersign than there was.
    fn due(&self, progress: &Progress) -> Option<Place> {
        let done = lock(&self.done).as_ref().map(|done| done.covered);
        progress.signed.filter(|_| Some(progress.covered) > done)
    }

    /// Calls on record that are not countersigned, and the record up to which they are.
    fn pending(&self) -> (u64, Option<u64>) {
        let calls = self.progress.borrow().calls;
        match &*lock(&self.done) {
            None => (calls, None),
            Some(done) => {
                let seq = done.countersignature.of.seq;
                (calls.saturating_sub(done.covered), Some(seq))
            }
        }
    }

    /// The countersigner's: a countersignature to be carried, with as many calls before its record.
    pub(super) fn put(&self, countersignature: Countersignature, covered: u64) {
        *lock(&self.done) = Some(Done {
            countersignature: Arc::new(countersignature),
            covered,
        });
    }
}

/// A key that countersigns the records of an [`Audit`], until [`Countersigning::end`].
pub struct Countersigning {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    /// Its last record comes after the last countersignature.
    audit: Arc<Audit>,
}

impl Countersigning {
    /// Has `signer` countersign the records of `audit`, its first one as soon as it can.
    pub(super) fn start(
        audit: &Arc<Audit>,
        queue: Arc<Queue>,
        tray: Arc<Tray>,
        metrics: Metrics,
        signer: Box<dyn Signer>,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = Task {
            signer,
            public: None,
            queue,
            tray,
            metrics,
            failing: false,
        };
        Self {
            stop,
            task: tokio::spawn(task.run(stopped)),
            audit: Arc::clone(audit),
        }
    }

    /// Has what is on record by now countersigned, if that takes 5 s at most, and ends.
    pub async fn end(self) {
        let Self { stop, task, audit } = self;
        drop(stop);
        // Err: it has panicked, and the log says so.
        let _ = task.await;
        drop(audit);
    }
}

struct Task {
    signer: Box<dyn Signer>,
    /// From KMS, once.
    public: Option<PublicKey>,
    queue: Arc<Queue>,
    tray: Arc<Tray>,
    metrics: Metrics,
    /// Whether the last attempt has failed, which is said once.
    failing: bool,
}

impl Task {
    async fn run(mut self, stopped: oneshot::Receiver<()>) {
        let tray = Arc::clone(&self.tray);
        let metrics = self.metrics.clone();
        tokio::select! {
            () = self.keep_up() => {}
            () = measure(&tray, &metrics) => {}
            // Err: nobody will say so any more.
            _ = stopped => {}
        }
        // Err: what is left over is told of.
        let _ = timeout(LAST, self.finish()).await;
        let progress = *tray.progress.borrow();
        if tray.due(&progress).is_some() {
            let (records, _) = tray.pending();
            tracing::warn!(
                records,
                "stopped before KMS had countersigned the last audit records"
            );
        }
    }

    async fn keep_up(&mut self) {
        // The first record, if there is none.
        self.remind();
        let mut progress = self.tray.progress.subscribe();
        loop {
            let due = |progress: &Progress| self.tray.due(progress).is_some();
            // Err: not while the tray is here.
            let _ = progress.wait_for(due).await;
            self.countersign().await;
            sleep(PAUSE).await;
        }
    }

    /// Has the last signed record vouch for all before it, and that one countersigned.
    async fn finish(&mut self) {
        self.remind();
        let mut progress = self.tray.progress.subscribe();
        let all = |progress: &Progress| progress.covered == progress.calls;
        // Err: not while the tray is here.
        let due = progress.wait_for(all).await.map(|now| *now);
        if due.is_ok_and(|now| self.tray.due(&now).is_some()) {
            self.countersign().await;
        }
    }

    /// Has the last signed record countersigned, however often KMS has to be asked.
    async fn countersign(&mut self) {
        let mut pause = FIRST_RETRY;
        while let Err(error) = self.attempt().await {
            self.metrics.countersigned(Countersigned::Failed);
            self.metrics.degraded(Dependency::AuditKms, true);
            if !self.failing {
                let key = self.signer.key().as_str();
                tracing::error!(
                    key,
                    %error,
                    "KMS does not countersign audit records: it is asked again"
                );
            }
            self.failing = true;
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
        self.metrics.countersigned(Countersigned::Done);
        self.metrics.degraded(Dependency::AuditKms, false);
        if self.failing {
            tracing::info!("KMS countersigns audit records again");
        }
        self.failing = false;
        // The next signed record carries it: now.
        self.remind();
    }

    async fn attempt(&mut self) -> Result<(), Error> {
        let public = match self.public {
            Some(public) => public,
            None => *self.public.insert(self.signer.public_key().await?),
        };
        // After an attempt that took long, there may be a later one.
        let Progress {
            signed, covered, ..
        } = *self.tray.progress.borrow();
        let Some(place) = signed else {
            return Ok(());
        };
        let signature = self.signer.sign(&public, &place.message()).await?;
        let signer = self.signer.as_ref();
        let one = Countersignature::new(place, signer, &public, &signature);
        self.tray.put(one, covered);
        Ok(())
    }

    /// Asks for a signed record. One that finds no room in the queue is asked for by what fills it.
    fn remind(&self) {
        let _ = self.queue.append(REMINDER, Ask::Now);
    }
}

/// Keeps the metrics of what is not countersigned yet.
async fn measure(tray: &Tray, metrics: &Metrics) {
    let mut ticks = interval(TICK);
    let mut since = None;
    let mut seen = None;
    loop {
        let now = ticks.tick().await;
        let (records, done) = tray.pending();
        if records == 0 || done != seen {
            // What is left has come since.
            since = None;
        }
        seen = done;
        let age = match records {
            0 => Duration::ZERO,
            _ => now.saturating_duration_since(*since.get_or_insert(now)),
        };
        metrics.not_countersigned(records, age);
    }
}

/// Between two countersignatures: KMS is paid by the call, and asked for 8,640 a day at most.
const PAUSE: Duration = Duration::from_secs(10);
/// After the first failure, and after many.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(20);
/// How long the end waits for KMS.
const LAST: Duration = Duration::from_secs(5);
/// Between two looks at what is not countersigned.
const TICK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
