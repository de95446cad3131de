//! Drives one connection: HTTP/2 with every limit set by name, an age, an idle time, and an end
//! that lets calls under way finish.
//!
//! All of a connection happens in one task, in turns: `turn` takes one for each wake-up, `bell`
//! wakes the task, `calls` are polled in it, `gather` sends what they answer in one write, `busy`
//! waits awake for a peer that asks again at once, and `pace` ends a connection whose peer stops in
//! the middle of a frame.

mod bell;
mod busy;
mod calls;
mod gather;
mod pace;
mod turn;

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::grpc::connection::Connection;
use crate::grpc::witness::Witness;

pub(super) use busy::BusyPoll;
pub(super) use busy::Socket;
use calls::Calls;
use calls::Queue;
pub(crate) use calls::step_aside;
use gather::gather;
use pace::Paced;
use turn::Turns;

/// How patient a connection is. No part of the configuration file: nothing that differs between
/// sites makes other figures right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For the whole TLS handshake.
    pub handshake: Duration,
    /// For the HTTP/2 preface with the first SETTINGS, and for any frame or header block once
    /// begun.
    pub frame: Duration,
    /// After so long without a byte from the peer, it is asked for a sign of life.
    pub ping: Duration,
    /// For that sign; a peer that for both together takes nothing of what is sent is cut off.
    pub pong: Duration,
    /// Without a new call or an open stream for so long, a connection is asked to go.
    pub idle: Duration,
    /// What calls under way have to finish when a connection is asked to go.
    pub grace: Duration,
    /// What streams under way have, before that begins.
    pub stream_grace: Duration,
    /// For a stream on which nothing moves.
    pub stall: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            frame: Duration::from_secs(5),
            ping: Duration::from_secs(30),
            pong: Duration::from_secs(10),
            idle: Duration::from_mins(5),
            // No call may take longer.
            grace: Duration::from_secs(30),
            stream_grace: Duration::from_mins(10),
            stall: Duration::from_secs(30),
        }
    }
}

/// Serves `io` until its peer leaves, it is idle or `age` old, its peer loses its identity, or
/// `drain` turns true; then GOAWAY, and calls under way have the grace to finish.
pub(super) async fn drive<IO>(
    io: IO,
    connection: Arc<Connection>,
    witness: Witness,
    age: Duration,
    deadlines: Deadlines,
    busy_poll: &BusyPoll,
    mut drain: watch::Receiver<bool>,
) where
    IO: AsyncRead + AsyncWrite + Socket + Send + Unpin + 'static,
{
    let (answering, guard) = (Arc::clone(&connection), witness.clone());
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (witness, connection) = (guard.clone(), Arc::clone(&answering));
        // In a box from the start: it has some KiB, and hyper moves it several times.
        Box::pin(async move { Ok::<_, Infallible>(witness.answer(&connection, request).await) })
    });
    let stall = deadlines.ping + deadlines.pong;
    let (io, outlet) = gather(Paced::new(io, deadlines.frame, stall));
    let queue = Queue::default();
    let mut turns = Turns::new(Calls::new(queue.clone()), outlet, busy_poll.connection());
    let mut serving = pin!(builder(deadlines, queue).serve_connection(TokioIo::new(io), service));
    let settle = || witness.settle();

    let mut old = pin!(tokio::time::sleep(age));
    let mut idle = pin!(tokio::time::sleep(deadlines.idle));
    let mut seen = 0;
    loop {
        tokio::select! {
            // An error ends the connection, and its calls with it: their records say so.
            () = poll_fn(|cx| turns.poll(serving.as_mut(), settle, cx.waker())) => return,
            () = old.as_mut() => break,
            () = connection.closing() => break,
            _ = drain.wait_for(|drain| *drain) => break,
            () = idle.as_mut() => {
                let calls = connection.calls.load(Ordering::Relaxed);
                if calls == seen && connection.is_quiet() {
                    break;
                }
                seen = calls;
                idle.as_mut().reset(Instant::now() + deadlines.idle);
            }
        }
    }
    serving.as_mut().graceful_shutdown();
    // Cut off after the grace: a half-open peer would hold us for ever.
    let rest = poll_fn(|cx| turns.poll(serving.as_mut(), settle, cx.waker()));
    let late = async {
        // Err: the streams have had their time as well.
        let _ = tokio::time::timeout(deadlines.stream_grace, connection.quiet()).await;
        tokio::time::sleep(deadlines.grace).await;
    };
    tokio::select! {
        () = rest => {}
        () = late => {}
    }
}

/// HTTP/2 with nothing left to a default: tonic's own server leaves streams and resets unlimited.
fn builder(deadlines: Deadlines, queue: Queue) -> http2::Builder<Queue> {
    let mut builder = http2::Builder::new(queue);
    builder
        .timer(TokioTimer::new())
        // gRPC has no use for it.
        .auto_date_header(false)
        .max_concurrent_streams(STREAMS)
        // Not lower: refused streams count, and an honest burst sent before SETTINGS arrived would
        // lose its connection.
        .max_local_error_reset_streams(1024)
        .max_pending_accept_reset_streams(20)
        .max_header_list_size(8 << 10)
        .header_table_size(4 << 10)
        .max_frame_size(32 << 10)
        .initial_stream_window_size(STREAM_WINDOW)
        // Room for all streams: what one does not read yet must not keep another's bytes away.
        .initial_connection_window_size(STREAMS * STREAM_WINDOW)
        .adaptive_window(false)
        .max_send_buf_size(400 << 10)
        .keep_alive_interval(deadlines.ping)
        .keep_alive_timeout(deadlines.pong);
    builder
}

/// Calls of a connection at a time.
const STREAMS: u32 = 64;
/// What a peer may send of a request ahead of its being read, in bytes.
const STREAM_WINDOW: u32 = 128 << 10;
