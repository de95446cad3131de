//! Keeps the warm file: read once behind the start, written once a minute and at the end. Nothing
//! that goes wrong with it is more than a warning.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio::time::interval_at;

use crate::broker::Broker;
use crate::cli::chain;
use crate::crypto::digest::sha256;
use crate::datakeys::Config;
use crate::datakeys::warm;
use crate::datakeys::warm::Error;
use crate::datakeys::warm::Flaw;
use crate::datakeys::warm::Pace;
use crate::datakeys::warm::Recent;

/// Keeps the file of one server.
pub(super) struct Keeper {
    path: PathBuf,
    pace: Pace,
    broker: Arc<Broker>,
    /// The digest of what was written last.
    written: Option<[u8; 32]>,
}

/// A keeper at work.
pub(super) struct Keeping {
    ending: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// A keeper for `broker`, if `config` names a file.
    pub(super) fn new(config: &Config, broker: Arc<Broker>) -> Option<Self> {
        Some(Self {
            path: config.warm_file.clone()?,
            pace: Pace::of(config),
            broker,
            written: None,
        })
    }

    /// Begins in the background: callers are served meanwhile.
    pub(super) fn start(self) -> Keeping {
        let (ending, end) = oneshot::channel();
        let task = tokio::spawn(self.keep(end));
        Keeping { ending, task }
    }

    async fn keep(mut self, mut end: oneshot::Receiver<()>) {
        // What the file holds is of nobody as long as no tenants are known.
        while !self.broker.policy().directory().is_known() {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = &mut end => return,
            }
        }
        let recent = tokio::select! {
            recent = self.read() => recent,
            _ = &mut end => return,
        };
        let Some(recent) = recent else {
            return;
        };
        let warming = tokio::spawn(self.warm(recent));
        let mut ticks = interval_at(tokio::time::Instant::now() + PERIOD, PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.save().await,
                // Err: whoever would say so is gone.
                _ = &mut end => break,
            }
        }
        self.save().await;
        warming.abort();
    }

    /// What the file holds. None when it is not ours, or cannot be told: then nothing is written
    /// in its place.
    async fn read(&self) -> Option<Vec<Recent>> {
        let path = self.path.clone();
        let error = match aside(move || warm::read(&path)).await? {
            Ok(recent) => return Some(recent),
            Err(error) => error,
        };
        let foreign = match &error {
            Error::Flawed { flaw, .. } => *flaw == Flaw::Foreign,
            Error::Unreadable { .. } | Error::Unwritable { .. } => true,
        };
        let error = chain(&error);
        if foreign {
            tracing::warn!(
                error,
                "the cache starts empty, and cache.warm_file is left alone: remove the file, or \
                 name another"
            );
            return None;
        }
        tracing::warn!(error, "the cache starts empty: cache.warm_file is damaged");
        Some(Vec::new())
    }

    fn warm(&self, recent: Vec<Recent>) -> impl Future<Output = ()> + Send + 'static {
        let broker = Arc::clone(&self.broker);
        let directory = move || Arc::clone(broker.policy().directory());
        let entries = recent.len();
        let warming = self.broker.data_keys().warm(recent, self.pace, directory);
        async move {
            let warmed = warming.await;
            if entries > 0 {
                tracing::info!(
                    entries,
                    done = warmed.done,
                    known = warmed.known,
                    foreign = warmed.foreign,
                    full = warmed.full,
                    refused = warmed.refused,
                    failed = warmed.failed,
                    "the cache is warm"
                );
            }
        }
    }

    async fn save(&mut self) {
        let (path, broker, before) = (self.path.clone(), Arc::clone(&self.broker), self.written);
        let saved = aside(move || {
            let bytes = warm::encode(&broker.data_keys().recent());
            let digest = sha256(&bytes);
            if before != Some(digest) {
                warm::write(&path, &bytes)?;
            }
            Ok::<_, Error>(digest)
        });
        match saved.await {
            Some(Ok(digest)) => self.written = Some(digest),
            Some(Err(error)) => tracing::warn!(
                error = chain(&error),
                "what the next start would begin with is not kept; it is tried again"
            ),
            None => tracing::warn!("keeping cache.warm_file failed; it is tried again"),
        }
    }
}

impl Keeping {
    /// Writes the file a last time, if the disk takes it soon.
    pub(super) async fn end(self) {
        // Err: the keeper has nothing to keep.
        let _ = self.ending.send(());
        if tokio::time::timeout(LAST, self.task).await.is_err() {
            tracing::warn!("cache.warm_file was not written in time at the end");
        }
    }
}

/// Runs `work` in a thread of its own; none when it panics. The end of the process would wait for
/// a thread of the runtime, whatever keeps its disk.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, outcome) = oneshot::channel();
    let work = move || {
        // Err: nobody waits any more.
        let _ = done.send(work());
    };
    thread::Builder::new().spawn(work).ok()?;
    outcome.await.ok()
}

/// Between two looks for tenants.
const LOOK: Duration = Duration::from_millis(200);
/// Between two writes.
const PERIOD: Duration = Duration::from_secs(60);
/// The end waits for the disk so long.
const LAST: Duration = Duration::from_secs(5);
