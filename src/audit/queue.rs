//! The queue in front of the one who writes: records gather in a lot, which is written at once,
//! and accepted or failed as a whole (group commit).
//!
//! Whoever has the [`Pen`] writes, when asked to. [`Queue::append`] asks at once or leaves it to
//! [`Queue::flush`], so that the calls of one connection's turn ask once. No request is lost:
//! whether there are records that nobody asked for changes under the lock that guards them, so
//! whoever appended one sees it in the `flush` that follows, unless another has asked or they have
//! been taken since. A `flush` that is forgotten is made up for by the next [`Queue::tick`].
//!
//! The writer, a thread of its own, waits for the pen; with [`Queue::seize`] a caller has it at
//! once, if it is free. Whoever finds it taken asks and goes: the pen is given back under the lock
//! under which they ask, and with it what was asked for meanwhile goes to the writer.
//!
//! Every interleaving is tried in `tests/models`, which includes this file.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use crate::sync::Condvar;
use crate::sync::Mutex;
use crate::sync::atomic::AtomicBool;
use crate::sync::atomic::Ordering;
use crate::sync::lock;
use crate::sync::wait;

/// Lines on their way from many callers to whoever writes, under the eyes of one watch.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Where the writer waits until it is asked.
    work: Condvar,
    /// Where the watch waits while there is nothing to watch.
    watch: Condvar,
    /// Whether there are lines that nobody has asked for. Changed under the lock.
    unasked: AtomicBool,
    bounds: Bounds,
}

/// What a queue holds, and for how long.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Most lines that wait to be written.
    pub(super) lines: usize,
    /// When their bytes have reached this, no line is added.
    pub(super) bytes: usize,
    /// Ticks that a lot has; with the next one it fails.
    pub(super) ticks: u64,
}

/// Who asks for a line to be written.
#[derive(Clone, Copy)]
pub(super) enum Ask {
    /// The one who appends it.
    Now,
    /// Whoever calls [`Queue::flush`] or [`Queue::seize`] next, which the one who appends it sees
    /// to.
    Later,
}

/// No place is free. What is waited for is a place, which others may take first.
pub(super) struct Full(pub(super) Waiting);

/// What became of a lot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All of it is written.
    Accepted,
    /// It may be written in part, or not yet, or never.
    Failed,
}

struct State {
    /// The lines that wait to be written, and how many they are.
    bytes: Vec<u8>,
    lines: usize,
    /// Of those lines.
    open: Lot,
    /// Of the lines that the one with the pen has.
    writing: Option<Lot>,
    /// Of the callers for whose lines there was no place.
    crowd: Option<Lot>,
    /// Whether what waits shall be written.
    asked: bool,
    /// Whether somebody has the pen.
    busy: bool,
    /// Whether the writer, and the watch, must be woken.
    writer_rests: bool,
    watch_rests: bool,
    /// Whether a line came since the watch last looked.
    stirred: bool,
    now: u64,
    closed: bool,
    ended: bool,
}

/// Some who wait for one outcome.
struct Lot {
    /// The tick at which the first of them came.
    since: u64,
    fate: Arc<Fate>,
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            state: Mutex::new(State {
                bytes: Vec::new(),
                lines: 0,
                open: Lot::new(0),
                writing: None,
                crowd: None,
                asked: false,
                busy: false,
                writer_rests: false,
                watch_rests: false,
                stirred: false,
                now: 0,
                closed: false,
                ended: false,
            }),
            work: Condvar::new(),
            watch: Condvar::new(),
            unasked: AtomicBool::new(false),
            bounds,
        }
    }

    /// Adds `line` to the open lot, and returns what resolves to the lot's outcome. A line
    /// that was added is written even if nobody waits for it.
    ///
    /// # Errors
    /// [`Full`] when the line was not added.
    pub(super) fn append(&self, line: &[u8], ask: Ask) -> Result<Waiting, Full> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if state.ended {
            return Ok(state.open.waiting());
        }
        let full = state.lines >= self.bounds.lines || state.bytes.len() >= self.bounds.bytes;
        let waiting = if full {
            let now = state.now;
            let crowd = state.crowd.get_or_insert_with(|| Lot::new(now));
            Err(Full(crowd.waiting()))
        } else {
            if state.lines == 0 {
                state.open.since = state.now;
            }
            state.bytes.extend_from_slice(line);
            state.lines += 1;
            Ok(state.open.waiting())
        };
        let wake_writer = match ask {
            Ask::Later if !full => {
                self.unasked.store(true, Ordering::Relaxed);
                false
            }
            Ask::Later | Ask::Now => self.ask(state),
        };
        state.stirred = true;
        let wake_watch = mem::take(&mut state.watch_rests);
        drop(guard);
        if wake_writer {
            self.work.notify_one();
        }
        if wake_watch {
            self.watch.notify_one();
        }
        waiting
    }

    /// Asks for all lines that nobody has asked for. Costs next to nothing when there are none.
    pub(super) fn flush(&self) {
        // Relaxed: a thread sees at least what it stored itself when it appended.
        if self.unasked.load(Ordering::Relaxed) {
            self.ask_for_rest();
        }
    }

    /// As [`Queue::flush`], by one who is ready to write: the pen, when there are lines that nobody
    /// has asked for and it is free. Costs next to nothing when there are none.
    pub(super) fn seize(&self) -> Option<Pen<'_>> {
        // Relaxed: as in `flush`.
        if !self.unasked.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = lock(&self.state);
        if state.lines == 0 || state.ended {
            return None;
        }
        self.unasked.store(false, Ordering::Relaxed);
        state.asked = true;
        if mem::replace(&mut state.busy, true) {
            return None;
        }
        Some(Pen(self))
    }

    /// The writer's: waits until it is asked and the pen is free, and takes it. Then there are lines
    /// to take. None when the queue is closed and empty.
    pub(super) fn wait(&self) -> Option<Pen<'_>> {
        let mut state = lock(&self.state);
        while state.busy || !state.due() {
            if state.closed && !state.busy {
                return None;
            }
            state.writer_rests = true;
            state = wait(&self.work, state);
        }
        state.writer_rests = false;
        state.busy = true;
        Some(Pen(self))
    }

    /// The writer's: it is gone. Whoever waits, or comes later, waits in vain.
    pub(super) fn end(&self) {
        let mut state = lock(&self.state);
        state.ended = true;
        let open = Arc::clone(&state.open.fate);
        let waiting = [state.writing.take(), state.crowd.take()];
        drop(state);
        open.settle(Outcome::Failed);
        for lot in waiting.into_iter().flatten() {
            lot.fate.settle(Outcome::Failed);
        }
        self.close();
    }

    /// What was appended is still written, then writer and watch are told to go.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.work.notify_one();
        self.watch.notify_one();
    }

    /// The watch's: waits while there is nothing to watch, in the queue or by what `more` says, which
    /// changes while a lot is written alone. `false` when the queue is closed.
    pub(super) fn rest(&self, more: impl Fn() -> bool) -> bool {
        let mut state = lock(&self.state);
        while !state.closed {
            // Goes on for a tick after the last line, so that a steady trickle wakes it once.
            let stirred = mem::take(&mut state.stirred);
            let waiting = state.lines > 0 || state.writing.is_some() || state.crowd.is_some();
            if stirred || waiting || more() {
                return true;
            }
            state.watch_rests = true;
            state = wait(&self.watch, state);
        }
        false
    }

    /// The watch's: time has passed. Fails what waits for longer than its ticks; lines of it that
    /// somebody writes or will write are not taken back.
    pub(super) fn tick(&self) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        state.now += 1;
        let now = state.now;
        let late = |lot: &mut Lot| now - lot.since > self.bounds.ticks;
        let open = (state.lines > 0 && late(&mut state.open))
            .then(|| mem::replace(&mut state.open, Lot::new(now)));
        let overdue = [open, state.writing.take_if(late), state.crowd.take_if(late)];
        drop(guard);
        for lot in overdue.into_iter().flatten() {
            lot.fate.settle(Outcome::Failed);
        }
        self.ask_for_rest();
    }

    fn ask_for_rest(&self) {
        let mut state = lock(&self.state);
        let wake = state.lines > 0 && self.ask(&mut state);
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    /// Asks for all that is there. Whether the writer must be woken.
    fn ask(&self, state: &mut State) -> bool {
        self.unasked.store(false, Ordering::Relaxed);
        state.asked = true;
        // Who has the pen looks before giving it back.
        !state.busy && mem::take(&mut state.writer_rests)
    }
}

impl State {
    /// Whether there is something to write.
    fn due(&self) -> bool {
        self.lines > 0 && (self.asked || self.closed)
    }
}

/// The right to write, which one has at a time. Dropped, it is free again; a lot that was not
/// settled has failed then, and the writer is woken for what was asked for meanwhile.
pub(super) struct Pen<'q>(&'q Queue);

impl Pen<'_> {
    /// Exchanges `buffer`, whose content is dropped, for the lines of a lot, which is to be
    /// settled before the next. `false` when nobody has asked for more.
    pub(super) fn take(&self, buffer: &mut Vec<u8>) -> bool {
        buffer.clear();
        let mut state = lock(&self.0.state);
        if !state.due() {
            return false;
        }
        state.asked = false;
        self.0.unasked.store(false, Ordering::Relaxed);
        state.lines = 0;
        mem::swap(&mut state.bytes, buffer);
        let next = Lot::new(state.now);
        state.writing = Some(mem::replace(&mut state.open, next));
        let crowd = state.crowd.take();
        drop(state);
        if let Some(crowd) = crowd {
            crowd.fate.settle(Outcome::Accepted);
        }
        true
    }

    /// Tells those who wait for the lot that was taken.
    pub(super) fn settle(&self, outcome: Outcome) {
        let written = lock(&self.0.state).writing.take();
        if let Some(written) = written {
            written.fate.settle(outcome);
        }
    }
}

impl Drop for Pen<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.busy = false;
        let unsettled = state.writing.take();
        let wake = (state.due() || state.closed) && mem::take(&mut state.writer_rests);
        drop(state);
        if wake {
            self.0.work.notify_one();
        }
        if let Some(unsettled) = unsettled {
            unsettled.fate.settle(Outcome::Failed);
        }
    }
}

impl Lot {
    fn new(since: u64) -> Self {
        Self {
            since,
            fate: Arc::new(Fate(Mutex::new(Pending {
                outcome: None,
                wakers: Vec::new(),
            }))),
        }
    }

    fn waiting(&self) -> Waiting {
        Waiting {
            fate: Arc::clone(&self.fate),
            waker: None,
        }
    }
}

/// An outcome that is set once, and those who wait for it.
struct Fate(Mutex<Pending>);

struct Pending {
    outcome: Option<Outcome>,
    wakers: Vec<Waker>,
}

impl Fate {
    /// Sets the outcome, unless it is set, and wakes all who wait.
    fn settle(&self, outcome: Outcome) {
        let mut pending = lock(&self.0);
        pending.outcome.get_or_insert(outcome);
        let wakers = mem::take(&mut pending.wakers);
        drop(pending);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Resolves to the outcome of a lot.
pub(super) struct Waiting {
    fate: Arc<Fate>,
    /// Which of the lot's wakers is the one of its last poll.
    waker: Option<usize>,
}

impl Future for Waiting {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Self { fate, waker } = &mut *self;
        let mut pending = lock(&fate.0);
        if let Some(outcome) = pending.outcome {
            return Poll::Ready(outcome);
        }
        let known = waker.and_then(|index| pending.wakers.get(index));
        if !known.is_some_and(|known| known.will_wake(cx.waker())) {
            // Those of one task often come one after another: one wake-up is enough for them.
            let last = pending.wakers.last();
            if !last.is_some_and(|last| last.will_wake(cx.waker())) {
                pending.wakers.push(cx.waker().clone());
            }
            *waker = pending.wakers.len().checked_sub(1);
        }
        Poll::Pending
    }
}
