//! The span of a call: its parent from the metadata, and its attributes from the call's record.

use http::HeaderMap;
use http::HeaderName;
use tonic::Status;

use crate::audit::Cache;
use crate::audit::Notes;
use crate::grpc::witness::text;
use crate::metrics::CallOutcome;
use crate::metrics::Code;
use crate::trace;
use crate::trace::Fault;
use crate::trace::Parent;
use crate::trace::Span;
use crate::trace::Tracer;

/// Begins the span of a call of `method`, if it is to have one, and tells which trace the call belongs
/// to.
pub(super) fn begin(tracer: &Tracer, method: &str, headers: &HeaderMap) -> (Span, Option<String>) {
    let parent = text(headers, &TRACEPARENT).and_then(Parent::parse);
    let state = || headers.get(&TRACESTATE)?.to_str().ok();
    let span = tracer.call(parent.as_ref(), state, || method.to_owned());
    let trace_id = match parent {
        Some(parent) => Some(parent.trace_id().to_owned()),
        None => span.trace_id(),
    };
    (span, trace_id)
}

/// Says what the call of `notes` came to: `status`, or success.
pub(super) fn answered(span: &Span, notes: &Notes, status: Option<&Status>) {
    if !span.is_recording() {
        return;
    }
    let record = notes.record();
    span.note(trace::TENANT, record.tenant.as_ref());
    span.note(trace::KEY, record.key.as_ref());
    span.note(trace::CACHE, record.cache.map(Cache::name));
    let reason = record.failure.map(|failure| failure.reason);
    span.note(trace::REASON, reason);
    let code = status.map_or(Code::Ok, |status| code(status.code()));
    let fault = match code.outcome() {
        CallOutcome::Failed => Fault::Own,
        CallOutcome::Abandoned | CallOutcome::Done | CallOutcome::Refused => Fault::None,
    };
    span.answered(code.label(), fault);
}

/// As it is counted and told.
pub(super) fn code(code: tonic::Code) -> Code {
    match code {
        tonic::Code::Aborted => Code::Aborted,
        tonic::Code::AlreadyExists => Code::AlreadyExists,
        tonic::Code::Cancelled => Code::Cancelled,
        tonic::Code::DataLoss => Code::DataLoss,
        tonic::Code::DeadlineExceeded => Code::DeadlineExceeded,
        tonic::Code::FailedPrecondition => Code::FailedPrecondition,
        tonic::Code::Internal => Code::Internal,
        tonic::Code::InvalidArgument => Code::InvalidArgument,
        tonic::Code::NotFound => Code::NotFound,
        tonic::Code::Ok => Code::Ok,
        tonic::Code::OutOfRange => Code::OutOfRange,
        tonic::Code::PermissionDenied => Code::PermissionDenied,
        tonic::Code::ResourceExhausted => Code::ResourceExhausted,
        tonic::Code::Unauthenticated => Code::Unauthenticated,
        tonic::Code::Unavailable => Code::Unavailable,
        tonic::Code::Unimplemented => Code::Unimplemented,
        tonic::Code::Unknown => Code::Unknown,
    }
}

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
