//! Where records go: a file or standard output, written by whoever makes the records or by a thread
//! of its own, under the eyes of a second one, so that a sink that blocks never holds up the calls.

use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::Deserialize;

use crate::audit::output::Output;
use crate::audit::output::Writers;
use crate::audit::queue::Ask;
use crate::audit::queue::Bounds;
use crate::audit::queue::Full;
use crate::audit::queue::Outcome;
use crate::audit::queue::Queue;
use crate::audit::queue::Waiting;
use crate::clock::System;

/// Where records go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file to append to, made with mode 0600 if absent; standard output when not set.
    pub file: Option<PathBuf>,
}

/// The sink could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the audit file {path}")]
pub struct Error {
    /// Which file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// The record was not accepted: the sink failed, or did not take it in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no audit sink accepted the record")]
pub struct Unavailable;

/// A queue in front of an output. Records of concurrent calls leave in one write.
///
/// A regular file is written by whoever flushes, on its own thread, if nobody else is writing: to
/// wake a thread for it, and to be woken by it, takes longer than the write. All else, and a file
/// for as long as it is slow, is written by a thread of the sink's own. So a pipe that nobody reads
/// blocks no thread that serves; a disk that hangs blocks one at most, until its write returns, and
/// with it the calls whose task that thread runs, which no deadline helps meanwhile. Those of
/// all others fail in time.
pub struct Sink {
    queue: Arc<Queue>,
    output: Arc<Output>,
    /// Disconnected when the thread has ended.
    ended: Mutex<mpsc::Receiver<()>>,
}

impl Sink {
    /// Opens the sink that `config` names.
    ///
    /// # Errors
    /// [`Error`] when the file cannot be opened for appending.
    pub fn open(config: &Config) -> Result<Self, Error> {
        match &config.file {
            None => Ok(Self::to(io::stdout())),
            Some(path) => append(path).map(Self::with).map_err(|source| Error {
                path: path.clone(),
                source,
            }),
        }
    }

    /// A sink into `out`, which its own thread alone writes to.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        Self::with(Output::new(out, Writers::Thread, Arc::new(System)))
    }

    fn with(output: Output) -> Self {
        let queue = Arc::new(Queue::new(BOUNDS));
        let output = Arc::new(output);
        let (alive, ended) = mpsc::channel();
        let (queued, written) = (Arc::clone(&queue), Arc::clone(&output));
        start("audit", move || {
            let writer = Writer(&queued);
            writer.run(&written);
            drop(writer);
            drop(alive);
        });
        let watched = Arc::clone(&queue);
        start("audit-watch", move || {
            while watched.rest() {
                thread::sleep(TICK);
                watched.tick();
            }
        });
        Self {
            queue,
            output,
            ended: Mutex::new(ended),
        }
    }

    /// Queues `line`, and returns what waits until it is written. With [`Ask::Now`] it is flushed.
    ///
    /// The wait ends when the line's lot is as old as [`PATIENCE`] allows; before that, a line for
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
        let placed = placed.map_err(|full| (full, line.to_vec()));
        async move {
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

/// Opens the file at `path`. Only a regular file is near: a write to anything else, which may stand
/// at a path too, can wait for a reader.
fn append(path: &PathBuf) -> io::Result<Output> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    let writers = if file.metadata()?.is_file() {
        Writers::Callers
    } else {
        Writers::Thread
    };
    Ok(Output::new(file, writers, Arc::new(System)))
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
/// How long a lot has from its first record, at most: the eighth tick ends it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most lots that one flush writes; what others ask for after that is the thread's.
const LOTS: usize = 4;

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use jiff::Timestamp;

    use crate::clock::Manual;

    use super::*;

    /// Takes three bytes, then fails once, then takes all.
    struct Fickle {
        taken: Arc<Mutex<Vec<u8>>>,
        calls: usize,
    }

    impl Write for Fickle {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            let count = match self.calls {
                1 => 3,
                2 => return Err(io::ErrorKind::StorageFull.into()),
                _ => bytes.len(),
            };
            self.taken.lock().expect("no panic").extend(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_torn_line_does_not_spoil_the_next() {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let out = Fickle {
            taken: Arc::clone(&taken),
            calls: 0,
        };
        let sink = Sink::to(out);
        assert_eq!(sink.write(b"first\n", Ask::Now).await, Err(Unavailable));
        assert_eq!(sink.write(b"second\n", Ask::Now).await, Ok(()));
        assert_eq!(*taken.lock().expect("no panic"), b"fir\nsecond\n");
    }

    #[tokio::test]
    async fn records_of_one_flush_leave_in_one_write() {
        let (sizes, written) = mpsc::channel();
        let sink = Sink::to(Sizes(sizes));
        let calls = [b"first\n", b"other\n"].map(|line| sink.write(line, Ask::Later));
        sink.flush();
        for call in calls {
            assert_eq!(call.await, Ok(()));
        }
        drop(sink);
        assert_eq!(written.iter().collect::<Vec<usize>>(), [12]);
    }

    #[tokio::test]
    async fn a_call_that_finds_no_place_waits_for_one() {
        let (sizes, written) = mpsc::channel();
        let sink = Sink::to(Sizes(sizes));
        let lines = BOUNDS.lines + 1;
        let calls: Vec<_> = (0..lines).map(|_| sink.write(b"x", Ask::Later)).collect();
        for call in calls {
            assert_eq!(call.await, Ok(()));
        }
        drop(sink);
        assert_eq!(written.iter().sum::<usize>(), lines);
    }

    #[tokio::test]
    async fn a_writer_that_panics_fails_calls_at_once() {
        let (sizes, written) = mpsc::channel();
        drop(written);
        let sink = Sink::to(Sizes(sizes));
        assert_eq!(sink.write(b"x", Ask::Now).await, Err(Unavailable));
        assert_eq!(sink.write(b"x", Ask::Now).await, Err(Unavailable));
    }

    #[tokio::test]
    async fn what_may_block_for_ever_is_written_by_the_thread() {
        let (reader, out) = io::pipe().unwrap();
        let (sink, hands) = watched(out, Writers::Thread, Duration::ZERO);
        assert_eq!(sink.write(b"x", Ask::Now).await, Ok(()));
        assert_ne!(hands.recv().unwrap(), thread::current().id());
        drop(reader);
    }

    #[tokio::test]
    async fn what_is_near_is_written_by_who_flushes() {
        let (sink, hands) = watched(io::sink(), Writers::Callers, FAST);
        let call = sink.write(b"x", Ask::Later);
        assert!(hands.try_recv().is_err(), "nobody has asked");
        sink.flush();
        assert_eq!(hands.try_recv(), Ok(thread::current().id()));
        assert_eq!(call.await, Ok(()));
        assert_eq!(sink.write(b"x", Ask::Now).await, Ok(()));
        assert_eq!(hands.try_recv(), Ok(thread::current().id()));
    }

    #[tokio::test]
    async fn the_thread_writes_to_a_slow_file_until_it_is_fast_again() {
        let own = thread::current().id();
        let pace = Arc::new(Mutex::new(SLOW));
        let (sink, hands) = timed(io::sink(), Writers::Callers, Arc::clone(&pace));
        let write = || async { assert_eq!(sink.write(b"x", Ask::Now).await, Ok(())) };
        write().await;
        assert_eq!(hands.recv(), Ok(own), "it was not known to be slow");
        write().await;
        assert_ne!(hands.recv(), Ok(own));
        *pace.lock().unwrap() = FAST;
        write().await;
        assert_ne!(hands.recv(), Ok(own), "this one shows that it is fast");
        // The thread may not have put the pen down yet.
        write().await;
        while hands.recv() != Ok(own) {
            write().await;
        }
    }

    #[tokio::test]
    async fn the_record_of_an_abandoned_call_is_written_by_the_thread() {
        let (sink, hands) = watched(io::sink(), Writers::Callers, FAST);
        sink.leave(b"x");
        assert_ne!(hands.recv().unwrap(), thread::current().id());
    }

    #[test]
    fn a_panic_in_a_write_fails_its_lot_and_no_other() {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let out = Brittle {
            taken: Arc::clone(&taken),
            broken: true,
        };
        let sink = Sink::with(Output::new(out, Writers::Callers, Arc::new(System)));
        let fate = |call| futures_util::FutureExt::now_or_never(call);
        let first = sink.write(b"first\n", Ask::Later);
        let flush = std::panic::AssertUnwindSafe(|| sink.flush());
        assert!(std::panic::catch_unwind(flush).is_err());
        assert_eq!(fate(first), Some(Err(Unavailable)));
        assert_eq!(fate(sink.write(b"second\n", Ask::Now)), Some(Ok(())));
        assert_eq!(*taken.lock().unwrap(), b"\nsecond\n");
    }

    #[test]
    fn only_regular_files_are_near() {
        let folder = tempfile::tempdir().unwrap();
        let near = |path: PathBuf| append(&path).unwrap().near();
        assert!(near(folder.path().join("audit.jsonl")));
        assert!(!near("/dev/null".into()));
        let (reader, out) = io::pipe().unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&out);
        assert!(!near(format!("/proc/self/fd/{fd}").into()));
        drop(reader);
    }

    /// Panics at first, then takes all.
    struct Brittle {
        taken: Arc<Mutex<Vec<u8>>>,
        broken: bool,
    }

    impl Write for Brittle {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            assert!(!std::mem::take(&mut self.broken), "the first write");
            self.taken.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A sink whose writes take `pace`, and the threads that make them.
    fn watched(
        out: impl Write + Send + 'static,
        writers: Writers,
        pace: Duration,
    ) -> (Sink, mpsc::Receiver<ThreadId>) {
        timed(out, writers, Arc::new(Mutex::new(pace)))
    }

    fn timed(
        out: impl Write + Send + 'static,
        writers: Writers,
        pace: Arc<Mutex<Duration>>,
    ) -> (Sink, mpsc::Receiver<ThreadId>) {
        let clock = Arc::new(Manual::new(Timestamp::UNIX_EPOCH));
        let (tell, hands) = mpsc::channel();
        let out = Watched {
            out,
            tell,
            clock: Arc::clone(&clock),
            pace,
        };
        (Sink::with(Output::new(out, writers, clock)), hands)
    }

    /// Tells which thread writes; each write takes its time.
    struct Watched<W> {
        out: W,
        tell: mpsc::Sender<ThreadId>,
        clock: Arc<Manual>,
        pace: Arc<Mutex<Duration>>,
    }

    impl<W: Write> Write for Watched<W> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.clock.advance(*self.pace.lock().unwrap());
            self.tell.send(thread::current().id()).unwrap();
            self.out.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.out.flush()
        }
    }

    const FAST: Duration = Duration::from_millis(1);
    const SLOW: Duration = Duration::from_millis(50);

    /// Tells how much it is given at once. Panics when nobody listens.
    struct Sizes(mpsc::Sender<usize>);

    impl Write for Sizes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.len()).expect("somebody listens");
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
