//! Runs a stream that its handler has begun, in a task of its own: bytes in, bytes out, one message
//! of each at a time, and its right to go on looked at all the while.
//!
//! The task holds the data key. So that nobody who wants that gone waits for a client who does not
//! read, it ends by itself, whether its last answers are taken or not.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::Interval;
use tokio::time::MissedTickBehavior;
use tonic::Status;
use tonic::Streaming;
use uuid::Uuid;

use crate::audit;
use crate::audit::Audit;
use crate::broker::Broker;
use crate::broker::stream::Begun;
use crate::broker::stream::Flow;
use crate::broker::stream::Standing;
use crate::clock;
use crate::clock::Clock;
use crate::error::Error;
use crate::grpc::MAX_MESSAGE;
use crate::grpc::connection::Connection;
use crate::grpc::connection::OpenStream;
use crate::grpc::convert::Verified;
use crate::grpc::convert::stream::Stream;
use crate::grpc::service::failure;
use crate::grpc::status::of_tonic;
use crate::grpc::status::status;
use crate::grpc::trace::answered;
use crate::grpc::witness::Passage;
use crate::grpc::witness::Timed;
use crate::identity::Session;
use crate::metrics::CallTally;
use crate::quota;
use crate::trace::Span;

/// What a call that may go on for long brings along beside its [`Passage`].
#[derive(Clone)]
pub(super) struct Lasting {
    pub(super) audit: Arc<Audit>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) connection: Arc<Connection>,
    /// Its place among the streams of the server, and among those of its connection.
    pub(super) _places: Arc<(OwnedSemaphorePermit, OpenStream)>,
    /// The `eventID` of the record that says that it was opened.
    pub(super) id: Uuid,
    /// Lasts as long.
    pub(super) span: Span,
    /// When the call began, and where it is counted.
    pub(super) began: Instant,
    pub(super) tally: Arc<CallTally>,
    /// True when that is accepted; without a sender when it never will be.
    pub(super) opened: watch::Receiver<bool>,
    /// When the client wants it over.
    pub(super) deadline: Option<Instant>,
    /// How long it may stand still.
    pub(super) stall: Duration,
}

/// The answers of a stream, for tonic to send.
pub(super) struct Answers<P> {
    taken: mpsc::Receiver<P>,
    ended: Option<oneshot::Receiver<Result<(), Status>>>,
}

impl<P> tonic::codegen::tokio_stream::Stream for Answers<P> {
    type Item = Result<P, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(answer) = self.taken.poll_recv(cx) {
            if let Some(answer) = answer {
                return Poll::Ready(Some(Ok(answer)));
            }
        } else {
            return Poll::Pending;
        }
        let Some(ended) = &mut self.ended else {
            return Poll::Ready(None);
        };
        let Poll::Ready(end) = Pin::new(ended).poll(cx) else {
            return Poll::Pending;
        };
        self.ended = None;
        Poll::Ready(match end {
            Ok(Ok(())) => None,
            Ok(Err(status)) => Some(Err(status)),
            // The process ends.
            Err(_) => Some(Err(Status::unavailable("the stream was cut off"))),
        })
    }
}

/// The next message of `requests`, for a handler; none at their end.
pub(super) async fn message<Q>(requests: &mut Streaming<Q>) -> Result<Option<Q>, Error> {
    match requests.message().await {
        Ok(request) => Ok(request),
        Err(status) if is_gone(&status) => std::future::pending().await,
        Err(status) => Err(of_tonic(status.code(), MAX_MESSAGE)),
    }
}

/// Has the stream `begun` go on with `input`, then `requests`, as soon as it is on record.
pub(super) fn go_on<S: Stream>(
    broker: Arc<Broker>,
    passage: Passage,
    lasting: Lasting,
    begun: Begun,
    verified: Verified,
    input: Bytes,
    requests: Streaming<S::Request>,
) -> Answers<S::Response> {
    passage.notes.add(|record| {
        record.stream = Some(audit::Stream {
            id: lasting.id,
            phase: audit::Phase::Opened,
            messages: 0,
        });
    });
    let (answers, taken) = mpsc::channel(1);
    let (end, ended) = oneshot::channel();
    let start = S::started(&begun, verified);
    let lane = Lane::<S> {
        watch: Watch {
            broker,
            until: begun.standing.until(),
            standing: Arc::new(begun.standing),
            confirming: None,
            asking: None,
            ticks: ticks(),
            moved: Instant::now(),
            lasting,
            passage,
        },
        flow: Some(begun.flow),
        requests,
        input,
        output: begun.output,
        plaintext: 0,
        messages: 0,
    };
    tokio::spawn(async move {
        if let Some(outcome) = lane.run(start, answers).await {
            // Err: the client has gone.
            let _ = end.send(outcome);
        }
    });
    Answers {
        taken,
        ended: Some(ended),
    }
}

/// A stream under way.
struct Lane<S: Stream> {
    watch: Watch,
    /// None when all was taken in.
    flow: Option<Flow>,
    requests: Streaming<S::Request>,
    /// What came and was not taken in yet.
    input: Bytes,
    /// What is to be sent.
    output: Bytes,
    plaintext: u64,
    messages: u64,
}

/// Why a stream ends before its end.
enum End {
    Failed(Error),
    /// The client has gone.
    Gone,
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl<S: Stream> Lane<S> {
    /// Runs the stream to its end, closes its record, and returns the status; none when nobody is
    /// there to hear it.
    async fn run(
        mut self,
        start: S::Response,
        answers: mpsc::Sender<S::Response>,
    ) -> Option<Result<(), Status>> {
        let mut opened = self.watch.lasting.opened.clone();
        // Err: the record of its beginning was not accepted, so nothing of it ever was.
        opened.wait_for(|opened| *opened).await.ok()?;
        let lasting = &self.watch.lasting;
        let timed = Timed::since(lasting.began, Arc::clone(&lasting.tally));
        let entry = lasting.audit.begin();
        let notes = entry.notes();
        let begun = self.watch.passage.notes.record();
        notes.add(|record| *record = begun);

        let carried = AssertUnwindSafe(self.carry(start, &answers)).catch_unwind();
        let outcome = match carried.await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Bug("a panic".into()).into()),
        };
        // Given up before anything else is waited for.
        self.note_progress();
        self.flow = None;
        let (id, messages) = (self.watch.lasting.id, self.messages);
        notes.add(|record| {
            record.plaintext_bytes = usize::try_from(self.plaintext).ok();
            record.stream = Some(audit::Stream {
                id,
                phase: audit::Phase::Closed,
                messages,
            });
        });
        let error = match outcome {
            Ok(()) => None,
            Err(End::Failed(error)) => Some(error),
            // The entry says so itself.
            Err(End::Gone) => return None,
        };
        if let Some(error) = &error {
            notes.add(|record| record.failure = Some(failure(error)));
        }
        let error = match entry.finish().await {
            Ok(()) => error,
            Err(unavailable) => Some(unavailable.into()),
        };
        let reason = error.as_ref().map_or("", Error::reason);
        let status = error.map(|error| status(&error, &self.watch.passage.request_id));
        answered(&self.watch.lasting.span, &notes, status.as_ref());
        timed.answered(status.as_ref(), || reason);
        Some(status.map_or(Ok(()), Err))
    }

    async fn carry(
        &mut self,
        start: S::Response,
        answers: &mpsc::Sender<S::Response>,
    ) -> Result<(), End> {
        let mut next = Some(start);
        loop {
            // Room first: whatever is sent next is not made before what was sent last is taken.
            let room = self.watch.attend(answers, answers.reserve()).await?;
            let room = room.map_err(|_| End::Gone)?;
            let answer = match next.take() {
                Some(start) => start,
                None => match self.next(answers).await? {
                    Some(bytes) => S::output(bytes),
                    None => return Ok(()),
                },
            };
            room.send(answer);
            self.messages += 1;
        }
    }

    /// What is to be sent next; none at the end.
    async fn next(&mut self, answers: &mpsc::Sender<S::Response>) -> Result<Option<Bytes>, End> {
        loop {
            if self.watch.standing.is_cut() {
                self.watch.check()?;
            }
            if !self.output.is_empty() {
                let length = self.output.len().min(MOST);
                return Ok(Some(self.output.split_to(length)));
            }
            let Some(flow) = &mut self.flow else {
                return Ok(None);
            };
            if !self.input.is_empty() {
                let piece = self.input.split_to(self.input.len().min(PIECE));
                self.output = flow.push(&piece)?;
                continue;
            }
            let request = self.requests.message();
            match self.watch.attend(answers, request).await? {
                Ok(Some(request)) => {
                    self.input = S::chunk(request)?;
                    self.watch.pay(answers, self.input.len()).await?;
                }
                Ok(None) => {
                    self.note_progress();
                    if let Some(flow) = self.flow.take() {
                        self.output = flow.finish()?;
                    }
                }
                Err(status) if is_gone(&status) => return Err(End::Gone),
                Err(status) => return Err(of_tonic(status.code(), MAX_MESSAGE).into()),
            }
        }
    }

    fn note_progress(&mut self) {
        if let Some(flow) = &self.flow {
            self.plaintext = flow.plaintext();
        }
    }
}

/// Looks after a stream while it waits.
struct Watch {
    broker: Arc<Broker>,
    passage: Passage,
    lasting: Lasting,
    standing: Arc<Standing>,
    /// Until when the data key may be used.
    until: clock::Instant,
    /// Asks whether it may be for longer; nothing else goes on meanwhile.
    confirming: Option<Confirming>,
    /// Asks the store for the grants that the stream may rest on.
    asking: Option<BoxFuture<'static, ()>>,
    ticks: Interval,
    /// When a message last came or went.
    moved: Instant,
}

type Confirming = BoxFuture<'static, Result<clock::Instant, Error>>;

impl Watch {
    /// What `event` brings, unless the stream ends before that.
    async fn attend<T, P>(
        &mut self,
        answers: &mpsc::Sender<P>,
        event: impl Future<Output = T>,
    ) -> Result<T, End> {
        let mut event = pin!(event);
        let stalled = self.moved + self.lasting.stall;
        let deadline = self.lasting.deadline.unwrap_or(stalled);
        let mut over = pin!(tokio::time::sleep_until(deadline.min(stalled)));
        loop {
            tokio::select! {
                // A busy stream shall not go on by being busy.
                biased;
                _ = self.ticks.tick() => {
                    self.check()?;
                    self.renew();
                    self.ask()?;
                }
                () = async { self.asking.as_mut().expect("asked").await },
                    if self.asking.is_some() =>
                {
                    self.asking = None;
                }
                confirmed = async { Some(self.confirming.as_mut()?.await) },
                    if self.confirming.is_some() =>
                {
                    self.confirming = None;
                    if let Some(until) = confirmed {
                        self.until = until?;
                    }
                }
                () = answers.closed() => return Err(End::Gone),
                brought = event.as_mut(), if self.confirming.is_none() => {
                    self.moved = Instant::now();
                    return Ok(brought);
                }
                () = over.as_mut() => {
                    return Err(End::Failed(match deadline < stalled {
                        true => Error::Expired,
                        false => Error::Stalled,
                    }));
                }
            }
        }
    }

    /// Pays for a chunk of `bytes`, when its caller has anything left: a stream that is over a limit
    /// is slow, not refused, and does not take the place of calls that come meanwhile.
    async fn pay<P>(&mut self, answers: &mpsc::Sender<P>, bytes: usize) -> Result<(), End> {
        let units = quota::CALL + quota::of_bytes(bytes);
        while let Err(wait) = self.passage.visitor.account().try_spend(units) {
            self.attend(answers, tokio::time::sleep(wait)).await?;
        }
        Ok(())
    }

    /// Has a data key confirmed that has served its time.
    fn renew(&mut self) {
        if self.confirming.is_none() && self.lasting.clock.now() >= self.until {
            let (standing, broker) = (Arc::clone(&self.standing), Arc::clone(&self.broker));
            self.confirming = Some(Box::pin(async move { standing.confirm(&broker).await }));
        }
    }

    /// Has the store asked anew, where the stream's right may rest on what it said.
    fn ask(&mut self) -> Result<(), Error> {
        if self.asking.is_none() {
            self.asking = self.standing.asking(&self.broker, self.session()?);
        }
        Ok(())
    }

    /// What a new call would be asked.
    fn check(&self) -> Result<(), Error> {
        self.standing.check(&self.broker, self.session()?)
    }

    fn session(&self) -> Result<&Session, Error> {
        let now = self.lasting.clock.wall();
        let session = self.lasting.connection.authenticated(now)?;
        Ok(session)
    }
}

fn ticks() -> Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + TICK, TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Whether the connection brought the error, and not what came over it.
fn is_gone(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// The right to a stream is looked at so often, and a data key that is to go is gone by then.
const TICK: Duration = Duration::from_millis(500);
/// Bytes that are taken in at a time.
const PIECE: usize = 64 << 10;
/// Most bytes in an answer: the frames that a piece completes.
const MOST: usize = PIECE + (1 << 10);
