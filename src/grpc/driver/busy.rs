//! Busy polling: a caller that is alone and asks again at once is waited for awake. To let a
//! processor sleep and to wake it up takes longer than a call, and what runs after that runs cold.

use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::runtime::Handle;

use crate::clock::Clock;
use crate::clock::Instant;

/// What the connections of a server have in common. Cheap to clone.
#[derive(Clone)]
pub(in crate::grpc) struct BusyPoll(Option<Arc<Common>>);

struct Common {
    limit: Duration,
    /// Turns of all connections so far.
    turns: AtomicU64,
    clock: Arc<dyn Clock>,
}

/// A stream that comes out of a socket in the end.
pub(in crate::grpc) trait Socket {
    /// The socket.
    fn socket(&self) -> BorrowedFd<'_>;
}

/// How eager the peer of one connection is.
pub(super) struct Eagerness {
    common: Option<Arc<Common>>,
    /// The number of its last turn.
    turn: u64,
    /// Whether no other connection had a turn between its last two.
    alone: bool,
    /// When the last of those ended.
    ended: Instant,
    /// Turns in a row that came within the limit, with none of another connection between.
    quick: u32,
}

impl BusyPoll {
    /// Waits for up to `limit`; never if that is nothing, or where the peer may need the
    /// processor that would wait: on a runtime with one thread.
    pub(in crate::grpc) fn new(limit: Duration, clock: Arc<dyn Clock>) -> Self {
        let spare = Handle::try_current().is_ok_and(|runtime| runtime.metrics().num_workers() > 1);
        if limit.is_zero() || !spare {
            return Self::off();
        }
        Self(Some(Arc::new(Common {
            limit,
            turns: AtomicU64::new(0),
            clock,
        })))
    }

    /// Never waits.
    pub(in crate::grpc) fn off() -> Self {
        Self(None)
    }

    /// A connection that has had no turn yet.
    pub(super) fn connection(&self) -> Eagerness {
        Eagerness {
            common: self.0.clone(),
            turn: 0,
            alone: false,
            ended: Instant::default(),
            quick: 0,
        }
    }
}

impl Eagerness {
    /// A turn begins.
    pub(super) fn begin(&mut self) {
        let Some(common) = &self.common else {
            return;
        };
        let turn = common.turns.fetch_add(1, Relaxed) + 1;
        self.alone = turn == self.turn + 1;
        self.turn = turn;
        let quick = self.alone && common.clock.now().since(self.ended) < common.limit;
        self.quick = match quick {
            true => self.quick.saturating_add(1),
            false => 0,
        };
    }

    /// The turn has ended: waits for the peer's next bytes on `socket` if they have come at once for
    /// some time. Blocks for no longer than the limit.
    pub(super) fn wait(&mut self, socket: &impl Socket) {
        let Some(common) = self.common.as_ref().filter(|_| self.alone) else {
            return;
        };
        self.ended = common.clock.now();
        if self.quick < EAGER {
            return;
        }
        // The looks are counted as well: a clock may stand still.
        for _ in 0..LOOKS {
            let mut ready = [PollFd::from_borrowed_fd(socket.socket(), PollFlags::IN)];
            // An error is the connection's to find.
            let silent = matches!(poll(&mut ready, Some(&AT_ONCE)), Ok(0));
            if !silent || common.clock.now().since(self.ended) >= common.limit {
                return;
            }
        }
    }
}

impl Socket for TcpStream {
    fn socket(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

impl Socket for UnixStream {
    fn socket(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

/// Quick turns in a row that make a peer eager.
const EAGER: u32 = 8;
/// Most looks of one wait, each a system call.
const LOOKS: u32 = 1000;
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::net;

    use crate::clock::Manual;

    impl Socket for net::UnixStream {
        fn socket(&self) -> BorrowedFd<'_> {
            self.as_fd()
        }
    }

    /// A clock that goes on by a microsecond whenever it is looked at.
    struct Ticking(Manual);

    impl Clock for Ticking {
        fn now(&self) -> Instant {
            self.0.advance(Duration::from_micros(1));
            self.0.now()
        }

        fn wall(&self) -> jiff::Timestamp {
            self.0.wall()
        }
    }

    const LIMIT: Duration = Duration::from_micros(100);

    fn busy_poll(clock: &Arc<Ticking>) -> BusyPoll {
        let clock: Arc<dyn Clock> = Arc::<Ticking>::clone(clock);
        BusyPoll(Some(Arc::new(Common {
            limit: LIMIT,
            turns: AtomicU64::new(0),
            clock,
        })))
    }

    fn ticking() -> Arc<Ticking> {
        Arc::new(Ticking(Manual::new(jiff::Timestamp::UNIX_EPOCH)))
    }

    /// How long `connection` waits after a turn.
    fn turn(connection: &mut Eagerness, socket: &net::UnixStream, clock: &Ticking) -> Duration {
        connection.begin();
        let began = clock.0.now();
        connection.wait(socket);
        clock.0.now().since(began)
    }

    #[test]
    fn only_a_peer_that_was_quick_for_some_time_is_waited_for_and_no_longer_than_the_limit() {
        let (clock, (near, _far)) = (ticking(), net::UnixStream::pair().unwrap());
        let mut connection = busy_poll(&clock).connection();
        for _ in 0..EAGER {
            assert!(turn(&mut connection, &near, &clock) < LIMIT);
        }
        assert!(turn(&mut connection, &near, &clock) >= LIMIT);
        // Nothing came, so the next turn was not quick.
        assert!(turn(&mut connection, &near, &clock) < LIMIT);
    }

    #[test]
    fn what_arrives_ends_the_wait() {
        let (clock, (near, mut far)) = (ticking(), net::UnixStream::pair().unwrap());
        let mut connection = busy_poll(&clock).connection();
        far.write_all(b"?").unwrap();
        for _ in 0..EAGER * 2 {
            assert!(turn(&mut connection, &near, &clock) < LIMIT);
        }
        assert!(connection.quick > EAGER);
    }

    #[test]
    fn a_peer_that_is_not_alone_is_not_waited_for() {
        let (clock, (near, _far)) = (ticking(), net::UnixStream::pair().unwrap());
        let all = busy_poll(&clock);
        let (mut one, mut other) = (all.connection(), all.connection());
        for _ in 0..EAGER * 2 {
            assert!(turn(&mut one, &near, &clock) < LIMIT);
            assert!(turn(&mut other, &near, &clock) < LIMIT);
        }
    }

    #[tokio::test]
    async fn a_runtime_with_one_thread_never_waits() {
        let busy_poll = BusyPoll::new(LIMIT, ticking());
        assert!(busy_poll.connection().common.is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_limit_of_nothing_turns_it_off() {
        let on = |limit| {
            BusyPoll::new(limit, ticking())
                .connection()
                .common
                .is_some()
        };
        assert!(on(LIMIT));
        assert!(!on(Duration::ZERO));
    }
}
