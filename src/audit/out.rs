//! What takes lots: a stream of bytes, a file, or a collector. A lot that was taken in part is gone on with, so
//! that nothing is torn and nothing is missing.

use std::io;
use std::io::Write;

/// Takes lots, one after another.
pub(super) trait Out: Send {
    /// Writes what is left of `lot` behind the first `done` bytes, which it moves on.
    fn write(&mut self, lot: &[u8], done: &mut usize) -> io::Result<()>;
}

/// A stream, which forgets nothing that it has taken.
pub(super) struct Stream<W>(pub(super) W);

impl<W: Write + Send> Out for Stream<W> {
    fn write(&mut self, lot: &[u8], done: &mut usize) -> io::Result<()> {
        write(&mut self.0, lot, done)?;
        self.0.flush()
    }
}

/// Takes records somewhere else.
pub trait Collector: Send {
    /// Hands over `lines`, whole records each with a newline at its end, and returns when all of
    /// them are acknowledged. May block, but not for ever.
    ///
    /// # Errors
    /// When they are not: some may have arrived all the same, and all are handed over again.
    fn take(&mut self, lines: &[u8]) -> io::Result<()>;
}

/// A collector, which takes a lot as a whole.
pub(super) struct Remote(pub(super) Box<dyn Collector>);

impl Out for Remote {
    fn write(&mut self, lot: &[u8], done: &mut usize) -> io::Result<()> {
        self.0.take(lot)?;
        *done = lot.len();
        Ok(())
    }
}

/// Writes `lot` from `done` on.
pub(super) fn write(out: &mut impl Write, lot: &[u8], done: &mut usize) -> io::Result<()> {
    loop {
        let rest = lot.get(*done..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        match out.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => *done += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A lot on its way into an output.
pub(super) struct Post {
    out: Box<dyn Out>,
    lot: Vec<u8>,
    done: usize,
}

impl Post {
    pub(super) fn new(out: impl Out + 'static) -> Self {
        Self {
            out: Box::new(out),
            lot: Vec::new(),
            done: 0,
        }
    }

    /// Has the lot of `fill` taken, behind one that was not taken whole before. What fails now is
    /// gone on with then; `fill` is called only when nothing stands before it.
    pub(super) fn send(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.settle()?;
        fill(&mut self.lot);
        self.settle()
    }

    fn settle(&mut self) -> io::Result<()> {
        if self.lot.is_empty() {
            return Ok(());
        }
        self.out.write(&self.lot, &mut self.done)?;
        self.done = 0;
        // A usual lot fits; what a stalled sink has heaped up is given back.
        self.lot.clear();
        self.lot.shrink_to(KEPT);
        Ok(())
    }
}

/// Most bytes that are kept for the lines to come.
pub(super) const KEPT: usize = 256 << 10;
