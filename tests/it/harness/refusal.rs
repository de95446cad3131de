//! An error as a client reads it.

use std::time::Duration;

use tonic::Code;
use tonic::Status;
use tonic_types::StatusExt as _;

/// A status taken apart: what is API, and the sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub code: Code,
    /// `ErrorInfo.reason`; empty without an ErrorInfo.
    pub reason: String,
    /// `ErrorInfo.domain`.
    pub domain: String,
    /// The other details' names, in the order of their definition.
    pub details: Vec<&'static str>,
    /// `BadRequest`'s fields.
    pub fields: Vec<String>,
    /// `RetryInfo`'s delay.
    pub retry: Option<Duration>,
    /// `grpc-retry-pushback-ms`.
    pub pushback: Option<u64>,
    /// The sentence.
    pub message: String,
}

impl Refusal {
    /// Takes `status` apart.
    pub fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let named = [
            (details.bad_request().is_some(), "BadRequest"),
            (details.debug_info().is_some(), "DebugInfo"),
            (details.help().is_some(), "Help"),
            (
                details.precondition_failure().is_some(),
                "PreconditionFailure",
            ),
            (details.quota_failure().is_some(), "QuotaFailure"),
            (details.request_info().is_some(), "RequestInfo"),
            (details.retry_info().is_some(), "RetryInfo"),
        ];
        let fields = details.bad_request().into_iter().flat_map(|bad| {
            let violations = bad.field_violations.iter();
            violations.map(|violation| violation.field.clone())
        });
        let pushback = status.metadata().get("grpc-retry-pushback-ms");
        Self {
            code: status.code(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            domain: info.map(|info| info.domain.clone()).unwrap_or_default(),
            details: named
                .into_iter()
                .filter_map(|(present, name)| present.then_some(name))
                .collect(),
            fields: fields.collect(),
            retry: details.retry_info().and_then(|retry| retry.retry_delay),
            pushback: pushback.map(|text| text.to_str().unwrap().parse().unwrap()),
            message: status.message().to_owned(),
        }
    }
}

/// The reason of a call that must have failed.
pub fn reason<T>(outcome: Result<T, Status>) -> String {
    match outcome {
        Ok(_) => panic!("the call was served"),
        Err(status) => Refusal::of(&status).reason,
    }
}
