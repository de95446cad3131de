//! Headers as a variable of OpenTelemetry has them: `name=value`, separated by commas, the values
//! escaped as in a URL.

use tonic::metadata::AsciiMetadataKey;
use tonic::metadata::AsciiMetadataValue;
use tonic::metadata::MetadataMap;

/// The headers of `text`, if it is such a list.
pub(super) fn parse(text: &str) -> Option<MetadataMap> {
    let mut headers = MetadataMap::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let (name, value) = pair.split_once('=')?;
        let name = AsciiMetadataKey::from_bytes(name.trim().as_bytes()).ok()?;
        let mut value = AsciiMetadataValue::try_from(unescaped(value.trim())?).ok()?;
        // A token, as a rule.
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Some(headers)
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_the_standard_writes_them() {
        let headers = parse("x-token=a%20b%3D, x-tenant = acme,").unwrap();
        assert_eq!(headers.get("x-token").unwrap(), "a b=");
        assert_eq!(headers.get("x-tenant").unwrap(), "acme");
        assert_eq!(headers.len(), 2);
        assert_eq!(parse("").unwrap().len(), 0);
        for bad in ["x-token", "=x", "x token=1", "x=%2", "x=%zz", "x=%0a"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
