//! The span of a call: its parent from the metadata, and its attributes from the call's record.

use http::HeaderMap;
use http::HeaderName;
use tonic::Code;
use tonic::Status;

use crate::audit::Cache;
use crate::audit::Notes;
use crate::grpc::pb::key_broker_service_server::SERVICE_NAME;
use crate::grpc::witness::Rpc;
use crate::grpc::witness::text;
use crate::trace;
use crate::trace::Fault;
use crate::trace::Parent;
use crate::trace::Span;
use crate::trace::Tracer;

/// Begins the span of a call of `rpc`, if it is to have one, and tells which trace the call belongs
/// to.
pub(super) fn begin(
    tracer: &Tracer,
    rpc: Option<&Rpc>,
    headers: &HeaderMap,
) -> (Span, Option<String>) {
    let parent = text(headers, &TRACEPARENT).and_then(Parent::parse);
    let state = || headers.get(&TRACESTATE)?.to_str().ok();
    let method = || match rpc {
        Some(rpc) => format!("{SERVICE_NAME}/{}", rpc.name),
        None => "_OTHER".to_owned(),
    };
    let span = tracer.call(parent.as_ref(), state, method);
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
    let (name, fault) = of(status.map_or(Code::Ok, Status::code));
    span.answered(name, fault);
}

/// The name of `code`, and whether it tells of a fault of the server's.
fn of(code: Code) -> (&'static str, Fault) {
    match code {
        Code::Aborted => ("ABORTED", Fault::None),
        Code::AlreadyExists => ("ALREADY_EXISTS", Fault::None),
        Code::Cancelled => ("CANCELLED", Fault::None),
        Code::DataLoss => ("DATA_LOSS", Fault::Own),
        Code::DeadlineExceeded => ("DEADLINE_EXCEEDED", Fault::Own),
        Code::FailedPrecondition => ("FAILED_PRECONDITION", Fault::None),
        Code::Internal => ("INTERNAL", Fault::Own),
        Code::InvalidArgument => ("INVALID_ARGUMENT", Fault::None),
        Code::NotFound => ("NOT_FOUND", Fault::None),
        Code::Ok => ("OK", Fault::None),
        Code::OutOfRange => ("OUT_OF_RANGE", Fault::None),
        Code::PermissionDenied => ("PERMISSION_DENIED", Fault::None),
        Code::ResourceExhausted => ("RESOURCE_EXHAUSTED", Fault::None),
        Code::Unauthenticated => ("UNAUTHENTICATED", Fault::None),
        Code::Unavailable => ("UNAVAILABLE", Fault::Own),
        Code::Unimplemented => ("UNIMPLEMENTED", Fault::Own),
        Code::Unknown => ("UNKNOWN", Fault::Own),
    }
}

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
