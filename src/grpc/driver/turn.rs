//! One turn of a connection for each time that its task wakes up: all that has arrived is read,
//! the calls that are ready are polled, and what they have to say leaves in one write.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::Wake;
use std::task::Waker;

use tokio::io::AsyncWrite;

use crate::grpc::driver::bell::Bell;
use crate::grpc::driver::busy::Eagerness;
use crate::grpc::driver::busy::Socket;
use crate::grpc::driver::calls::Calls;
use crate::grpc::driver::gather::Outlet;

/// What turns: the calls of a connection, and the sending of their answers.
pub(super) struct Turns<IO> {
    calls: Calls,
    outlet: Outlet<IO>,
    bell: Arc<Bell>,
    waker: Waker,
    eagerness: Eagerness,
}

impl<IO: AsyncWrite + Socket + Unpin> Turns<IO> {
    pub(super) fn new(calls: Calls, outlet: Outlet<IO>, eagerness: Eagerness) -> Self {
        let bell = Arc::new(Bell::new());
        Self {
            calls,
            outlet,
            waker: Waker::from(Arc::clone(&bell)),
            bell,
            eagerness,
        }
    }

    /// Takes a turn of `serving`, which hands its calls to these and writes to the outlet; calls
    /// `settle` when the calls have had theirs, and goes on with those that it lets go on. Ready
    /// when `serving` is, or when nothing can be sent any more.
    pub(super) fn poll<F: Future>(
        &mut self,
        mut serving: Pin<&mut F>,
        settle: impl Fn(),
        task: &Waker,
    ) -> Poll<()> {
        self.bell.begin(task);
        self.eagerness.begin();
        let mut cx = Context::from_waker(&self.waker);
        let mut over = false;
        for _ in 0..ROUNDS {
            over = serving.as_mut().poll(&mut cx).is_ready();
            self.calls.poll(&mut cx);
            settle();
            // What that settled is answered in this turn.
            self.calls.poll(&mut cx);
            if over || !self.bell.rang() {
                break;
            }
        }
        let lost = matches!(self.outlet.poll_send(&mut cx), Poll::Ready(Err(_)));
        if over || lost {
            return Poll::Ready(());
        }
        if !self.bell.rest() {
            task.wake_by_ref();
        } else if !self.calls.stepped_aside() {
            self.outlet.with(|io| self.eagerness.wait(io));
        }
        Poll::Pending
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

/// A connection that has more to do than this lets others of its thread go first.
const ROUNDS: usize = 16;
