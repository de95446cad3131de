//! The record's fields, which are CloudTrail's names where it has them, and their one line of
//! JSON.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

/// What is known of a call. A field that was never learned is `null` in the line.
#[derive(Default)]
pub struct Record {
    /// The RPC's name without its service, `_OTHER` for a path that is no RPC.
    pub event_name: Option<Arc<str>>,
    /// Who called.
    pub identity: Option<UserIdentity>,
    /// The tenant whose key is used or, before that is known, the caller's.
    pub tenant: Option<String>,
    /// The peer's address; `unix` on a Unix socket.
    pub source: Option<Arc<str>>,
    /// What the client calls itself.
    pub user_agent: Option<String>,
    /// The connection's TLS parameters.
    pub tls: Option<Tls>,
    /// `x-request-id`, the client's or ours.
    pub request_id: Option<Arc<str>>,
    /// The trace that the call belongs to, from `traceparent`.
    pub trace_id: Option<String>,
    /// The key's full name, as the request gives it or the message names it.
    pub key: Option<String>,
    /// The names of the caller's own context pairs; never values.
    pub context_keys: Vec<String>,
    /// Bytes of plaintext taken or released.
    pub plaintext_bytes: Option<usize>,
    /// The data keys used: two for a ReEncrypt.
    pub resources: Vec<Resource>,
    /// The list of the key policy that allowed the call.
    pub rule: Option<&'static str>,
    /// The generation of the directory that was in force.
    pub policy_generation: Option<u64>,
    /// Where the data key came from.
    pub cache: Option<Cache>,
    /// KMS's name for its call, which joins this record to CloudTrail's.
    pub kms_request_id: Option<String>,
    /// Why the call failed; `None` if it was served.
    pub failure: Option<Failure>,
}

/// A key's version that was used, and the KMS key behind it.
#[derive(Serialize)]
pub struct Resource {
    /// `tenants/…/keys/…/versions/…`.
    pub name: Arc<str>,
    /// What stands in the message as the data key's provider info.
    #[serde(rename = "ARN")]
    pub arn: Arc<str>,
    /// `KMSKey`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// Why a call failed.
pub struct Failure {
    /// The reason, as on the wire.
    pub reason: &'static str,
    /// The cause, for operators: it may say more than the client is told.
    pub cause: String,
}

impl Failure {
    /// The client went away, or the process stopped, before the call was done.
    pub(super) fn abandoned() -> Self {
        Self {
            reason: "ABANDONED",
            cause: "the call was dropped before its end".into(),
        }
    }
}

/// Who called, in CloudTrail's shape.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UserIdentity {
    /// `SPIFFE`, `DNS` or `Unix`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The principal.
    pub principal_id: Arc<str>,
    /// What proved it: `x509-svid`, `x509` or `so_peercred`.
    pub authenticator: &'static str,
    /// The certificate, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_context: Option<Session>,
}

/// The certificate that a connection showed.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Its serial number, in hex.
    pub cert_serial: Arc<str>,
    /// When it ends.
    pub not_after: Timestamp,
}

/// A connection's TLS parameters.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// `TLSv1.3`.
    pub tls_version: &'static str,
    /// The suite's IANA name.
    pub cipher_suite: &'static str,
}

/// Where a data key came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// This call waited for another's KMS call.
    Coalesced,
    /// The cache had it.
    Hit,
    /// KMS was called for this call.
    Miss,
    /// From the cache, past a soft limit: its successor was not there yet.
    Stale,
}

/// What the trail adds to a record when it is closed.
pub(super) struct Stamp<'a> {
    pub(super) instance: &'a str,
    pub(super) id: Uuid,
    pub(super) seq: u64,
    pub(super) began: Timestamp,
    pub(super) micros: i128,
}

impl Record {
    /// Adds the record to `line` as one line of JSON, the newline included.
    pub(super) fn line(&self, stamp: &Stamp<'_>, line: &mut Vec<u8>) {
        line.reserve(LINE);
        let written = serde_json::to_writer(
            &mut *line,
            &Line {
                event_version: "1.0",
                event_time: stamp.began,
                event_id: stamp.id,
                event_source: "keybroker",
                event_name: self.event_name.as_deref().unwrap_or("_OTHER"),
                event_category: "Data",
                read_only: true,
                user_identity: self.identity.as_ref(),
                tenant: self.tenant.as_deref(),
                source_ip_address: self.source.as_deref(),
                user_agent: self.user_agent.as_deref(),
                tls_details: self.tls,
                request_id: self.request_id.as_deref(),
                trace_id: self.trace_id.as_deref(),
                request_parameters: Parameters {
                    key: self.key.as_deref(),
                    encryption_context_keys: &self.context_keys,
                    plaintext_bytes: self.plaintext_bytes,
                },
                response_elements: None,
                resources: &self.resources,
                additional_event_data: Additional {
                    rule: self.rule,
                    grant_id: None,
                    policy_generation: self.policy_generation,
                    cache: self.cache,
                    kms_request_id: self.kms_request_id.as_deref(),
                    duration_micros: i64::try_from(stamp.micros).unwrap_or(i64::MAX),
                },
                error_code: self.failure.as_ref().map(|failure| failure.reason),
                error_message: self.failure.as_ref().map(|failure| failure.cause.as_str()),
                instance: stamp.instance,
                seq: stamp.seq,
            },
        );
        debug_assert!(written.is_ok(), "a record of strings and numbers is JSON");
        line.push(b'\n');
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    event_version: &'static str,
    event_time: Timestamp,
    #[serde(rename = "eventID")]
    event_id: Uuid,
    event_source: &'static str,
    event_name: &'a str,
    event_category: &'static str,
    read_only: bool,
    user_identity: Option<&'a UserIdentity>,
    tenant: Option<&'a str>,
    #[serde(rename = "sourceIPAddress")]
    source_ip_address: Option<&'a str>,
    user_agent: Option<&'a str>,
    tls_details: Option<Tls>,
    #[serde(rename = "requestID")]
    request_id: Option<&'a str>,
    trace_id: Option<&'a str>,
    request_parameters: Parameters<'a>,
    response_elements: Option<()>,
    resources: &'a [Resource],
    additional_event_data: Additional<'a>,
    error_code: Option<&'a str>,
    error_message: Option<&'a str>,
    instance: &'a str,
    seq: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Parameters<'a> {
    key: Option<&'a str>,
    encryption_context_keys: &'a [String],
    plaintext_bytes: Option<usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Additional<'a> {
    rule: Option<&'static str>,
    grant_id: Option<()>,
    policy_generation: Option<u64>,
    cache: Option<Cache>,
    #[serde(rename = "kmsRequestID")]
    kms_request_id: Option<&'a str>,
    duration_micros: i64,
}

/// Room for a usual line.
const LINE: usize = 1280;
