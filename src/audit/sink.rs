//! Where records go: files, standard output and collectors, written by whoever makes the records or by a thread
//! of its own, under the eyes of a second one, so that a sink that blocks never holds up the calls.

use std::io;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use crate::audit::Audit;
use crate::audit::chain::Chain;
use crate::audit::chain::REMINDER;
use crate::audit::config::Config;
use crate::audit::config::Mode;
use crate::audit::countersign::Countersigning;
use crate::audit::countersign::Tray;
use crate::audit::file::Named;
use crate::audit::key::Key;
use crate::audit::key::KeyError;
use crate::audit::out::Collector;
use crate::audit::out::Remote;
use crate::audit::out::Stream;
use crate::audit::output::Outlet;
use crate::audit::output::Output;
use crate::audit::output::Writers;
use crate::audit::queue::Ask;
use crate::audit::queue::Bounds;
use crate::audit::queue::Full;
use crate::audit::queue::Outcome;
use crate::audit::queue::Queue;
use crate::audit::queue::Waiting;
use crate::audit::relay::Relay;
use crate::clock::Clock;
use crate::clock::System;
use crate::kms::Signer;
use crate::metrics::Audited;
use crate::metrics::Metrics;

/// The sink could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error("cannot open the audit file {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The key that signs records.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// The record was not accepted: the sink failed, or did not take it in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no audit sink accepted the record")]
pub struct Unavailable;

/// A queue in front of an output. Records of concurrent calls are linked and leave in one write.
///
/// A regular file is written by whoever flushes, on its own thread, if nobody else is writing: to
/// wake a thread for it, and to be woken by it, takes longer than the write. All else, and a file
/// for as long as it is slow, is written by a thread of the sink's own. So a pipe that nobody reads
/// blocks no thread that serves; a disk that hangs blocks one at most, until its write returns, and
/// with it the calls whose task that thread runs, which no deadline helps meanwhile. Those of
/// all others fail in time.
pub struct Sink {
    instance: Uuid,
    queue: Arc<Queue>,
    output: Arc<Output>,
    tray: Arc<Tray>,
    mode: Mode,
    metrics: Metrics,
    /// Whether the file shall be opened anew.
    reopen: Arc<AtomicBool>,
    /// Disconnected when the thread has ended.
    ended: Mutex<mpsc::Receiver<()>>,
}

impl Sink {
    /// Opens the sinks that `config` names, `collector` for [`Config::otlp`], and has the first
    /// record written.
    ///
    /// # Errors
    /// [`Error`] when the file cannot be opened for appending, or there is no key to sign with.
    pub fn open(
        config: &Config,
        collector: Option<Box<dyn Collector>>,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        let instance = Uuid::now_v7();
        let reopen = Arc::new(AtomicBool::new(false));
        let mut previous = None;
        let mut writers = Writers::Thread;
        let mut signing_key = config.signing_key.clone();
        let file = match &config.file {
            None => None,
            Some(path) => {
                let failed = |source| Error::File {
                    path: path.clone(),
                    source,
                };
                let rotation = config.rotation();
                let mut file = Named::open(path, rotation, Arc::clone(&reopen)).map_err(failed)?;
                if file.is_regular().map_err(failed)? {
                    previous = file.resume().map_err(failed)?;
                    writers = Writers::Callers;
                    signing_key = config.key_file();
                }
                Some(file)
            }
        };
        let key = match &signing_key {
            Some(path) => Key::of_file(path)?,
            None => Key::of_process()?,
        };
        tracing::info!(
            key = key.public().id(),
            origin = key.origin(),
            "audit records are signed"
        );
        match config.mode {
            Mode::BestEffort => metrics.audit_best_effort(),
            Mode::Required => {}
        }
        let outlet = match (file, collector) {
            (Some(file), None) if !config.stdout => Outlet::one(file),
            (None, None) => Outlet::one(Stream(io::stdout())),
            (file, collector) => {
                writers = Writers::Thread;
                let file = file.map(|file| Relay::new("file", file));
                let stdout = Stream(io::stdout());
                let stdout = config.stdout.then(|| Relay::new("stdout", stdout));
                let collector = collector.map(|one| Relay::new("otlp", Remote(one)));
                let all = [file, stdout, collector];
                Outlet::Many(all.into_iter().flatten().collect())
            }
        };
        let clock: Arc<dyn Clock> = Arc::new(System);
        let chain = Chain::new(instance, key, previous, Arc::clone(&clock));
        let output = Output::new(outlet, writers, chain, clock, metrics.clone());
        let sink = Self::with(instance, output, config.mode, metrics, reopen);
        // Whoever reads it sees from when on there would be records.
        let _ = sink.queue.append(REMINDER, Ask::Now);
        Ok(sink)
    }

    /// A sink into `out`, which its own thread alone writes to, signed by a key of its own.
    ///
    /// # Panics
    /// When the operating system gives no randomness.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        Self::into(Outlet::one(Stream(out)), Writers::Thread, Arc::new(System))
    }

    fn into(outlet: Outlet, writers: Writers, clock: Arc<dyn Clock>) -> Self {
        let instance = Uuid::now_v7();
        let key = Key::of_process().expect("a machine that runs has randomness");
        let chain = Chain::new(instance, key, None, Arc::clone(&clock));
        let metrics = Metrics::unread();
        let output = Output::new(outlet, writers, chain, clock, metrics.clone());
        Self::with(instance, output, Mode::Required, metrics, Arc::default())
    }

    fn with(
        instance: Uuid,
        output: Output,
        mode: Mode,
        metrics: Metrics,
        reopen: Arc<AtomicBool>,
    ) -> Self {
        let queue = Arc::new(Queue::new(BOUNDS));
        let tray = output.tray();
        let output = Arc::new(output);
        let (alive, ended) = mpsc::channel();
        let (queued, written) = (Arc::clone(&queue), Arc::clone(&output));
        start("audit", move || {
            let writer = Writer(&queued);
            writer.run(&written);
            written.stop(PATIENCE / 4);
            drop(writer);
            drop(alive);
        });
        let (queued, written) = (Arc::clone(&queue), Arc::clone(&output));
        start("audit-watch", move || watch(&queued, &written));
        Self {
            instance,
            queue,
            output,
            tray,
            mode,
            metrics,
            reopen,
            ended: Mutex::new(ended),
        }
    }

    /// Has `signer` countersign the records of `audit`, whose sink it is.
    pub(super) fn countersign(
        &self,
        audit: &Arc<Audit>,
        signer: Box<dyn Signer>,
    ) -> Countersigning {
        let queue = Arc::clone(&self.queue);
        Countersigning::start(
            audit,
            queue,
            self.tray.clone(),
            self.metrics.clone(),
            signer,
        )
    }

    /// Whose records it takes.
    pub(super) fn instance(&self) -> Uuid {
        self.instance
    }

    /// Has the file, if it was moved, opened anew before the next record.
    pub(super) fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
    }

    /// Queues `line`, and returns what waits until it is written. With [`Ask::Now`] it is flushed.
    ///
    /// In the mode `best_effort` nothing is waited for, and what is lost is counted. Otherwise the
    /// wait ends when the line's lot is as old as [`PATIENCE`] allows; before that, a line for
    /// which there is no place waits as long for one. A line stays queued then: a sink that comes
    /// back takes it, though its call was told that there is no record.
    pub(super) fn write<'s>(
        &'s self,
        line: &[u8],
        ask: Ask,
    ) -> impl Future<Output = Result<(), Unavailable>> + use<'s> {
        let placed = self.queue.append(line, Ask::Later);
        match ask {
            Ask::Now => self.flush(),
            Ask::Later => {}
        }
        let placed = match (placed, self.mode) {
            (Err(_), Mode::BestEffort) => {
                self.metrics.audited(Audited::Failed, 1);
                None
            }
            (Ok(_), Mode::BestEffort) => None,
            (placed, Mode::Required) => Some(placed.map_err(|full| (full, line.to_vec()))),
        };
        async move {
            let Some(placed) = placed else {
                return Ok(());
            };
            let waiting = match placed {
                Ok(waiting) => waiting,
                Err((full, line)) => self.place(&line, full).await?,
            };
            accepted(waiting).await
        }
    }

    /// Has what was queued with [`Ask::Later`] written. Blocks for as long as a write to a file takes
    /// that was fast so far; never on anything else.
    pub(super) fn flush(&self) {
        if !self.output.near() {
            self.queue.flush();
            return;
        }
        let Some(pen) = self.queue.seize() else {
            return;
        };
        for _ in 0..LOTS {
            let written = self.output.write(&pen);
            if !written || !self.output.near() {
                break;
            }
        }
    }

    /// Queues `line` without waiting or writing: for calls that nobody waits for any more.
    pub(super) fn leave(&self, line: &[u8]) {
        if self.queue.append(line, Ask::Now).is_err() {
            self.metrics.audited(Audited::Failed, 1);
            tracing::error!("the audit queue is full: the record of an abandoned call is lost");
        }
    }

    async fn place(&self, line: &[u8], mut full: Full) -> Result<Waiting, Unavailable> {
        loop {
            accepted(full.0).await?;
            match self.queue.append(line, Ask::Now) {
                Ok(waiting) => return Ok(waiting),
                Err(still) => full = still,
            }
        }
    }
}

impl Drop for Sink {
    /// Waits until what is queued is written, or the sink has had its time: the records of calls
    /// that the end of the process cut off are among them.
    fn drop(&mut self) {
        self.queue.close();
        // Err: the thread has ended, or hangs in a write that nobody can end.
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(PATIENCE);
    }
}

async fn accepted(waiting: Waiting) -> Result<(), Unavailable> {
    match waiting.await {
        Outcome::Accepted => Ok(()),
        Outcome::Failed => Err(Unavailable),
    }
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().name(name.into()).spawn(run);
    // It ends by itself when its queue is closed.
    drop(thread.expect("the process can start a thread at its start"));
}

/// Fails what is late, and has records signed that have waited for long.
fn watch(queue: &Queue, output: &Output) {
    let mut waited = 0;
    while queue.rest(|| output.unsigned()) {
        thread::sleep(TICK);
        queue.tick();
        waited = match output.unsigned() {
            true => waited + 1,
            false => 0,
        };
        // Err: the queue is full, and the next tick comes soon.
        if waited >= UNSIGNED_TICKS && queue.append(REMINDER, Ask::Now).is_ok() {
            waited = 0;
        }
    }
}

/// The thread that writes. However it ends, nobody waits for it in vain.
struct Writer<'a>(&'a Queue);

impl Writer<'_> {
    fn run(&self, output: &Output) {
        while let Some(pen) = self.0.wait() {
            output.write(&pen);
        }
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What waits to be written at most; beyond it, calls wait for a place.
const BOUNDS: Bounds = Bounds {
    lines: 1024,
    bytes: 1 << 20,
    ticks: 7,
};
/// How often late lots are looked for.
const TICK: Duration = Duration::from_millis(250);
/// For so many ticks records may stay unsigned: 10 s.
const UNSIGNED_TICKS: u32 = 40;
/// How long a lot has from its first record, at most: the eighth tick ends it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most lots that one flush writes; what others ask for after that is the thread's.
const LOTS: usize = 4;

#[cfg(test)]
mod tests;
