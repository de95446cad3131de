//! What the lines are written to, by whoever has the pen, and who may take it up.

use std::io;
use std::io::Write;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::audit::queue::Outcome;
use crate::audit::queue::Pen;
use crate::clock::Clock;
use crate::sync::Mutex;
use crate::sync::lock;

/// Where the lines end up.
pub(super) struct Output {
    /// Locked by the one who has the pen, and so never waited for.
    desk: Mutex<Desk>,
    writers: Writers,
    /// Whether the last write was.
    slow: AtomicBool,
    clock: Arc<dyn Clock>,
}

/// Who may write.
#[derive(Clone, Copy)]
pub(super) enum Writers {
    /// Whoever flushes, while writes are fast.
    Callers,
    /// The sink's thread alone: nobody knows how long a write waits.
    Thread,
}

struct Desk {
    out: Box<dyn Write + Send>,
    lines: Vec<u8>,
    /// After a failed write half a line may stand there: the next one must not grow together with
    /// it.
    torn: bool,
}

impl Output {
    pub(super) fn new(
        out: impl Write + Send + 'static,
        writers: Writers,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            desk: Mutex::new(Desk {
                out: Box::new(out),
                lines: Vec::new(),
                torn: false,
            }),
            writers,
            slow: AtomicBool::new(false),
            clock,
        }
    }

    /// Whether one who flushes may write, by what the last write has shown.
    pub(super) fn near(&self) -> bool {
        match self.writers {
            Writers::Callers => !self.slow.load(Ordering::Relaxed),
            Writers::Thread => false,
        }
    }

    /// Writes the next lot, and settles it. `false` when there is none.
    pub(super) fn write(&self, pen: &Pen<'_>) -> bool {
        let mut desk = lock(&self.desk);
        let Desk { out, lines, torn } = &mut *desk;
        if !pen.take(lines) {
            return false;
        }
        let began = self.clock.now();
        // So it stays if the write panics.
        let joint = mem::replace(torn, true);
        let written = write_all(lines, joint, out);
        *torn = written.is_err();
        let took = self.clock.now().since(began);
        self.slow.store(took > FAST, Ordering::Relaxed);
        pen.settle(match written {
            Ok(()) => Outcome::Accepted,
            Err(error) => {
                tracing::error!(%error, "the audit sink failed: calls fail until it takes records");
                Outcome::Failed
            }
        });
        // A usual lot fits; what a stalled sink has heaped up is given back.
        lines.clear();
        lines.shrink_to(KEPT);
        true
    }
}

fn write_all(lines: &[u8], torn: bool, out: &mut impl Write) -> io::Result<()> {
    if torn {
        out.write_all(b"\n")?;
    }
    out.write_all(lines)?;
    out.flush()
}

/// What a write takes at most where callers may write: far longer than one into the page cache, and
/// no longer than the calls of a thread can wait.
const FAST: Duration = Duration::from_millis(5);
/// Most bytes that are kept for the lines to come.
const KEPT: usize = 256 << 10;
