//! Where a broker is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;

/// Where a broker listens: `https://host:port`, `unix:/path`, or, for health probes,
/// `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Plain text: answers health probes alone.
    Plain(Place),
    /// TLS with client certificates.
    Tls(Place),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A name, or an IP address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// What HTTP calls the server.
    pub(super) fn origin(&self) -> Uri {
        match self {
            // What other gRPC clients say on a Unix socket.
            Self::Unix(_) => Uri::from_static("http://localhost"),
            Self::Plain(_) | Self::Tls(_) => self
                .to_string()
                .parse()
                .expect("a parsed address is a URI again"),
        }
    }
}

impl FromStr for Address {
    type Err = MalformedAddress;

    fn from_str(text: &str) -> Result<Self, MalformedAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" => Err(MalformedAddress),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let uri: Uri = text.parse().map_err(|_| MalformedAddress)?;
        let (Some(host), Some(port), "/" | "", None) =
            (uri.host(), uri.port_u16(), uri.path(), uri.query())
        else {
            return Err(MalformedAddress);
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let place = Place {
            host: host.to_owned(),
            port,
        };
        match uri.scheme_str() {
            Some("https") => Ok(Self::Tls(place)),
            Some("http") => Ok(Self::Plain(place)),
            Some(_) | None => Err(MalformedAddress),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(place) => write!(f, "http://{place}"),
            Self::Tls(place) => write!(f, "https://{place}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The text is no address of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither https://host:port, nor unix:/path, nor http://host:port for health probes")]
pub struct MalformedAddress;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in [
            "https://broker.example:7443",
            "https://[::1]:7443",
            "http://127.0.0.1:8080",
            "unix:/run/keybroker/broker.sock",
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("unix:///a".parse(), Ok(Address::Unix(PathBuf::from("/a"))));
    }

    #[test]
    fn other_texts_are_no_addresses() {
        for text in [
            "",
            "broker:7443",
            "https://broker",
            "https://broker:7443/path",
            "grpc://broker:7443",
            "unix:",
        ] {
            assert_eq!(text.parse::<Address>(), Err(MalformedAddress), "{text}");
        }
    }
}
