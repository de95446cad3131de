//! Who is calling: a peer as its connection proved it, and the caller that the identity rules
//! make of it. Strict throughout; nothing here trusts a request.
//!
//! Verifying a certificate's chain belongs to the TLS room; this room reads names and maps them.

pub mod leaf;
mod operators;
pub mod principal;
pub mod rules;
mod session;
pub mod spiffe;

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

pub use leaf::Leaf;
pub use leaf::Refusal;
pub use operators::Operators;
pub use principal::Principal;
pub use principal::PrincipalPattern;
pub use principal::Shape;
pub use rules::Caller;
pub use rules::Config;
pub use rules::Rules;
pub use session::Session;
pub use spiffe::DnsName;
pub use spiffe::SpiffeId;
pub use spiffe::TrustDomain;

use principal::Credentials;
use principal::MalformedPattern;

/// The trust domain that `keybroker dev` makes for itself, also the organization in its
/// certificates. In production nobody of it is anybody.
pub const DEV_TRUST_DOMAIN: &str = "dev.keybroker.test";

/// What a connection proved about the other side. Made once per connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    id: Id,
    certificate: Option<Certificate>,
}

impl Peer {
    /// The holder of `leaf`, whose chain the caller has verified: against the bundle of its own
    /// trust domain for a SPIFFE id, against the bundle of its own rule for a DNS name.
    pub fn certified(leaf: Leaf) -> Self {
        let not_after = leaf.not_after();
        let (name, serial) = leaf.into_parts();
        let id = match name {
            leaf::Name::Dns(name) => Id::Dns(name),
            leaf::Name::Spiffe(id) => Id::Spiffe(id),
        };
        Self {
            id,
            certificate: Some(Certificate { serial, not_after }),
        }
    }

    /// The process behind a Unix socket, by the user and group that the kernel reports.
    pub fn unix(uid: u32, gid: u32) -> Self {
        Self {
            id: Id::Unix { uid, gid },
            certificate: None,
        }
    }

    /// Who it is.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// The certificate that proved it; none on a Unix socket.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }
}

/// An identity. As text it is the [`Principal`]: `spiffe://…`, `dns:<name>` or
/// `unix:uid=<uid>,gid=<gid>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Id {
    /// The only DNS name of a certificate without URIs.
    Dns(DnsName),
    /// A SPIFFE id.
    Spiffe(SpiffeId),
    /// The credentials of a process on the same machine.
    Unix {
        /// Its effective user.
        uid: u32,
        /// Its effective group.
        gid: u32,
    },
}

impl FromStr for Id {
    type Err = MalformedPattern;

    /// Reads the text of an identity in its one spelling.
    fn from_str(text: &str) -> Result<Self, MalformedPattern> {
        if text.starts_with(spiffe::SCHEME) {
            return text.parse().map(Self::Spiffe).map_err(|_| MalformedPattern);
        }
        if let Some(name) = text.strip_prefix("dns:") {
            return name.parse().map(Self::Dns).map_err(|_| MalformedPattern);
        }
        match Credentials::parse(text) {
            Some(Credentials {
                uid: Some(uid),
                gid: Some(gid),
            }) => Ok(Self::Unix { uid, gid }),
            Some(_) | None => Err(MalformedPattern),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Spiffe(id) => id.fmt(f),
            Self::Unix { uid, gid } => write!(f, "unix:uid={uid},gid={gid}"),
        }
    }
}

/// What the audit record says of a peer's certificate, and when it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The serial number in lower-case hexadecimal.
    pub serial: String,
    /// The last moment at which it is good.
    pub not_after: Timestamp,
}
