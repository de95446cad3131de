//! Principals as text, and the patterns by which key policies name them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;

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
#[derive(Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
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

    /// The only principal that is meant, if it is one alone.
    pub fn principal(&self) -> Option<Principal> {
        match self.kind {
            Kind::Exact => Some(Principal(Arc::clone(&self.text))),
            Kind::Segments | Kind::Unix(_) => None,
        }
    }

    /// What it has in common with all patterns that compare the same parts of a principal.
    pub fn shape(&self) -> Shape {
        match self.kind {
            Kind::Exact => Shape::Exact,
            Kind::Segments => Shape::Stars(self.text.split('/').map(|part| part == "*").collect()),
            Kind::Unix(Half::Uid(_)) => Shape::Uid,
            Kind::Unix(Half::Gid(_)) => Shape::Gid,
        }
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// What patterns have in common of which at most one means a given principal: so that among any
/// number of them that one is found by its text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// All of the principal counts.
    Exact,
    /// The group of Unix credentials.
    Gid,
    /// Between slashes, what is not true here.
    Stars(Box<[bool]>),
    /// The user of Unix credentials.
    Uid,
}

impl Shape {
    /// Appends the text of the pattern of this shape that means `principal`; false if there is none.
    pub fn write(&self, principal: &Principal, text: &mut Vec<u8>) -> bool {
        let credentials = || Credentials::parse(&principal.0);
        match self {
            Self::Exact => {
                text.extend_from_slice(principal.0.as_bytes());
                true
            }
            Self::Gid => write_half("gid", credentials().and_then(|peer| peer.gid), text),
            Self::Stars(stars) => write_stars(stars, principal, text),
            Self::Uid => write_half("uid", credentials().and_then(|peer| peer.uid), text),
        }
    }
}

fn write_half(name: &str, number: Option<u32>, text: &mut Vec<u8>) -> bool {
    if let Some(number) = number {
        text.extend_from_slice(format!("unix:{name}={number}").as_bytes());
    }
    number.is_some()
}

fn write_stars(stars: &[bool], principal: &Principal, text: &mut Vec<u8>) -> bool {
    let mut parts = principal.0.split('/');
    for (place, star) in stars.iter().enumerate() {
        let Some(part) = parts.next() else {
            return false;
        };
        if place > 0 {
            text.push(b'/');
        }
        text.extend_from_slice(if *star { b"*" } else { part.as_bytes() });
    }
    parts.next().is_none()
}

impl FromStr for Principal {
    type Err = MalformedPattern;

    /// Reads the text of an identity in its one spelling.
    fn from_str(text: &str) -> Result<Self, MalformedPattern> {
        let pattern: PrincipalPattern = text.parse()?;
        pattern.principal().ok_or(MalformedPattern)
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

impl TryFrom<String> for PrincipalPattern {
    type Error = MalformedPattern;

    fn try_from(text: String) -> Result<Self, MalformedPattern> {
        text.parse()
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
    fn the_pattern_of_a_shape_that_means_a_principal_is_found_by_its_text() {
        let patterns = [
            "spiffe://d/a/b",
            "spiffe://d/a/c",
            "spiffe://d/*/b",
            "spiffe://d/a/*",
            "spiffe://d/*/*",
            "spiffe://d/*",
            "spiffe://e/*/b",
            "dns:a.example",
            "unix:uid=1",
            "unix:uid=2",
            "unix:gid=1",
            "unix:uid=1,gid=1",
        ];
        let principals = [
            "spiffe://d/a/b",
            "spiffe://d/a/c",
            "spiffe://e/a/b",
            "spiffe://d/a",
            "spiffe://d/a/b/c",
            "dns:a.example",
            "dns:b.example",
            "unix:uid=1,gid=1",
            "unix:uid=1,gid=2",
            "unix:uid=2,gid=1",
        ];
        for pattern in patterns {
            let parsed: PrincipalPattern = pattern.parse().unwrap();
            for principal in principals {
                let mut text = Vec::new();
                let principal: Principal = principal.parse().unwrap();
                let found = parsed.shape().write(&principal, &mut text);
                let found = found && text == pattern.as_bytes();
                assert_eq!(found, parsed.matches(&principal), "{pattern} {principal}");
            }
        }
    }

    #[test]
    fn only_a_whole_identity_is_a_principal() {
        for good in ["spiffe://d/a", "dns:a.example", "unix:uid=1,gid=2"] {
            assert_eq!(good.parse::<Principal>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "spiffe://d/*",
            "spiffe://d",
            "unix:uid=1",
            "unix:uid=01,gid=1",
            "web",
        ] {
            assert!(bad.parse::<Principal>().is_err(), "{bad}");
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
