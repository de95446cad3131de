//! Where records go: a file or standard output, written by a thread of its own, so that a sink
//! that blocks never blocks the threads that serve, under the eyes of a second one, so that it never
//! holds up the calls.

use std::fs::File;
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

use crate::audit::batch::Ask;
use crate::audit::batch::Bounds;
use crate::audit::batch::Full;
use crate::audit::batch::Outcome;
use crate::audit::batch::Queue;
use crate::audit::batch::Waiting;

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

/// A queue in front of the thread that writes. Records of concurrent calls leave in one write.
pub struct Sink {
    queue: Arc<Queue>,
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
            Some(path) => append(path).map(Self::to).map_err(|source| Error {
                path: path.clone(),
                source,
            }),
        }
    }

    /// A sink into `out`.
    pub fn to(mut out: impl Write + Send + 'static) -> Self {
        let queue = Arc::new(Queue::new(BOUNDS));
        let (alive, ended) = mpsc::channel();
        let writers = Arc::clone(&queue);
        start("audit", move || {
            let writer = Writer(&writers);
            writer.run(&mut out);
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
            ended: Mutex::new(ended),
        }
    }

    /// Queues `line`, and returns what waits until it is written. Who is to ask for it is said by
    /// `ask`.
    ///
    /// The wait ends when the line's batch is as old as [`PATIENCE`] allows; before that, a line for
    /// which there is no place waits as long for one. A line stays queued then: a sink that comes
    /// back takes it, though its call was told that there is no record.
    pub(super) fn write<'s>(
        &'s self,
        line: &[u8],
        ask: Ask,
    ) -> impl Future<Output = Result<(), Unavailable>> + use<'s> {
        let placed = self.queue.append(line, ask);
        let placed = placed.map_err(|full| (full, line.to_vec()));
        async move {
            let waiting = match placed {
                Ok(waiting) => waiting,
                Err((full, line)) => self.place(&line, full).await?,
            };
            accepted(waiting).await
        }
    }

    /// Asks for what was queued with [`Ask::Later`].
    pub(super) fn flush(&self) {
        self.queue.flush();
    }

    /// Queues `line` without waiting: for calls that nobody waits for any more.
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

fn append(path: &PathBuf) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// The thread that writes. However it ends, nobody waits for it in vain.
struct Writer<'a>(&'a Queue);

impl Writer<'_> {
    fn run(&self, out: &mut impl Write) {
        let mut lines = Vec::new();
        // After a failed write half a line may stand there: the next one must not grow together
        // with it.
        let mut torn = false;
        while self.0.take(&mut lines) {
            let written = write_all(&lines, torn, out);
            torn = written.is_err();
            self.0.settle(match written {
                Ok(()) => Outcome::Accepted,
                Err(error) => {
                    tracing::error!(%error, "the audit sink failed: calls fail until it takes records");
                    Outcome::Failed
                }
            });
            // A usual batch fits; what a stalled sink has heaped up is given back.
            lines.clear();
            lines.shrink_to(KEPT);
        }
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn write_all(lines: &[u8], torn: bool, out: &mut impl Write) -> io::Result<()> {
    if torn {
        out.write_all(b"\n")?;
    }
    out.write_all(lines)?;
    out.flush()
}

/// What waits for the thread at most; beyond it, calls wait for a place.
const BOUNDS: Bounds = Bounds {
    lines: 1024,
    bytes: 1 << 20,
    ticks: 7,
};
/// How often late batches are looked for.
const TICK: Duration = Duration::from_millis(250);
/// How long a batch has from its first record, at most: the eighth tick ends it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most bytes that are kept for the lines to come.
const KEPT: usize = 256 << 10;

#[cfg(test)]
mod tests {
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
