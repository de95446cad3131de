//! The record's fields, which are CloudTrail's names where it has them, and their one line of
//! JSON.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::audit::json::Fragment;
use crate::audit::json::Names;
use crate::audit::json::Other;
use crate::audit::json::Values;
use crate::audit::json::put;
use crate::audit::tally::Tally;
use crate::grants::Id;
use crate::name::KeyName;
use crate::name::TenantId;

/// What is known of a call. A field that was never learned is `null` in the line.
#[derive(Clone, Default)]
pub struct Record {
    /// The RPC's name without its service, `_OTHER` for a path that is no RPC; `EndKmsGrant` for
    /// what the broker does by itself.
    pub event_name: Option<Arc<str>>,
    /// Who called, and over which connection.
    pub origin: Option<Arc<Origin>>,
    /// The tenant whose key is used or, before that is known, the caller's.
    pub tenant: Option<TenantId>,
    /// What the client calls itself.
    pub user_agent: Option<Arc<str>>,
    /// `x-request-id`, the client's or ours.
    pub request_id: Option<Arc<str>>,
    /// The trace that the call belongs to, from `traceparent`.
    pub trace_id: Option<String>,
    /// The key's full name, as the request gives it or the message names it.
    pub key: Option<KeyName>,
    /// The names of the caller's own context pairs.
    pub context_keys: Names,
    /// The pairs of the encryption context whose values the key's tenant lets stand here.
    pub context_values: Values,
    /// Bytes of plaintext taken or released.
    pub plaintext_bytes: Option<usize>,
    /// The data keys used, two for a ReEncrypt, each with every KMS key that wrapped it; the key of
    /// a grant of AWS KMS.
    pub resources: Vec<Resource>,
    /// The list of the key policy that allowed the call, `grant` or `operators`.
    pub rule: Option<&'static str>,
    /// The grant that allowed the call, or that it is about.
    pub grant_id: Option<Id>,
    /// What a call says of a grant; stands in no other call's line.
    pub grant: Option<Box<Terms>>,
    /// The grant of AWS KMS that there is or was; stands in no other line.
    pub kms_grant: Option<Box<KmsGrant>>,
    /// The number of the change that it made in the store; stands in no other call's line.
    pub change: Option<u64>,
    /// What kind of call it is.
    pub category: Category,
    /// The generation of the directory that was in force.
    pub policy_generation: Option<u64>,
    /// Where the data key came from.
    pub cache: Option<Cache>,
    /// KMS's names for its calls, which join this record to CloudTrail's: two where two KMS keys
    /// wrap a new data key.
    pub kms_request_ids: Vec<String>,
    /// The items of a batch and what became of them; stands in no other call's line.
    pub items: Option<Tally>,
    /// Of which stream it is the first or the last record.
    pub stream: Option<Stream>,
    /// Why the call failed; `None` if it was served.
    pub failure: Option<Failure>,
}

/// What kind of call a record is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Category {
    /// One that uses a key, or looks at it.
    #[default]
    Data,
    /// One that looks at what is managed.
    Look,
    /// One that changes it.
    Manage,
}

/// What a call says of a grant, in the words of AWS KMS.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// Whom it is for.
    pub grantee_principal: String,
    /// Who may retire it.
    pub retiring_principal: Option<String>,
    /// What it allows.
    pub operations: Vec<&'static str>,
    /// How its pairs compare: `EncryptionContextEquals` or `EncryptionContextSubset`.
    pub constraint: Option<&'static str>,
    /// The names of its pairs; never values.
    pub encryption_context_keys: Vec<String>,
    /// Its name.
    pub name: Option<String>,
    /// How often it may be used.
    pub max_uses: Option<u32>,
}

/// A grant of AWS KMS, by the names that it has.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KmsGrant {
    /// KMS's id of it.
    pub id: String,
    /// Its name in KMS.
    pub name: String,
    /// The ARN of whom it is for.
    pub grantee_principal: String,
    /// Who made it.
    pub issuing_principal: String,
    /// Why it has ended, where it has: `expired`, `orphaned` (whoever made it never heard that it
    /// was made), `removed` (its key or tenant), `revoked` or `suspended` (its tenant).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ending: Option<&'static str>,
    /// Whether KMS had it no more when it was to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub already_gone: Option<bool>,
}

/// A stream's two records: one before its first byte leaves, one when it has ended.
#[derive(Clone, Copy)]
pub struct Stream {
    /// What both have in common: the `eventID` of the first.
    pub id: Uuid,
    /// Which of the two it is.
    pub phase: Phase,
    /// How many messages it has sent.
    pub messages: u64,
}

/// Where a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// At its end, however it ended.
    Closed,
    /// At its beginning: it is authorized and has a data key.
    Opened,
}

/// A key's version that was used, and the KMS key behind it.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    /// `tenants/…/keys/…/versions/…`.
    pub name: Arc<str>,
    /// What stands in the message as the data key's provider info.
    pub arn: Arc<str>,
    /// `KMSKey`.
    pub kind: &'static str,
}

/// Why a call failed.
#[derive(Clone)]
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

/// What is the same for all calls of a connection, in the form that it has in their lines.
pub struct Origin {
    identity: Fragment,
    source: Fragment,
    tls: Fragment,
}

impl Origin {
    /// A peer that is `identity`, at `source`: its address, or `unix` on a Unix socket; of the
    /// broker itself see [`Origin::broker`].
    pub fn new(identity: Option<&UserIdentity>, source: &str, tls: Option<Tls>) -> Self {
        Self {
            identity: Fragment::of(Other(identity)),
            source: Fragment::of(source),
            tls: Fragment::of(Other(tls)),
        }
    }

    /// Nobody but the broker, which does by itself what nobody calls it for.
    pub fn broker() -> Self {
        let identity = UserIdentity {
            kind: "Service",
            principal_id: SERVICE.into(),
            authenticator: "none",
            session_context: None,
        };
        Self::new(Some(&identity), SERVICE, None)
    }
}

/// Who called, in CloudTrail's shape.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UserIdentity {
    /// `SPIFFE`, `DNS` or `Unix`; `Service` for the broker itself.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The principal.
    pub principal_id: Arc<str>,
    /// What proved it: `x509-svid`, `x509` or `so_peercred`; `none` where nobody called.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
pub struct Stamp {
    /// Which process it is.
    pub instance: Uuid,
    /// The record's own id.
    pub id: Uuid,
    /// When the call began.
    pub began: Timestamp,
    /// How long it took, in microseconds.
    pub micros: i128,
}

impl Record {
    /// Adds the record to `line` as one line of JSON, the newline included. What links it to others
    /// comes when it is written.
    pub fn line(&self, stamp: &Stamp, line: &mut Vec<u8>) {
        line.reserve(LINE);
        let origin = self.origin.as_deref();
        let event_name = self.event_name.as_deref().unwrap_or("_OTHER");
        put(line, r#"{"eventVersion":"1.0","eventTime":"#, stamp.began);
        put(line, r#","eventID":"#, stamp.id);
        put(
            line,
            r#","eventSource":"keybroker","eventName":"#,
            event_name,
        );
        line.extend_from_slice(self.category.words());
        put(
            line,
            r#","userIdentity":"#,
            origin.map(|origin| &origin.identity),
        );
        put(line, r#","tenant":"#, self.tenant.as_ref());
        put(
            line,
            r#","sourceIPAddress":"#,
            origin.map(|origin| &origin.source),
        );
        put(line, r#","userAgent":"#, self.user_agent.as_deref());
        put(line, r#","tlsDetails":"#, origin.map(|origin| &origin.tls));
        put(line, r#","requestID":"#, self.request_id.as_deref());
        put(line, r#","traceId":"#, self.trace_id.as_deref());
        self.request_parameters(line);
        line.extend_from_slice(br#","responseElements":null"#);
        self.resources(line);
        self.additional_event_data(stamp.micros, line);
        let failure = self.failure.as_ref();
        put(
            line,
            r#","errorCode":"#,
            failure.map(|failure| failure.reason),
        );
        put(
            line,
            r#","errorMessage":"#,
            failure.map(|failure| &*failure.cause),
        );
        put(line, r#","instance":"#, stamp.instance);
        line.extend_from_slice(b"}\n");
    }

    fn request_parameters(&self, line: &mut Vec<u8>) {
        put(line, r#","requestParameters":{"key":"#, self.key.as_ref());
        put(line, r#","encryptionContextKeys":"#, &self.context_keys);
        // Most tenants name none.
        if !self.context_values.is_empty() {
            put(line, r#","encryptionContext":"#, &self.context_values);
        }
        put(
            line,
            r#","plaintextBytes":"#,
            self.plaintext_bytes.map(Other),
        );
        if let Some(items) = &self.items {
            put(line, r#","items":"#, Other(items.items()));
        }
        if let Some(grant) = &self.grant {
            put(line, r#","grant":"#, Other(grant));
        }
        line.push(b'}');
    }

    fn resources(&self, line: &mut Vec<u8>) {
        line.extend_from_slice(br#","resources":["#);
        let mut before = r#"{"name":"#;
        for resource in &self.resources {
            put(line, before, &*resource.name);
            put(line, r#","ARN":"#, &*resource.arn);
            put(line, r#","type":"#, resource.kind);
            line.push(b'}');
            before = r#",{"name":"#;
        }
        line.push(b']');
    }

    fn additional_event_data(&self, micros: i128, line: &mut Vec<u8>) {
        put(line, r#","additionalEventData":{"rule":"#, self.rule);
        put(
            line,
            r#","grantId":"#,
            self.grant_id.map(|id| Other(id.to_string())),
        );
        put(line, r#","policyGeneration":"#, self.policy_generation);
        put(line, r#","cache":"#, self.cache.map(Cache::name));
        let mut request_ids = self.kms_request_ids.iter().map(String::as_str);
        put(line, r#","kmsRequestID":"#, request_ids.next());
        if let Some(second) = request_ids.next() {
            put(line, r#","additionalKMSRequestID":"#, second);
        }
        if let Some(items) = &self.items {
            put(line, r#","items":"#, Other(items.rows()));
        }
        if let Some(grant) = &self.kms_grant {
            put(line, r#","kmsGrant":"#, Other(grant));
        }
        if let Some(change) = self.change {
            put(line, r#","change":"#, change);
        }
        let micros = i64::try_from(micros).unwrap_or(i64::MAX);
        put(line, r#","durationMicros":"#, Other(micros));
        // Other calls have none of them.
        if let Some(stream) = &self.stream {
            put(line, r#","streamID":"#, stream.id);
            put(line, r#","streamPhase":"#, stream.phase.name());
            put(line, r#","streamMessages":"#, stream.messages);
        }
        line.push(b'}');
    }
}

impl Category {
    fn words(self) -> &'static [u8] {
        match self {
            Self::Data => br#","eventCategory":"Data","readOnly":true"#,
            Self::Look => br#","eventCategory":"Management","readOnly":true"#,
            Self::Manage => br#","eventCategory":"Management","readOnly":false"#,
        }
    }
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Opened => "opened",
        }
    }
}

impl Cache {
    /// As the record says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coalesced => "coalesced",
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
        }
    }
}

/// The broker, among principals.
const SERVICE: &str = "keybroker";
/// Room for a usual line.
const LINE: usize = 1280;

#[cfg(test)]
mod tests;
