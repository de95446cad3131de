//! Spans: one a call, and one a request to KMS. Whether a call has one is decided before anything
//! of it is made, and requests follow their call.
//!
//! What stands in a span is named by who makes it: names, Regions and outcomes, never content, and
//! no value of a context pair.

mod parent;
mod sampling;

use std::fmt::Display;
use std::hash::BuildHasher as _;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use opentelemetry::Context;
use opentelemetry::KeyValue;
use opentelemetry::Value;
use opentelemetry::global::BoxedSpan;
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::Span as _;
use opentelemetry::trace::SpanBuilder;
use opentelemetry::trace::SpanContext;
use opentelemetry::trace::SpanKind;
use opentelemetry::trace::Status;
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry::trace::Tracer as _;

pub use parent::Parent;
pub use sampling::Sampling;
pub use sampling::UnknownSampler;

/// Makes spans, or none. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    tracer: BoxedTracer,
    sampling: Sampling,
    dice: Dice,
}

/// A span while it is made, or none. It ends with its last clone.
#[derive(Clone, Default)]
pub struct Span(Option<Arc<Recording>>);

struct Recording {
    context: SpanContext,
    state: Mutex<State>,
}

struct State {
    span: BoxedSpan,
    /// What it came to if nobody says.
    otherwise: Option<KeyValue>,
}

/// What a request to KMS is made for.
#[derive(Clone)]
pub enum Cause {
    /// A call with this span, which may have ended.
    Call(Arc<SpanContext>),
    /// No call: it is decided anew whether there is a span.
    Nobody,
    /// A call without a span.
    Untraced,
}

/// A request to KMS.
pub struct Request<'a> {
    /// `aws-kms`, or another service's own name.
    pub system: &'static str,
    /// As KMS calls it.
    pub operation: &'static str,
    /// Where it is made.
    pub region: &'a str,
    /// The how manieth of its call it is, from 1 on.
    pub attempt: u32,
}

impl Tracer {
    /// Makes no spans at all.
    pub fn off() -> Self {
        Self(None)
    }

    /// Makes the spans that `sampling` chooses, with `tracer`, which shall make all of them.
    pub fn new(tracer: BoxedTracer, sampling: Sampling) -> Self {
        Self(Some(Arc::new(Inner {
            tracer,
            sampling,
            dice: Dice::default(),
        })))
    }

    /// Begins the span of a call that came with `parent` and, where asked for, with this
    /// `tracestate`. `method` is its full name.
    pub fn call<'a>(
        &self,
        parent: Option<&Parent<'_>>,
        state: impl FnOnce() -> Option<&'a str>,
        method: impl FnOnce() -> String,
    ) -> Span {
        let Some(inner) = &self.0 else {
            return Span::default();
        };
        if !inner.sampling.takes(parent, || inner.dice.roll()) {
            return Span::default();
        }
        let parent = parent.and_then(|parent| parent.context(state()));
        let method = method();
        let attributes = vec![
            KeyValue::new(SYSTEM, "grpc"),
            KeyValue::new(METHOD, method.clone()),
        ];
        let otherwise = KeyValue::new(STATUS, "CANCELLED");
        inner.start(method, SpanKind::Server, parent, attributes, otherwise)
    }

    /// Begins the span of a request to KMS.
    pub fn request(&self, cause: &Cause, request: &Request<'_>) -> Span {
        let Some(inner) = &self.0 else {
            return Span::default();
        };
        let parent = match cause {
            Cause::Call(span) => Some(SpanContext::clone(span)),
            Cause::Nobody if inner.sampling.takes(None, || inner.dice.roll()) => None,
            Cause::Nobody | Cause::Untraced => return Span::default(),
        };
        let method = format!("KMS/{}", request.operation);
        let attributes = vec![
            KeyValue::new(SYSTEM, request.system),
            KeyValue::new(METHOD, method.clone()),
            KeyValue::new(REGION, request.region.to_owned()),
            KeyValue::new(ATTEMPT, i64::from(request.attempt)),
        ];
        let otherwise = KeyValue::new(OUTCOME, "abandoned");
        inner.start(method, SpanKind::Client, parent, attributes, otherwise)
    }
}

impl Inner {
    fn start(
        &self,
        name: String,
        kind: SpanKind,
        parent: Option<SpanContext>,
        attributes: Vec<KeyValue>,
        otherwise: KeyValue,
    ) -> Span {
        let builder = SpanBuilder::from_name(name)
            .with_kind(kind)
            .with_attributes(attributes);
        let none = Context::new();
        let around = match parent {
            Some(parent) => none.with_remote_span_context(parent),
            None => none,
        };
        let span = self.tracer.build_with_context(builder, &around);
        if !span.is_recording() {
            // The process ends.
            return Span::default();
        }
        Span(Some(Arc::new(Recording {
            context: span.span_context().clone(),
            state: Mutex::new(State {
                span,
                otherwise: Some(otherwise),
            }),
        })))
    }
}

impl Span {
    /// What is made while it lasts, or because of it, is its child.
    pub fn cause(&self) -> Cause {
        match &self.0 {
            Some(recording) => Cause::Call(Arc::new(recording.context.clone())),
            None => Cause::Untraced,
        }
    }

    /// Whether there is one.
    pub fn is_recording(&self) -> bool {
        self.0.is_some()
    }

    /// The id of its trace.
    pub fn trace_id(&self) -> Option<String> {
        let recording = self.0.as_ref()?;
        Some(recording.context.trace_id().to_string())
    }

    /// Adds what `value` is displayed as, if there is a span to add it to.
    pub fn note(&self, name: &'static str, value: Option<impl Display>) {
        if let (Some(recording), Some(value)) = (&self.0, value) {
            recording.set(name, value.to_string());
        }
    }

    /// Says by its status what a call came to, and whether that is a fault on this side.
    pub fn answered(&self, status: &'static str, fault: Fault) {
        if let Some(recording) = &self.0 {
            recording.came_to(STATUS, status, fault);
        }
    }

    /// Says what a request to KMS came to, likewise.
    pub fn came_to(&self, outcome: &'static str, fault: Fault) {
        if let Some(recording) = &self.0 {
            recording.came_to(OUTCOME, outcome, fault);
        }
    }
}

/// Whether what came of a span is an error of its own side, so that it is one where spans are looked
/// at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is none, or another's.
    None,
    /// It is one.
    Own,
}

impl Recording {
    fn came_to(&self, name: &'static str, outcome: &'static str, fault: Fault) {
        let mut state = self.lock();
        state.otherwise = None;
        state.span.set_attribute(KeyValue::new(name, outcome));
        match fault {
            Fault::None => {}
            Fault::Own => {
                state.span.set_attribute(KeyValue::new(ERROR, outcome));
                state.span.set_status(Status::error(""));
            }
        }
    }

    fn set(&self, name: &'static str, value: impl Into<Value>) {
        self.lock().span.set_attribute(KeyValue::new(name, value));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut state = self.lock();
        if let Some(otherwise) = state.otherwise.take() {
            state.span.set_attribute(otherwise);
        }
        state.span.end();
    }
}

/// Chooses among calls that bring nothing to choose by. To ask the operating system would cost more
/// than all else of a call without a span.
#[derive(Default)]
struct Dice {
    keyed: RandomState,
    rolls: AtomicU64,
}

impl Dice {
    fn roll(&self) -> u64 {
        self.keyed
            .hash_one(self.rolls.fetch_add(1, Ordering::Relaxed))
    }
}

/// The tenant whose key a call uses, or the caller's.
pub const TENANT: &str = "keybroker.tenant";
/// The name of the key that a call uses.
pub const KEY: &str = "keybroker.key";
/// Where a call's data key came from.
pub const CACHE: &str = "keybroker.cache";
/// Why a call failed, as its client is told.
pub const REASON: &str = "keybroker.reason";
/// KMS's own name for a request.
pub const REQUEST_ID: &str = "aws.request_id";

// OpenTelemetry's conventions, version 1.39 and later.
const SYSTEM: &str = "rpc.system.name";
const METHOD: &str = "rpc.method";
const STATUS: &str = "rpc.response.status_code";
const ERROR: &str = "error.type";
const REGION: &str = "cloud.region";
// Our own.
const OUTCOME: &str = "keybroker.kms.outcome";
const ATTEMPT: &str = "keybroker.kms.attempt";
