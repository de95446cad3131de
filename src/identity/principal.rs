//! Principals as text, and the patterns by which key policies name them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Id;
use super::spiffe;
use super::spiffe::DnsName;

/// The text of an [`Id`]: one text for one identity.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(Arc<str>);

impl Principal {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&Id> for Principal {
    fn from(id: &Id) -> Self {
        Self(id.to_string().into())
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which principals a statement of a key policy means.
///
/// - `spiffe://<trust domain>/<segment>…`, where a segment `*` stands for exactly one whole
///   segment, whatever it is; never for a part of one, and never for the trust domain;
/// - `dns:<name>`;
/// - `unix:uid=<uid>`, `unix:gid=<gid>` or `unix:uid=<uid>,gid=<gid>`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PrincipalPattern {
    text: Arc<str>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// Equal text.
    Exact,
    /// A SPIFFE id with at least one segment `*`.
    Segments,
    /// Unix credentials, of which only one half counts.
    Unix(Half),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Half {
    Uid(u32),
    Gid(u32),
}

impl PrincipalPattern {
    /// Whether `principal` is meant.
    pub fn matches(&self, principal: &Principal) -> bool {
        match self.kind {
            Kind::Exact => *self.text == *principal.0,
            Kind::Segments => {
                let mut segments = principal.0.split('/');
                let mut patterns = self.text.split('/');
                loop {
                    match (patterns.next(), segments.next()) {
                        (None, None) => return true,
                        (Some(pattern), Some(segment)) if pattern == "*" || pattern == segment => {}
                        _ => return false,
                    }
                }
            }
            Kind::Unix(half) => match (Credentials::parse(&principal.0), half) {
                (Some(peer), Half::Uid(uid)) => peer.uid == Some(uid),
                (Some(peer), Half::Gid(gid)) => peer.gid == Some(gid),
                (None, _) => false,
            },
        }
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for PrincipalPattern {
    type Err = MalformedPattern;

    fn from_str(text: &str) -> Result<Self, MalformedPattern> {
        let kind = if let Some(rest) = text.strip_prefix(spiffe::SCHEME) {
            segments(rest).filter(|_| text.len() <= spiffe::MAX_ID)
        } else if let Some(name) = text.strip_prefix("dns:") {
            name.parse::<DnsName>().ok().map(|_| Kind::Exact)
        } else {
            Credentials::parse(text).map(|credentials| match credentials {
                Credentials {
                    uid: Some(uid),
                    gid: None,
                } => Kind::Unix(Half::Uid(uid)),
                Credentials {
                    uid: None,
                    gid: Some(gid),
                } => Kind::Unix(Half::Gid(gid)),
                _ => Kind::Exact,
            })
        };
        Ok(Self {
            kind: kind.ok_or(MalformedPattern)?,
            text: text.into(),
        })
    }
}

impl fmt::Display for PrincipalPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for PrincipalPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The text is no pattern for principals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "neither spiffe://<trust domain>/<segment or *>/… nor dns:<name> nor unix:uid=<uid>,gid=<gid>"
)]
pub struct MalformedPattern;

/// The kind of the SPIFFE pattern `<trust domain>/<segment or *>…`.
fn segments(rest: &str) -> Option<Kind> {
    let (domain, path) = rest.split_once('/')?;
    let wild = path.split('/').any(|segment| segment == "*");
    let sound = spiffe::is_trust_domain(domain)
        && path
            .split('/')
            .all(|segment| segment == "*" || spiffe::is_segment(segment));
    sound.then_some(if wild { Kind::Segments } else { Kind::Exact })
}

/// `unix:uid=<uid>`, `unix:gid=<gid>` or `unix:uid=<uid>,gid=<gid>`; at least one half is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

impl Credentials {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let claims = text.strip_prefix("unix:")?;
        match claims.split_once(',') {
            Some((uid, gid)) => Some(Self {
                uid: Some(number(uid.strip_prefix("uid=")?)?),
                gid: Some(number(gid.strip_prefix("gid=")?)?),
            }),
            None => match claims.strip_prefix("uid=") {
                Some(uid) => Some(Self {
                    uid: Some(number(uid)?),
                    gid: None,
                }),
                None => Some(Self {
                    uid: None,
                    gid: Some(number(claims.strip_prefix("gid=")?)?),
                }),
            },
        }
    }
}

/// Decimal in its one spelling: no sign, no leading zero.
fn number(text: &str) -> Option<u32> {
    let value: u32 = text.parse().ok()?;
    (value.to_string() == text).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, principal: &str) -> bool {
        let pattern: PrincipalPattern = pattern.parse().unwrap();
        pattern.matches(&Principal(principal.into()))
    }

    #[test]
    fn a_star_is_exactly_one_whole_segment() {
        let pattern = "spiffe://prod.example/tenant/acme/sa/*";
        assert!(matches(pattern, "spiffe://prod.example/tenant/acme/sa/web"));
        for other in [
            "spiffe://prod.example/tenant/acme/sa",
            "spiffe://prod.example/tenant/acme/sa/web/x",
            "spiffe://prod.example/tenant/acme2/sa/web",
            "spiffe://other.example/tenant/acme/sa/web",
            "dns:web",
            "unix:uid=1,gid=1",
        ] {
            assert!(!matches(pattern, other), "{other}");
        }
        assert!(matches("spiffe://d/*/b", "spiffe://d/a/b"));
        assert!(!matches("spiffe://d/*/b", "spiffe://d/b"));
    }

    #[test]
    fn an_exact_pattern_is_no_prefix() {
        assert!(matches("spiffe://d/a", "spiffe://d/a"));
        assert!(!matches("spiffe://d/a", "spiffe://d/ab"));
        assert!(!matches("spiffe://d/a", "spiffe://d/a/b"));
        assert!(matches("dns:a.example", "dns:a.example"));
        assert!(!matches("dns:a.example", "dns:b.a.example"));
    }

    #[test]
    fn unix_patterns_may_name_one_half() {
        let peer = "unix:uid=1000,gid=100";
        for pattern in ["unix:uid=1000", "unix:gid=100", peer] {
            assert!(matches(pattern, peer), "{pattern}");
        }
        for pattern in ["unix:uid=100", "unix:gid=1000", "unix:uid=1000,gid=1"] {
            assert!(!matches(pattern, peer), "{pattern}");
        }
    }

    #[test]
    fn other_texts_are_no_patterns() {
        for bad in [
            "",
            "*",
            "spiffe://*/a",
            "spiffe://d",
            "spiffe://d/",
            "spiffe://d/a*",
            "spiffe://d/**",
            "spiffe://d/{a}",
            "dns:*",
            "dns:*.example",
            "dns:",
            "unix:",
            "unix:uid=",
            "unix:uid=01",
            "unix:uid=+1",
            "unix:uid=-1",
            "unix:uid=4294967296",
            "unix:gid=1,uid=1",
            "unix:uid=1,",
            "uid=1",
        ] {
            assert!(bad.parse::<PrincipalPattern>().is_err(), "{bad}");
        }
    }
}
