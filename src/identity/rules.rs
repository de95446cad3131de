//! The rules that map a peer to its tenant and to the pairs of the encryption context that its
//! identity brings along.

mod template;

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use self::template::Template;
use super::Id;
use super::Peer;
use super::Principal;
use super::principal::Credentials;
use super::spiffe;
use super::spiffe::DnsName;
use super::spiffe::TrustDomain;
use crate::name::TenantId;

/// The `identity` part of the configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The rules, in the order in which they are tried.
    #[serde(default)]
    pub rule: Vec<RuleConfig>,
    /// The bundles that vouch for SPIFFE ids, one for each trust domain.
    #[serde(default)]
    pub bundle: Vec<BundleConfig>,
}

/// One rule: which identities it means, and what they become.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// `spiffe://<trust domain>/…`, where a segment `{name}` captures one whole segment;
    /// `dns:<name>`; or `unix:uid=<uid>,gid=<gid>`, of which one half may be missing.
    #[serde(rename = "match")]
    pub pattern: String,
    /// The tenant's id: a text in which `{name}` stands for a capture.
    pub tenant: String,
    /// Pairs of the encryption context; values are texts like `tenant`.
    #[serde(default)]
    pub context: BTreeMap<String, String>,
    /// The CA certificates that vouch for a DNS name: required for DNS rules, refused elsewhere.
    pub bundle: Option<PathBuf>,
}

/// The CA certificates of a trust domain.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleConfig {
    /// Whose.
    pub trust_domain: TrustDomain,
    /// A PEM file of CA certificates.
    pub file: PathBuf,
    /// A PEM file of revocation lists.
    pub crl: Option<PathBuf>,
}

/// The identity rules, checked. Immutable; a reload makes new ones.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    bundles: Vec<BundleConfig>,
    captured: Vec<String>,
}

impl Rules {
    /// The rules of `config`.
    ///
    /// # Errors
    /// [`Error`], naming the rule by its number, which counts from 1.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let mut domains = HashSet::new();
        for bundle in &config.bundle {
            if !domains.insert(bundle.trust_domain.as_str()) {
                return Err(Error::RepeatedBundle(bundle.trust_domain.clone()));
            }
        }
        let mut seen = HashSet::new();
        let mut rules = Vec::with_capacity(config.rule.len());
        let mut captured: Vec<String> = Vec::new();
        for (rule, number) in config.rule.iter().zip(1..) {
            let faulty = |fault| Error::Rule { number, fault };
            if !seen.insert(rule.pattern.as_str()) {
                return Err(faulty(Fault::Repeated(rule.pattern.clone())));
            }
            let compiled = Rule::new(rule).map_err(faulty)?;
            if let Pattern::Spiffe { domain, .. } = &compiled.pattern
                && !domains.contains(domain.as_str())
            {
                return Err(faulty(Fault::TrustDomain(domain.clone())));
            }
            for name in rule.context.keys() {
                match captured.iter().find(|one| one.eq_ignore_ascii_case(name)) {
                    Some(known) if known == name => {}
                    Some(known) => {
                        return Err(faulty(Fault::Alike {
                            name: name.clone(),
                            known: known.clone(),
                        }));
                    }
                    None => captured.push(name.clone()),
                }
            }
            rules.push(compiled);
        }
        Ok(Self {
            rules,
            bundles: config.bundle.clone(),
            captured,
        })
    }

    /// The caller that `peer` is, by the first rule that matches its identity.
    ///
    /// None if no rule matches, or if the rule that does makes a tenant id of it that is none:
    /// later rules are not asked then, since they were written for other identities.
    pub fn map(&self, peer: &Peer) -> Option<Caller> {
        self.would_map(peer.id())
    }

    /// The caller that whoever proves to be `id` is, for questions: nobody has proved it.
    pub fn would_map(&self, id: &Id) -> Option<Caller> {
        let segments: Vec<&str> = match id {
            Id::Spiffe(id) => id.segments().collect(),
            Id::Dns(_) | Id::Unix { .. } => Vec::new(),
        };
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.pattern.matches(id, &segments))?;
        let captures = rule
            .context
            .iter()
            .map(|(name, value)| (name.clone(), value.fill(&segments)));
        Some(Caller {
            principal: Principal::from(id),
            tenant: rule.tenant.fill(&segments).parse().ok()?,
            captures: captures.collect(),
        })
    }

    /// The names of context pairs that any rule sets, each once.
    pub fn captured_names(&self) -> impl Iterator<Item = &str> {
        self.captured.iter().map(String::as_str)
    }

    /// The bundles of the trust domains, one for each.
    pub fn bundles(&self) -> impl Iterator<Item = &BundleConfig> {
        self.bundles.iter()
    }

    /// The DNS names that rules match, each with the file of the CA certificates that alone
    /// vouch for it.
    pub fn dns_bundles(&self) -> impl Iterator<Item = (&DnsName, &Path)> {
        self.rules.iter().filter_map(|rule| match &rule.pattern {
            Pattern::Dns { name, bundle } => Some((name, bundle.as_path())),
            Pattern::Spiffe { .. } | Pattern::Unix(_) => None,
        })
    }
}

/// An identity that a rule has mapped. Only [`Rules`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    principal: Principal,
    tenant: TenantId,
    captures: Vec<(String, String)>,
}

impl Caller {
    /// Who calls.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The tenant it belongs to.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The pairs of the encryption context that its identity brings along, ordered by name.
    pub fn captures(&self) -> &[(String, String)] {
        &self.captures
    }
}

/// The identity rules cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Two bundles for one trust domain.
    #[error("identity.bundle: trust domain {0} has two bundles")]
    RepeatedBundle(TrustDomain),
    /// A rule is wrong.
    #[error("identity.rule {number}: {fault}")]
    Rule {
        /// Which rule, counted from 1.
        number: usize,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// What is wrong with an identity rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Two names of context pairs differ in ASCII case alone.
    #[error("context name {name} differs from {known} in case alone")]
    Alike {
        /// The later one.
        name: String,
        /// The earlier one.
        known: String,
    },
    /// Two captures meet in a template with nothing between them that no capture can hold, so
    /// that different identities could become one text.
    #[error("{template:?} joins two captures ambiguously; put / or : between them")]
    Ambiguous {
        /// The template.
        template: String,
    },
    /// A template names a capture that the pattern does not have.
    #[error("unknown capture {{{capture}}}; the pattern has: {}", list(known))]
    Capture {
        /// The one asked for.
        capture: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// A DNS rule without its own bundle.
    #[error("a rule for a DNS name needs a bundle of its own")]
    NoBundle,
    /// The pattern is malformed.
    #[error("malformed match {0:?}")]
    Pattern(String),
    /// An earlier rule has the same pattern, so this one would never match.
    #[error("match {0:?} stands in an earlier rule already")]
    Repeated(String),
    /// The tenant template is a text without captures that is no tenant id.
    #[error("tenant {0:?} is no tenant id")]
    Tenant(String),
    /// A template has a brace without its partner, or a malformed name between braces.
    #[error("malformed template {0:?}")]
    Template(String),
    /// The trust domain has no bundle.
    #[error("trust domain {0} has no identity.bundle")]
    TrustDomain(String),
    /// A bundle where none belongs: SPIFFE ids are vouched for by their trust domain's.
    #[error("only a rule for a DNS name has a bundle of its own")]
    UnwantedBundle,
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    }
}

/// A rule, taken apart: matching compares pieces and allocates nothing.
#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    tenant: Template,
    context: Vec<(String, Template)>,
}

impl Rule {
    fn new(config: &RuleConfig) -> Result<Self, Fault> {
        let pattern = Pattern::new(&config.pattern, config.bundle.as_deref())?;
        let captures = pattern.captures();
        let tenant = Template::new(&config.tenant, &captures)?;
        if tenant.is_constant() && tenant.fill(&[]).parse::<TenantId>().is_err() {
            return Err(Fault::Tenant(config.tenant.clone()));
        }
        let context = config
            .context
            .iter()
            .map(|(name, value)| Ok((name.clone(), Template::new(value, &captures)?)))
            .collect::<Result<_, Fault>>()?;
        Ok(Self {
            pattern,
            tenant,
            context,
        })
    }
}

#[derive(Debug)]
enum Pattern {
    Dns {
        name: DnsName,
        bundle: PathBuf,
    },
    Spiffe {
        domain: String,
        segments: Vec<Segment>,
    },
    Unix(Credentials),
}

#[derive(Debug)]
enum Segment {
    Capture(String),
    Literal(String),
}

impl Pattern {
    fn new(text: &str, bundle: Option<&Path>) -> Result<Self, Fault> {
        let malformed = || Fault::Pattern(text.to_owned());
        if let Some(name) = text.strip_prefix("dns:") {
            return Ok(Self::Dns {
                name: name.parse().map_err(|_| malformed())?,
                bundle: bundle.ok_or(Fault::NoBundle)?.to_owned(),
            });
        }
        if bundle.is_some() {
            return Err(Fault::UnwantedBundle);
        }
        if let Some(rest) = text.strip_prefix(spiffe::SCHEME) {
            let (domain, path) = rest.split_once('/').ok_or_else(malformed)?;
            let segments: Vec<Segment> = path
                .split('/')
                .map(Segment::new)
                .collect::<Option<_>>()
                .ok_or_else(malformed)?;
            let pattern = Self::Spiffe {
                domain: domain.to_owned(),
                segments,
            };
            let mut names = HashSet::new();
            let distinct = pattern
                .captures()
                .iter()
                .flatten()
                .all(|name| names.insert(*name));
            return match distinct && spiffe::is_trust_domain(domain) {
                true => Ok(pattern),
                false => Err(malformed()),
            };
        }
        Credentials::parse(text)
            .map(Self::Unix)
            .ok_or_else(malformed)
    }

    /// For each segment of a SPIFFE path, the name under which it is captured.
    fn captures(&self) -> Vec<Option<&str>> {
        match self {
            Self::Dns { .. } | Self::Unix(_) => Vec::new(),
            Self::Spiffe { segments, .. } => segments
                .iter()
                .map(|segment| match segment {
                    Segment::Capture(name) => Some(name.as_str()),
                    Segment::Literal(_) => None,
                })
                .collect(),
        }
    }

    /// Whether `id`, whose path has these `segments`, is meant.
    fn matches(&self, id: &Id, segments: &[&str]) -> bool {
        match (self, id) {
            (Self::Dns { name, .. }, Id::Dns(other)) => name == other,
            (
                Self::Spiffe {
                    domain,
                    segments: patterns,
                },
                Id::Spiffe(id),
            ) => {
                patterns.len() == segments.len()
                    && domain == id.trust_domain()
                    && patterns
                        .iter()
                        .zip(segments)
                        .all(|(pattern, segment)| match pattern {
                            Segment::Capture(_) => true,
                            Segment::Literal(literal) => literal == segment,
                        })
            }
            (Self::Unix(wanted), Id::Unix { uid, gid }) => {
                wanted.uid.is_none_or(|wanted| wanted == *uid)
                    && wanted.gid.is_none_or(|wanted| wanted == *gid)
            }
            _ => false,
        }
    }
}

impl Segment {
    fn new(text: &str) -> Option<Self> {
        match text
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
        {
            Some(name) => template::is_name(name).then(|| Self::Capture(name.to_owned())),
            None => spiffe::is_segment(text).then(|| Self::Literal(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests;
