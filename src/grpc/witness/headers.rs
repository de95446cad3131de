//! What a call's headers say that counts before its body: how long it may take, and what it is
//! called.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::HeaderName;
use uuid::Uuid;

/// How long the call may take: what its client allows, and never longer than the cap.
pub(super) fn patience(headers: &HeaderMap) -> Duration {
    allowed(headers).unwrap_or(LONGEST).min(LONGEST)
}

/// What the client allows, less the way back.
pub(super) fn allowed(headers: &HeaderMap) -> Option<Duration> {
    let allowed = grpc_timeout(text(headers, &GRPC_TIMEOUT)?)?;
    Some(allowed.saturating_sub(WAY_BACK.min(allowed / 2)))
}

/// `TimeoutValue TimeoutUnit` of the gRPC protocol over HTTP/2: up to 8 digits, then one of HMSmun.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// The client's request id if it is short and printable, else one of ours: the record's own id.
pub(super) fn request_id(headers: &HeaderMap, own: impl FnOnce() -> Uuid) -> Arc<str> {
    match text(headers, &REQUEST_ID) {
        Some(id) if !id.is_empty() && id.len() <= 128 => id.into(),
        Some(_) | None => {
            let mut text = Uuid::encode_buffer();
            Arc::from(&*own().hyphenated().encode_lower(&mut text))
        }
    }
}

/// A header's value if it is printable, cut to a sane length.
pub(in crate::grpc) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?;
    // ASCII, so it can be cut anywhere.
    Some(value.get(..256).unwrap_or(value))
}

// Names made once: to make one of a text is to parse and, for the answer, to copy it.
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub(super) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The cap of every method: a KMS that answers at all answers by then.
const LONGEST: Duration = Duration::from_secs(30);
/// So much of the client's deadline is left for our answer to reach it.
const WAY_BACK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(grpc_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(grpc_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            grpc_timeout("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for bad in ["", "S", "5", "5s", "-5S", "123456789S", "5 S", "1µ"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_answer_has_time_to_travel() {
        let allowed = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(text));
            patience(&headers)
        };
        assert_eq!(allowed("200m"), Duration::from_millis(180));
        assert_eq!(allowed("10m"), Duration::from_millis(5));
        assert_eq!(allowed("1H"), LONGEST);
        assert_eq!(patience(&HeaderMap::new()), LONGEST);
    }
}
