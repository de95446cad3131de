//! The layer around the routes: it opens the audit record before anything can fail, turns away
//! calls that have no business further in, bounds each call in time, and lets no answer out before
//! its record is accepted. A call's span, if it has one, is as long as its record is open.
//!
//! What tonic answers by itself (an unknown path, a body over the limit or undecodable) passes here
//! too, and leaves as a row of our own error table.

mod headers;
mod rpc;
mod timed;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::HeaderMap;
use http::HeaderValue;
use http::header::USER_AGENT;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Code;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt as _;
use uuid::Uuid;

use crate::audit::Audit;
use crate::audit::Notes;
use crate::audit::Record;
use crate::broker::Broker;
use crate::broker::Operator;
use crate::broker::Visitor;
use crate::clock::Clock;
use crate::datakeys::Patience;
use crate::error::Error;
use crate::error::Unauthenticated;
use crate::grpc::connection::Connection;
use crate::grpc::driver::step_aside;
use crate::grpc::service::failure;
use crate::grpc::status::of_tonic;
use crate::grpc::status::status;
use crate::grpc::stream::Lasting;
use crate::grpc::trace::answered;
use crate::grpc::trace::begin;
use crate::identity::Session;
use crate::metrics::CallTally;
use crate::metrics::Shed;
use crate::quota;
use crate::trace::Span;
use crate::trace::Tracer;

pub(super) use headers::text;
pub(super) use rpc::Contract;
pub(super) use rpc::Rpc;
pub(super) use rpc::Work;
pub(super) use timed::Timed;

use headers::REQUEST_ID;
use headers::allowed;
use headers::patience;
use headers::request_id;

/// What a call brings along to its method: who calls, which the service decides.
#[derive(Clone)]
pub(super) struct Passage<V = Visitor> {
    pub(super) visitor: V,
    pub(super) notes: Notes,
    pub(super) request_id: Arc<str>,
}

/// Guards the routes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Witness(Arc<Inner>);

/// A method that there is.
pub(super) enum Method {
    /// Of grpc.health.v1, which is open to peers without an identity.
    Health,
    /// Of the broker.
    Ours(Rpc),
    /// Of gRPC reflection.
    Reflection,
}

/// What there may be at once, and for how long.
pub(super) struct Bounds {
    /// Calls of ours under way, streams and those that wait for KMS aside.
    pub(super) in_flight: usize,
    /// Streams under way.
    pub(super) streams: usize,
    /// For how long nothing may move on one.
    pub(super) stall: Duration,
}

struct Inner {
    broker: Arc<Broker>,
    /// Of the methods that are not ours.
    open: Routes,
    /// By path, exactly: nothing that only looks like one of them gets past here.
    methods: HashMap<String, Method>,
    /// Of calls of no method of these.
    other: Arc<CallTally>,
    audit: Arc<Audit>,
    tracer: Tracer,
    clock: Arc<dyn Clock>,
    in_flight: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    stall: Duration,
}

impl Witness {
    /// Guards `methods` of `broker`, those that are not ours served by `open`, within `bounds`.
    pub(super) fn new(
        broker: Arc<Broker>,
        open: Routes,
        methods: HashMap<String, Method>,
        audit: Arc<Audit>,
        tracer: Tracer,
        clock: Arc<dyn Clock>,
        bounds: Bounds,
    ) -> Self {
        let other = broker.metrics().calls(OTHER);
        Self(Arc::new(Inner {
            broker,
            open,
            methods,
            other,
            audit,
            tracer,
            clock,
            in_flight: Arc::new(Semaphore::new(bounds.in_flight)),
            streams: Arc::new(Semaphore::new(bounds.streams)),
            stall: bounds.stall,
        }))
    }

    /// The calls of a connection have had their turn: the records of those that are done leave
    /// in one write.
    pub(super) fn settle(&self) {
        self.0.audit.flush();
    }

    /// Answers one request of `connection`.
    pub(super) async fn answer(
        &self,
        connection: &Arc<Connection>,
        request: http::Request<Incoming>,
    ) -> http::Response<Body> {
        connection.call();
        let inner = &self.0;
        let rpc = match inner.methods.get(request.uri().path()) {
            Some(open @ (Method::Health | Method::Reflection)) => {
                return self.open(open, connection, request.map(Body::new)).await;
            }
            Some(Method::Ours(rpc)) => Some(rpc),
            None => None,
        };
        let tally = rpc.map_or(&inner.other, |rpc| &rpc.tally);
        let began = Instant::now();
        let timed = Timed::since(began, &**tally);
        let home = tokio::task::try_id();
        let entry = inner.audit.begin();
        let notes = entry.notes();
        let request_id = request_id(request.headers(), || entry.id());
        let (span, trace_id) = begin(&inner.tracer, tally.method(), request.headers());
        notes.add(|record| {
            introduce(record, rpc, connection, request.headers(), &request_id);
            record.trace_id = trace_id;
        });

        let opened = Opened {
            notes: &notes,
            request_id: &request_id,
            id: entry.id(),
            span: &span,
            began,
            tally,
            until: began + patience(request.headers()),
        };
        let pass = AssertUnwindSafe(inner.pass(connection, rpc, request, &opened));
        let outcome = match tokio::time::timeout_at(opened.until, pass.catch_unwind()).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::Bug("a panic".into())),
            Err(_) => Err(Error::Expired),
        };
        if came_too_many(&outcome) {
            let left = opened.until.saturating_duration_since(Instant::now());
            // Its stream is taken meanwhile: who asks again at once does so ten times a second on
            // each, or less often, and not as fast as we refuse.
            let hold = held_back(opened.id, inner.broker.quotas().hold());
            tokio::time::sleep(hold.min(left / 2)).await;
        }
        let Passed {
            mut response,
            begun,
        } = outcome.unwrap_or_else(|error| {
            notes.add(|record| record.failure = Some(failure(&error)));
            Passed {
                response: status(&error, &request_id).into_http(),
                begun: None,
            }
        });
        // The connection's own task settles after each turn. A call that has stepped aside is
        // elsewhere.
        let recorded = if tokio::task::try_id() == home {
            entry.finish_gathered().await
        } else {
            entry.finish().await
        };
        match (recorded, begun) {
            (Ok(()), None) => {
                let status = response_status(&response);
                answered(&span, &notes, status);
                timed.answered(status, || notes.reason());
            }
            // It says itself what it comes to.
            (Ok(()), Some(begun)) => {
                timed.leave();
                begun.send_replace(true);
            }
            // The record is lost, so the answer must be too.
            (Err(unavailable), _) => {
                let error = Error::from(unavailable);
                let status = status(&error, &request_id);
                answered(&span, &notes, Some(&status));
                timed.answered(Some(&status), || error.reason());
                response = status.into_http();
            }
        }
        if let Ok(mut value) = HeaderValue::from_str(&request_id) {
            // Each is another: in the table of HPACK they would only crowd each other out.
            value.set_sensitive(true);
            response.headers_mut().insert(REQUEST_ID.clone(), value);
        }
        response
    }

    /// Health and reflection touch no key and leave no record; a probe every second would bury
    /// those that matter.
    async fn open(
        &self,
        method: &Method,
        connection: &Arc<Connection>,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        let identity = connection.authenticated(self.0.clock.wall());
        // The health listener knows no peers; elsewhere one whose identity is gone gets nothing.
        match identity {
            Err(Unauthenticated::Missing) if matches!(method, Method::Health) => {}
            Err(reason) => {
                let request_id = request_id(request.headers(), || self.0.audit.id());
                return status(&reason.into(), &request_id).into_http();
            }
            Ok(_) => {}
        }
        match self.0.open.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// A call whose record is open.
struct Opened<'a> {
    notes: &'a Notes,
    request_id: &'a Arc<str>,
    /// The record's.
    id: Uuid,
    span: &'a Span,
    began: Instant,
    tally: &'a Arc<CallTally>,
    /// When the call ends, whatever it has come to.
    until: Instant,
}

impl Opened<'_> {
    fn passage<V>(&self, visitor: V) -> Passage<V> {
        Passage {
            visitor,
            notes: self.notes.clone(),
            request_id: Arc::clone(self.request_id),
        }
    }
}

/// Who calls.
enum Guest {
    Operator(Operator),
    Visitor(Visitor),
}

/// What a call has come to.
struct Passed {
    response: http::Response<Body>,
    /// Of a stream, which waits for its record as the answer does: true once that is accepted.
    begun: Option<watch::Sender<bool>>,
}

impl Inner {
    /// What a stream takes along, if there is a place for it.
    fn lasting(
        &self,
        connection: &Arc<Connection>,
        headers: &HeaderMap,
        call: &Opened<'_>,
        opened: watch::Receiver<bool>,
    ) -> Result<Lasting, Error> {
        let room = Arc::clone(&self.streams).try_acquire_owned();
        Ok(Lasting {
            audit: Arc::clone(&self.audit),
            clock: Arc::clone(&self.clock),
            connection: Arc::clone(connection),
            _places: Arc::new((
                room.map_err(|_| self.shed(Shed::Streams))?,
                connection.stream(),
            )),
            id: call.id,
            span: call.span.clone(),
            began: call.began,
            tally: Arc::clone(call.tally),
            opened,
            // One that is out of reach is none.
            deadline: allowed(headers).and_then(|allowed| Instant::now().checked_add(allowed)),
            stall: self.stall,
        })
    }

    /// Refuses a call, for want of room.
    fn shed(&self, reason: Shed) -> Error {
        self.broker.metrics().shed(reason);
        Error::Overloaded
    }

    /// Who calls `rpc`, if they may call it at all.
    fn guest(
        &self,
        connection: &Connection,
        session: &Session,
        rpc: &Rpc,
        call: &Opened<'_>,
    ) -> Result<Guest, Error> {
        match rpc.service {
            Contract::Admin(_) => {
                let operator = self.broker.operator(session, call.notes)?;
                Ok(Guest::Operator(operator))
            }
            Contract::Decrypt(_)
            | Contract::Encrypt(_)
            | Contract::Grants(_)
            | Contract::Keys(_) => {
                let visitor = self
                    .broker
                    .visitor(session, &connection.account, call.notes)?;
                let account = visitor.account();
                account.enter().map_err(|_| self.shed(Shed::QueueDelay))?;
                account.spend(quota::CALL)?;
                Ok(Guest::Visitor(visitor))
            }
        }
    }

    async fn pass(
        &self,
        connection: &Arc<Connection>,
        rpc: Option<&Rpc>,
        request: http::Request<Incoming>,
        call: &Opened<'_>,
    ) -> Result<Passed, Error> {
        let session = connection.authenticated(self.clock.wall())?;
        let rpc = rpc.ok_or(Error::MethodUnknown)?;
        let guest = self.guest(connection, session, rpc, call)?;
        let mut begun = None;
        let (request, place, turn) = match rpc.work {
            Work::Control => {
                let (request, place) = connection.room.admit(request, rpc.limit, rpc.answer).await;
                (request, place, None)
            }
            Work::Long | Work::Short => {
                // Before the body is read, which may take long and a place of the connection's.
                if self.in_flight.available_permits() == 0 {
                    return Err(self.shed(Shed::InFlight));
                }
                let (request, place) = connection.room.admit(request, rpc.limit, rpc.answer).await;
                let turn = Arc::clone(&self.in_flight).try_acquire_owned();
                (
                    request,
                    place,
                    Some(turn.map_err(|_| self.shed(Shed::InFlight))?),
                )
            }
            Work::Stream => {
                let mut request = request.map(Body::new);
                let opened = begun.insert(watch::Sender::new(false)).subscribe();
                let lasting = self.lasting(connection, request.headers(), call, opened)?;
                request.extensions_mut().insert(lasting);
                (request, None, None)
            }
        };
        let patience = Arc::new(Patience::new(call.until, turn, call.span.cause()));
        match rpc.work {
            Work::Control | Work::Long | Work::Stream => step_aside().await,
            Work::Short => {}
        }
        let response = rpc.call(request, guest, patience, call).await?;
        let response = match place {
            // A refusal may be held back, and shall not keep others from the room.
            Some(place) if response_status(&response).is_none() => place.hold(response),
            Some(_) | None => response,
        };
        match response_status(&response) {
            // Our own methods note why they fail; a status without a note is tonic's.
            Some(status) if !call.notes.failed() => Err(of_tonic(status.code(), rpc.limit)),
            Some(_) | None => Ok(Passed { response, begun }),
        }
    }
}

/// Why the call failed, if it did.
fn response_status(response: &http::Response<Body>) -> Option<&Status> {
    response.extensions().get()
}

/// Notes what is known of a call before anything of it is believed.
fn introduce(
    record: &mut Record,
    rpc: Option<&Rpc>,
    connection: &Connection,
    headers: &HeaderMap,
    request_id: &Arc<str>,
) {
    record.event_name = rpc.map(|rpc| Arc::clone(&rpc.name));
    record.origin = Some(Arc::clone(&connection.origin));
    record.user_agent = text(headers, &USER_AGENT).map(|agent| connection.agent(agent));
    record.request_id = Some(Arc::clone(request_id));
}

/// Whether the call is refused because there are too many: at the door, or further in.
fn came_too_many(outcome: &Result<Passed, Error>) -> bool {
    match outcome {
        Ok(passed) => {
            let status = response_status(&passed.response);
            status.is_some_and(|status| status.code() == Code::ResourceExhausted)
        }
        Err(error) => matches!(error, Error::Overloaded | Error::RateLimited(_)),
    }
}

/// How long the call `id` waits for its refusal, half of `mean` to three halves: those that come
/// together do not leave together, and so do not come together again.
fn held_back(id: Uuid, mean: Duration) -> Duration {
    // Ids count up.
    let (_, low) = id.as_u64_pair();
    mean / 2 + mean * u32::try_from(low % 64).unwrap_or_default() / 64
}

/// What calls of a method that there is not are counted as: OpenTelemetry's word.
const OTHER: &str = "_OTHER";
