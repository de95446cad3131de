//! One of several sinks: a thread of its own behind a bounded queue, so that one that hangs holds
//! up no other.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Sender;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::TrySendError;
use std::thread;
use std::time::Duration;

use crate::audit::out::Out;

/// Hands lots to a sink.
pub(super) struct Relay {
    name: &'static str,
    lots: SyncSender<Parcel>,
    state: Arc<State>,
    /// Disconnected when the thread has ended. Behind a lock for its type alone.
    ended: Mutex<mpsc::Receiver<()>>,
    /// Whether it has had no room, which is said once.
    missed: bool,
}

struct Parcel {
    lot: Arc<Vec<u8>>,
    /// Told when the sink has taken it, and dropped when that fails.
    taken: Option<Sender<()>>,
}

#[derive(Default)]
struct State {
    failing: AtomicBool,
    closed: AtomicBool,
}

/// The sink has no room for the lot, and will miss it.
pub(super) struct NoRoom;

impl Relay {
    /// A relay to `out`, which people know as `name`.
    pub(super) fn new(name: &'static str, out: impl Out + 'static) -> Self {
        let (lots, parcels) = mpsc::sync_channel(LOTS);
        let (alive, ended) = mpsc::channel();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let carry = move || {
            let mut out = out;
            for parcel in parcels {
                carry(name, &mut out, parcel, &shared);
            }
            drop(alive);
        };
        let thread = thread::Builder::new()
            .name(format!("audit-{name}"))
            .spawn(carry);
        // It ends by itself when its queue is closed.
        drop(thread.expect("the process can start a thread at its start"));
        Self {
            name,
            lots,
            state,
            ended: Mutex::new(ended),
            missed: false,
        }
    }

    /// Whether the sink has failed with a lot, and is still at that.
    pub(super) fn fails(&self) -> bool {
        self.state.failing.load(Ordering::Relaxed)
    }

    /// Hands over `lot`, and never waits. `taken` is told when the sink has it, unless it has failed
    /// with the one before and is still at that.
    pub(super) fn offer(&mut self, lot: &Arc<Vec<u8>>, taken: &Sender<()>) -> Result<(), NoRoom> {
        let parcel = Parcel {
            lot: Arc::clone(lot),
            taken: (!self.fails()).then(|| taken.clone()),
        };
        match self.lots.try_send(parcel) {
            Ok(()) => {
                self.missed = false;
                Ok(())
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                if !self.missed {
                    tracing::error!(
                        sink = self.name,
                        "an audit sink takes no records: those that it misses stand in others alone"
                    );
                }
                self.missed = true;
                Err(NoRoom)
            }
        }
    }

    /// Lets the sink take what it was handed, for so long at most.
    pub(super) fn close(self, patience: Duration) {
        self.state.closed.store(true, Ordering::Relaxed);
        drop(self.lots);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        // Err: the thread has ended, or hangs in a write that nobody can end.
        let _ = ended.recv_timeout(patience);
    }
}

/// Writes until the sink has taken all of it, or nobody waits for that any more.
fn carry(name: &str, out: &mut impl Out, parcel: Parcel, state: &State) {
    let Parcel { lot, mut taken } = parcel;
    let mut done = 0;
    while let Err(error) = out.write(&lot, &mut done) {
        if !state.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(sink = name, %error, "an audit sink failed: it is tried again");
        }
        taken = None;
        if state.closed.load(Ordering::Relaxed) {
            return;
        }
        thread::sleep(PAUSE);
    }
    state.failing.store(false, Ordering::Relaxed);
    if let Some(taken) = taken {
        // Err: another sink was faster.
        let _ = taken.send(());
    }
}

/// Lots that wait for one sink, each of 1 MiB or a little more at most.
const LOTS: usize = 16;
/// Between two attempts at one lot.
const PAUSE: Duration = Duration::from_millis(100);
