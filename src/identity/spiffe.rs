//! SPIFFE ids and the other names that a certificate can prove, parsed strictly: one spelling
//! for one identity, and whatever has another spelling is no identity.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;

/// `spiffe://<trust domain>/<segment>[/<segment>…]`, at most 2,048 bytes.
///
/// The scheme is written in lower case; there is no port, user, query, fragment or percent sign.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path begins: at its first `/`.
    path: usize,
}

impl SpiffeId {
    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain, whose bundle alone may vouch for this id.
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..self.path).unwrap_or_default()
    }

    /// The segments of the path, at least one, none empty.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        let path = self.text.get(self.path..).unwrap_or_default();
        path.split('/').skip(1)
    }
}

impl FromStr for SpiffeId {
    type Err = MalformedName;

    fn from_str(text: &str) -> Result<Self, MalformedName> {
        if text.len() > MAX_ID {
            return Err(MalformedName);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(MalformedName)?;
        let (domain, path) = rest.split_once('/').ok_or(MalformedName)?;
        if !is_trust_domain(domain) || !path.split('/').all(is_segment) {
            return Err(MalformedName);
        }
        Ok(Self {
            text: text.into(),
            path: SCHEME.len() + domain.len(),
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The name of a trust domain: 1 to 255 of `a-z`, `0-9`, `.`, `-` and `_`.
#[derive(Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// So that a map by trust domain can be asked with [`SpiffeId::trust_domain`].
impl Borrow<str> for TrustDomain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = MalformedName;

    fn from_str(text: &str) -> Result<Self, MalformedName> {
        match is_trust_domain(text) {
            true => Ok(Self(text.into())),
            false => Err(MalformedName),
        }
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = MalformedName;

    fn try_from(text: String) -> Result<Self, MalformedName> {
        text.parse()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A DNS name: labels of `a-z`, `0-9` and `-`, joined by dots, at most 253 bytes.
///
/// Upper case, a trailing dot and wildcards are refused, so that equal names are equal bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DnsName(Arc<str>);

impl DnsName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DnsName {
    type Err = MalformedName;

    fn from_str(text: &str) -> Result<Self, MalformedName> {
        let alphabet = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let label = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label.bytes().all(alphabet)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        match text.len() <= MAX_DNS && text.split('.').all(label) {
            true => Ok(Self(text.into())),
            false => Err(MalformedName),
        }
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is no SPIFFE id, trust domain or DNS name in its one spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a well-formed name")]
pub struct MalformedName;

/// Whether `text` can be a segment of a SPIFFE id's path.
pub(super) fn is_segment(text: &str) -> bool {
    let alphabet = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !matches!(text, "" | "." | "..") && text.bytes().all(alphabet)
}

/// Whether `text` can be a trust domain.
pub(super) fn is_trust_domain(text: &str) -> bool {
    let alphabet =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    (1..=MAX_DOMAIN).contains(&text.len()) && text.bytes().all(alphabet)
}

/// How every SPIFFE id begins.
pub(super) const SCHEME: &str = "spiffe://";
/// Longest SPIFFE id, in bytes (SPIFFE-ID, section 2.3).
pub(super) const MAX_ID: usize = 2048;
/// Longest trust domain, in bytes (SPIFFE-ID, section 2.1).
const MAX_DOMAIN: usize = 255;
/// Longest DNS name and label, in bytes (RFC 1035).
const MAX_DNS: usize = 253;
const MAX_LABEL: usize = 63;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_falls_into_domain_and_segments() {
        let id: SpiffeId = "spiffe://prod.example/tenant/acme/sa/A_b.c-1"
            .parse()
            .unwrap();
        assert_eq!(id.trust_domain(), "prod.example");
        let segments: Vec<&str> = id.segments().collect();
        assert_eq!(segments, ["tenant", "acme", "sa", "A_b.c-1"]);
    }

    #[test]
    fn other_spellings_are_no_ids() {
        for bad in [
            "",
            "spiffe://",
            "spiffe://prod.example",
            "spiffe://prod.example/",
            "spiffe:///a",
            "spiffe://prod.example/a/",
            "spiffe://prod.example//a",
            "spiffe://prod.example/./a",
            "spiffe://prod.example/..",
            "spiffe://Prod.example/a",
            "SPIFFE://prod.example/a",
            "https://prod.example/a",
            "spiffe://prod.example:8443/a",
            "spiffe://user@prod.example/a",
            "spiffe://prod.example/a%2fb",
            "spiffe://prod.example/a?b",
            "spiffe://prod.example/a#b",
            "spiffe://prod.example/ä",
            "spiffe://prod.example/a b",
            " spiffe://prod.example/a",
            "spiffe://prod.example/*",
        ] {
            assert_eq!(bad.parse::<SpiffeId>(), Err(MalformedName), "{bad}");
        }
    }

    #[test]
    fn lengths_hold_at_the_edge_and_one_beyond() {
        let head = "spiffe://a/";
        let longest = format!("{head}{}", "x".repeat(MAX_ID - head.len()));
        assert!(longest.parse::<SpiffeId>().is_ok());
        assert!(format!("{longest}x").parse::<SpiffeId>().is_err());

        let domain = "d".repeat(MAX_DOMAIN);
        assert!(format!("spiffe://{domain}/a").parse::<SpiffeId>().is_ok());
        assert!(format!("spiffe://{domain}d/a").parse::<SpiffeId>().is_err());
    }

    #[test]
    fn dns_names_have_one_spelling() {
        for good in ["a", "db.internal.example", "xn--bcher-kva.example", "1.2"] {
            assert!(good.parse::<DnsName>().is_ok(), "{good}");
        }
        for bad in [
            "", ".", "a.", ".a", "a..b", "A.b", "*.a", "-a", "a-.b", "a_b", "ä",
        ] {
            assert_eq!(bad.parse::<DnsName>(), Err(MalformedName), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parsing_is_total_and_what_parses_stays_itself(text in "(spiffe://)?[ -~]{0,40}|\\PC{0,40}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                let rebuilt = id.segments().fold(
                    format!("spiffe://{}", id.trust_domain()),
                    |head, segment| format!("{head}/{segment}"),
                );
                prop_assert_eq!(rebuilt, text);
            }
        }

        #[test]
        fn every_id_of_the_grammar_parses(
            domain in "[a-z0-9._-]{1,40}",
            path in proptest::collection::vec("[A-Za-z0-9_-][A-Za-z0-9._-]{0,10}", 1..6),
        ) {
            let id: SpiffeId = format!("spiffe://{domain}/{}", path.join("/")).parse().unwrap();
            prop_assert_eq!(id.trust_domain(), domain);
            prop_assert_eq!(id.segments().collect::<Vec<_>>(), path);
        }
    }
}
