//! A request as the fake reads it, and the refusal that may follow.

use std::collections::BTreeMap;

use hyper::HeaderMap;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::Operation;

/// A request, authenticated as far as the fake does that.
pub struct Request {
    pub operation: Operation,
    pub caller: String,
    pub region: String,
    /// By the client's clock.
    pub signed_at: Timestamp,
    pub body: Value,
}

impl Request {
    /// Whether nothing is to be done.
    pub fn is_dry(&self) -> bool {
        self.body["DryRun"] == true
    }
}

/// An error of the service: code and message.
#[derive(Debug)]
pub struct Refusal {
    pub code: &'static str,
    pub message: String,
}

pub type Answer = Result<Value, Refusal>;

pub fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Request, Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let operation = match header("x-amz-target").and_then(|t| t.strip_prefix("TrentService.")) {
        Some("CreateGrant") => Operation::CreateGrant,
        Some("Decrypt") => Operation::Decrypt,
        Some("DescribeKey") => Operation::DescribeKey,
        Some("Encrypt") => Operation::Encrypt,
        Some("GenerateDataKey") => Operation::GenerateDataKey,
        Some("GenerateDataKeyWithoutPlaintext") => Operation::GenerateDataKeyWithoutPlaintext,
        Some("GenerateRandom") => Operation::GenerateRandom,
        Some("GetPublicKey") => Operation::GetPublicKey,
        Some("Sign") => Operation::Sign,
        Some("ListGrants") => Operation::ListGrants,
        Some("RevokeGrant") => Operation::RevokeGrant,
        _ => return refuse("UnknownOperationException", ""),
    };
    let Some((caller, region)) = header("authorization").and_then(scope) else {
        return refuse("MissingAuthenticationTokenException", "");
    };
    let Some(signed_at) = header("x-amz-date").and_then(instant) else {
        return refuse("IncompleteSignatureException", "");
    };
    let Ok(body @ Value::Object(_)) = serde_json::from_slice(body) else {
        return refuse("SerializationException", "");
    };
    Ok(Request {
        operation,
        caller: caller.to_owned(),
        region: region.to_owned(),
        signed_at,
        body,
    })
}

/// The access key and the Region of an `authorization` header:
/// `AWS4-HMAC-SHA256 Credential=<access key>/<date>/<region>/kms/aws4_request, …`.
pub fn scope(authorization: &str) -> Option<(&str, &str)> {
    let (_, rest) = authorization.split_once("Credential=")?;
    let (scope, _) = rest.split_once(',')?;
    match scope.split('/').collect::<Vec<&str>>()[..] {
        [caller, _, region, "kms", "aws4_request"] => Some((caller, region)),
        _ => None,
    }
}

/// The context of a request.
pub fn context(request: &Request) -> Result<BTreeMap<String, String>, Refusal> {
    match &request.body["EncryptionContext"] {
        Value::Null => Ok(BTreeMap::new()),
        pairs => match serde_json::from_value(pairs.clone()) {
            Ok(pairs) => Ok(pairs),
            Err(_) => invalid("EncryptionContext is no map of strings"),
        },
    }
}

pub fn refuse<T>(code: &'static str, message: &str) -> Result<T, Refusal> {
    Err(Refusal {
        code,
        message: message.to_owned(),
    })
}

pub fn invalid<T>(why: &str) -> Result<T, Refusal> {
    refuse("ValidationException", why)
}

/// A date as signatures have it.
pub fn stamp(time: Timestamp) -> String {
    time.strftime(STAMP).to_string()
}

fn instant(stamp: &str) -> Option<Timestamp> {
    let time = DateTime::strptime(STAMP, stamp).ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

const STAMP: &str = "%Y%m%dT%H%M%SZ";
