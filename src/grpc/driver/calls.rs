//! The calls of one connection. They are polled in the connection's own task: what one wake-up
//! serves leaves in one write. A call that takes long steps aside into a task of its own.

use std::cell::Cell;
use std::future::poll_fn;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper::rt::Executor;

use crate::sync::Mutex;
use crate::sync::lock;

/// Lets the calls of the same connection go on without the caller, who is about to work for long:
/// it goes on in a task of its own. Anywhere else, and a second time, it only yields once.
pub(crate) async fn step_aside() {
    let mut asked = false;
    poll_fn(|cx| {
        if mem::replace(&mut asked, true) {
            return Poll::Ready(());
        }
        ASIDE.set(true);
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Takes calls from hyper, where others would spawn them.
#[derive(Clone, Default)]
pub(super) struct Queue(Arc<Mutex<Vec<Running>>>);

/// The calls under way.
pub(super) struct Calls {
    queue: Queue,
    under_way: FuturesUnordered<Inline>,
    aside: bool,
}

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A call until it is done or has stepped aside.
struct Inline(Option<Running>);

/// Why a call is no longer here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Aside,
    Done,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Queue {
    fn execute(&self, call: F) {
        // A panic that no layer within has caught still costs no more than its call.
        let call = AssertUnwindSafe(call).catch_unwind().map(drop);
        lock(&self.0).push(Box::pin(call));
    }
}

impl Calls {
    /// The calls that come through `queue`.
    pub(super) fn new(queue: Queue) -> Self {
        Self {
            queue,
            under_way: FuturesUnordered::new(),
            aside: false,
        }
    }

    /// Polls those that are new and those that something has happened to.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        for call in lock(&self.queue.0).drain(..) {
            self.under_way.push(Inline(Some(call)));
        }
        while let Poll::Ready(Some(left)) = self.under_way.poll_next_unpin(cx) {
            self.aside |= left == Left::Aside;
        }
    }

    /// Whether one has stepped aside since this was last asked: it may need this thread to go on.
    pub(super) fn stepped_aside(&mut self) -> bool {
        mem::take(&mut self.aside)
    }
}

impl Future for Inline {
    type Output = Left;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Left> {
        let Some(call) = &mut self.0 else {
            return Poll::Ready(Left::Done);
        };
        ASIDE.set(false);
        let polled = call.as_mut().poll(cx);
        if polled.is_pending()
            && ASIDE.take()
            && let Some(call) = self.0.take()
        {
            tokio::spawn(call);
            return Poll::Ready(Left::Aside);
        }
        polled.map(|()| Left::Done)
    }
}

thread_local! {
    /// Set by the call that is polled on this thread, if it wants a task of its own.
    static ASIDE: Cell<bool> = const { Cell::new(false) };
}
