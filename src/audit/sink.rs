//! Where records go: a file or standard output, written by a thread of its own, so that a sink
//! that blocks never blocks the threads that serve.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

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
    queue: Option<mpsc::Sender<Job>>,
    /// Disconnected when the thread has ended.
    ended: Mutex<std::sync::mpsc::Receiver<()>>,
}

struct Job {
    line: Vec<u8>,
    /// Told when write(2) has returned, well or not; `None` when nobody waits.
    accepted: Option<oneshot::Sender<io::Result<()>>>,
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
        let (queue, mut jobs) = mpsc::channel(QUEUE);
        let (alive, ended) = std::sync::mpsc::channel();
        thread::Builder::new()
            .name("audit".into())
            .spawn(move || {
                write_all(&mut jobs, &mut out);
                drop(alive);
            })
            .expect("the process can start a thread at its start");
        Self {
            queue: Some(queue),
            ended: Mutex::new(ended),
        }
    }

    /// Queues `line` and waits until it is written.
    pub(super) async fn write(&self, line: Vec<u8>) -> Result<(), Unavailable> {
        let (accepted, written) = oneshot::channel();
        let job = Job {
            line,
            accepted: Some(accepted),
        };
        let Some(queue) = &self.queue else {
            return Err(Unavailable);
        };
        let accepted = async {
            queue.send(job).await.map_err(|_| Unavailable)?;
            match written.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(Unavailable),
            }
        };
        match tokio::time::timeout(PATIENCE, accepted).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Unavailable),
        }
    }

    /// Queues `line` without waiting: for calls that nobody waits for any more.
    pub(super) fn leave(&self, line: Vec<u8>) {
        let job = Job {
            line,
            accepted: None,
        };
        let queued = self.queue.as_ref().map(|queue| queue.try_send(job));
        if !matches!(queued, Some(Ok(()))) {
            tracing::error!("the audit queue is full: the record of an abandoned call is lost");
        }
    }
}

impl Drop for Sink {
    /// Waits until what is queued is written, or the sink has had its time: the records of calls
    /// that the end of the process cut off are among them.
    fn drop(&mut self) {
        self.queue = None;
        // Err: the thread has ended, or hangs in a write that nobody can end.
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(PATIENCE);
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

fn write_all(jobs: &mut mpsc::Receiver<Job>, out: &mut impl Write) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut lines = Vec::new();
    // After a failed write half a line may stand there: the next one must not grow together with it.
    let mut torn = false;
    while let Some(first) = jobs.blocking_recv() {
        batch.push(first);
        while batch.len() < BATCH {
            match jobs.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        lines.clear();
        if torn {
            lines.push(b'\n');
        }
        for job in &batch {
            lines.extend_from_slice(&job.line);
        }
        let written = out.write_all(&lines).and_then(|()| out.flush());
        torn = written.is_err();
        if let Err(error) = &written {
            tracing::error!(%error, "the audit sink failed: calls fail until it takes records");
        }
        for accepted in batch.drain(..).filter_map(|job| job.accepted) {
            let answer = match &written {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::from(error.kind())),
            };
            // A caller that no longer waits has had its answer.
            let _ = accepted.send(answer);
        }
    }
}

/// Records that may wait for the thread; beyond them, calls wait for a place.
const QUEUE: usize = 1024;
/// Most records in one write.
const BATCH: usize = 256;
/// How long a call waits for its record.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex;

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
        assert_eq!(sink.write(b"first\n".to_vec()).await, Err(Unavailable));
        assert_eq!(sink.write(b"second\n".to_vec()).await, Ok(()));
        assert_eq!(*taken.lock().expect("no panic"), b"fir\nsecond\n");
    }
}
