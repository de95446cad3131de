//! The hand-over of audit records: callers, of whom some write, the writer and the watch in every
//! order.

use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::Wake;
use std::task::Waker;

use loom::sync::Arc;
use loom::sync::Notify;
use loom::thread;
use loom::thread::JoinHandle;

use crate::done;
use crate::explore;
use crate::explore_to;
use crate::queue::Ask;
use crate::queue::Bounds;
use crate::queue::Full;
use crate::queue::Outcome;
use crate::queue::Pen;
use crate::queue::Queue;
use crate::queue::Waiting;
use crate::scale::scaled;

/// Two append, each asks as it likes; both are told when both are written, once each.
#[test]
fn a_record_is_accepted_when_it_is_written_and_not_before() {
    for asks in [
        [Ask::Now, Ask::Now],
        [Ask::Now, Ask::Later],
        [Ask::Later, Ask::Later],
    ] {
        of_many_steps(move || {
            let trail = Trail::new(ROOMY);
            let [one, two] = asks;
            let callers = [trail.caller(b'1', one), trail.caller(b'2', two)];
            trail.write(2, Outcome::Accepted);
            assert_eq!(callers.map(done), [Outcome::Accepted; 2]);
            assert_eq!(trail.written(), b"12");
        });
    }
}

/// The sink fails: all are told so, none is taken for written.
#[test]
fn a_failed_write_is_told_to_all() {
    of_many_steps(|| {
        let trail = Trail::new(ROOMY);
        let callers = [b'1', b'2'].map(|line| trail.caller(line, Ask::Later));
        trail.write(2, Outcome::Failed);
        assert_eq!(callers.map(done), [Outcome::Failed; 2]);
    });
}

/// One place for two: who finds none waits for the writer, and gets one.
#[test]
fn nobody_waits_for_a_place_that_is_free() {
    of_many_steps(|| {
        let trail = Trail::new(Bounds { lines: 1, ..ROOMY });
        let callers = [b'1', b'2'].map(|line| trail.caller(line, Ask::Now));
        trail.write(2, Outcome::Accepted);
        assert_eq!(callers.map(done), [Outcome::Accepted; 2]);
        assert_eq!(trail.written(), b"12");
    });
}

/// The place is taken by one who has not asked yet.
#[test]
fn who_waits_for_a_place_asks_for_what_takes_it() {
    explore(|| {
        let trail = Trail::new(Bounds { lines: 1, ..ROOMY });
        assert!(trail.0.queue.append(b"1", Ask::Later).is_ok());
        let caller = trail.caller(b'2', Ask::Later);
        trail.write(2, Outcome::Accepted);
        assert_eq!(done(caller), Outcome::Accepted);
    });
}

/// A lot is late while the writer is at it: its caller is told one thing or the other, and
/// accepted only what is written. The next lot is not harmed.
#[test]
fn a_late_lot_and_its_writer_agree() {
    explore(|| {
        let trail = Trail::new(Bounds { ticks: 0, ..ROOMY });
        let caller = trail.caller(b'1', Ask::Now);
        let watch = {
            let trail = trail.clone();
            thread::spawn(move || trail.0.queue.tick())
        };
        trail.write(1, Outcome::Accepted);
        done(caller);
        done(watch);
        assert_eq!(trail.written(), b"1");
        let next = trail.caller(b'2', Ask::Now);
        trail.write(1, Outcome::Accepted);
        assert_eq!(done(next), Outcome::Accepted);
    });
}

/// Nobody writes: the watch, which rests until there is something to watch, lets nobody wait.
#[test]
fn a_writer_that_hangs_holds_nobody() {
    explore(|| {
        let trail = Trail::new(Bounds {
            lines: 1,
            ticks: 0,
            ..ROOMY
        });
        let calls = {
            let trail = trail.clone();
            thread::spawn(move || {
                let queue = &trail.0.queue;
                let appended = queue.append(b"1", Ask::Later).ok();
                let Err(Full(place)) = queue.append(b"2", Ask::Later) else {
                    panic!("there is one place");
                };
                let appended = outcome(appended.expect("there is room"));
                assert_eq!([appended, outcome(place)], [Outcome::Failed; 2]);
                queue.close();
            })
        };
        while trail.0.queue.rest(|| false) {
            trail.0.queue.tick();
            thread::yield_now();
        }
        done(calls);
    });
}

/// A flush is forgotten: the watch makes up for it.
#[test]
fn a_forgotten_flush_is_made_up_for() {
    explore(|| {
        let trail = Trail::new(ROOMY);
        let caller = {
            let trail = trail.clone();
            thread::spawn(move || {
                let appended = trail.0.queue.append(b"1", Ask::Later).ok();
                outcome(appended.expect("there is room"))
            })
        };
        let watch = {
            let trail = trail.clone();
            thread::spawn(move || {
                assert!(trail.0.queue.rest(|| false));
                trail.0.queue.tick();
            })
        };
        trail.write(1, Outcome::Accepted);
        assert_eq!(done(caller), Outcome::Accepted);
        done(watch);
    });
}

/// The queue is closed behind a record that nobody asked for: it is written, then all go.
#[test]
fn what_is_queued_at_the_end_is_written() {
    explore(|| {
        let trail = Trail::new(ROOMY);
        assert!(trail.0.queue.append(b"1", Ask::Later).is_ok());
        let watch = {
            let trail = trail.clone();
            thread::spawn(move || {
                while trail.0.queue.rest(|| false) {
                    thread::yield_now();
                }
            })
        };
        let closer = {
            let trail = trail.clone();
            thread::spawn(move || trail.0.queue.close())
        };
        trail.write_to_the_end();
        assert_eq!(trail.written(), b"1");
        done(closer);
        done(watch);
    });
}

/// The writer dies: who waits is told, and who comes later too.
#[test]
fn nobody_waits_for_a_dead_writer() {
    explore(|| {
        let trail = Trail::new(Bounds { lines: 1, ..ROOMY });
        let callers = [b'1', b'2'].map(|line| trail.caller(line, Ask::Now));
        trail.0.queue.end();
        assert_eq!(callers.map(done), [Outcome::Failed; 2]);
    });
}

/// A write leaves something to do at a later time: the watch, whose thread may rest by then, sees it.
#[test]
fn what_a_write_leaves_to_do_is_not_slept_through() {
    explore(|| {
        let trail = Trail::new(ROOMY);
        let caller = trail.caller(b'1', Ask::Now);
        let watch = {
            let trail = trail.clone();
            thread::spawn(move || {
                let left = || trail.0.left.load(Ordering::Relaxed);
                while !left() {
                    assert!(trail.0.queue.rest(left));
                    thread::yield_now();
                }
            })
        };
        trail.write(1, Outcome::Accepted);
        assert_eq!(done(caller), Outcome::Accepted);
        done(watch);
    });
}

/// Two callers write what they find, beside the writer: nothing is lost or written twice, nothing
/// overtakes, and the writer gets what nobody else does. One of them comes back before it is told.
#[test]
fn who_writes_and_who_finds_another_at_it_share_the_work() {
    static SHARED: AtomicBool = AtomicBool::new(false);
    for lots in [1, 2] {
        of_many_steps(move || {
            let trail = Trail::new(ROOMY);
            let callers = [b"12".as_slice(), b"3"].map(|lines| {
                let trail = trail.clone();
                thread::spawn(move || {
                    let waiting: Vec<_> = lines
                        .iter()
                        .map(|line| trail.hand_over(*line, lots))
                        .collect();
                    for waiting in waiting {
                        assert_eq!(outcome(waiting), Outcome::Accepted);
                    }
                    trail.leave(2);
                })
            });
            while let Some(pen) = trail.0.queue.wait() {
                SHARED.store(true, Ordering::Relaxed);
                assert_ne!(trail.write_lot(&pen, Outcome::Accepted), 0);
            }
            callers.into_iter().for_each(done);
            assert_eq!(trail.written(), b"123");
            let place = |line| trail.in_order().iter().position(|other| *other == line);
            assert!(place(b'1') < place(b'2'), "a later lot first");
        });
    }
    assert!(SHARED.load(Ordering::Relaxed), "the writer is never needed");
}

/// Whoever writes dies of it while another comes along: the lot has failed, the pen is free.
#[test]
fn a_pen_that_is_dropped_fails_its_lot_alone() {
    explore(|| {
        let trail = Trail::new(ROOMY);
        let first = trail.0.queue.append(b"1", Ask::Later).ok();
        let pen = trail.0.queue.seize().expect("it is free");
        let mut buffer = Vec::new();
        assert!(pen.take(&mut buffer));
        let other = {
            let trail = trail.clone();
            thread::spawn(move || {
                let told = outcome(trail.hand_over(b'2', 1));
                trail.0.queue.close();
                told
            })
        };
        drop(pen);
        trail.write_to_the_end();
        assert_eq!(outcome(first.expect("there is room")), Outcome::Failed);
        assert_eq!(done(other), Outcome::Accepted);
        assert_eq!(trail.written(), b"2");
    });
}

/// A caller hangs in its write: the watch lets nobody wait, and nobody else hangs with it.
#[test]
fn a_caller_that_hangs_in_its_write_holds_nobody_else() {
    explore(|| {
        let trail = Trail::new(Bounds { ticks: 0, ..ROOMY });
        let first = trail.0.queue.append(b"1", Ask::Later).ok();
        let pen = trail.0.queue.seize().expect("it is free");
        let mut buffer = Vec::new();
        assert!(pen.take(&mut buffer));
        let other = {
            let trail = trail.clone();
            thread::spawn(move || {
                let second = trail.0.queue.append(b"2", Ask::Later).ok();
                assert!(trail.0.queue.seize().is_none(), "it is taken");
                assert_eq!(outcome(second.expect("there is room")), Outcome::Failed);
                trail.0.queue.close();
            })
        };
        while trail.0.queue.rest(|| false) {
            trail.0.queue.tick();
            thread::yield_now();
        }
        done(other);
        assert_eq!(outcome(first.expect("there is room")), Outcome::Failed);
        drop(pen);
        trail.write_to_the_end();
        assert_eq!(trail.written(), b"2");
    });
}

/// All interleavings of two callers and the writer would take hours.
fn of_many_steps(model: impl Fn() + Send + Sync + 'static) {
    explore_to(scaled(2, 3), model);
}

/// A queue and what its writer has written. Known to std's lock alone, so that it adds no
/// interleavings.
#[derive(Clone)]
struct Trail(Arc<Shared>);

struct Shared {
    queue: Queue,
    desk: Mutex<Vec<u8>>,
    written: Mutex<Vec<u8>>,
    /// Whether a write has left something to do.
    left: AtomicBool,
    gone: AtomicUsize,
}

impl Trail {
    fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Shared {
            queue: Queue::new(bounds),
            desk: Mutex::default(),
            written: Mutex::default(),
            left: AtomicBool::new(false),
            gone: AtomicUsize::new(0),
        }))
    }

    /// Appends `line` from a thread of its own, which waits for a place and for the outcome.
    fn caller(&self, line: u8, ask: Ask) -> JoinHandle<Outcome> {
        let trail = self.clone();
        thread::spawn(move || {
            let told = trail.call(line, ask);
            if told == Outcome::Accepted {
                assert!(trail.written().contains(&line), "accepted, not written");
            }
            told
        })
    }

    fn call(&self, line: u8, mut ask: Ask) -> Outcome {
        loop {
            match self.0.queue.append(&[line], ask) {
                Ok(waiting) => {
                    self.0.queue.flush();
                    return outcome(waiting);
                }
                Err(Full(place)) => {
                    if outcome(place) == Outcome::Failed {
                        return Outcome::Failed;
                    }
                    ask = Ask::Now;
                }
            }
        }
    }

    /// Writes until so many lines are done with.
    fn write(&self, lines: usize, outcome: Outcome) {
        let mut done = 0;
        while done < lines {
            let pen = self.0.queue.wait().expect("it is open");
            done += self.write_lot(&pen, outcome);
        }
    }

    /// Writes until the queue is closed.
    fn write_to_the_end(&self) {
        while let Some(pen) = self.0.queue.wait() {
            assert_ne!(self.write_lot(&pen, Outcome::Accepted), 0);
        }
    }

    /// How many lines it was.
    fn write_lot(&self, pen: &Pen<'_>, outcome: Outcome) -> usize {
        // Held while threads change: another one who writes at the same time fails the model.
        let mut buffer = self.0.desk.try_lock().expect("one writes at a time");
        if !pen.take(&mut buffer) {
            return 0;
        }
        if outcome == Outcome::Accepted {
            self.0.written.lock().expect("no panic").extend(&*buffer);
        }
        self.0.left.store(true, Ordering::Relaxed);
        pen.settle(outcome);
        buffer.len()
    }

    /// Appends `line`, and writes it if nobody else does. What is asked for meanwhile goes on to
    /// the writer after so many lots.
    fn hand_over(&self, line: u8, lots: usize) -> Waiting {
        let waiting = self.0.queue.append(&[line], Ask::Later).ok();
        if let Some(pen) = self.0.queue.seize() {
            for _ in 0..lots {
                if self.write_lot(&pen, Outcome::Accepted) == 0 {
                    break;
                }
            }
        }
        waiting.expect("there is room")
    }

    /// One is done: the last of so many closes the queue.
    fn leave(&self, all: usize) {
        if self.0.gone.fetch_add(1, Ordering::Relaxed) + 1 == all {
            self.0.queue.close();
        }
    }

    /// What is written, in order of the lines.
    fn written(&self) -> Vec<u8> {
        let mut written = self.in_order();
        written.sort_unstable();
        written
    }

    /// What is written, as it was written.
    fn in_order(&self) -> Vec<u8> {
        self.0.written.lock().expect("no panic").clone()
    }
}

/// Blocks until `waiting` has resolved. The model fails if nobody wakes it.
fn outcome(mut waiting: Waiting) -> Outcome {
    let bell = std::sync::Arc::new(Parked(Notify::new()));
    let waker = Waker::from(std::sync::Arc::clone(&bell));
    loop {
        match Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(outcome) => return outcome,
            Poll::Pending => bell.0.wait(),
        }
    }
}

struct Parked(Notify);

impl Wake for Parked {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.notify();
    }
}

const ROOMY: Bounds = Bounds {
    lines: 8,
    bytes: 8,
    ticks: 8,
};
