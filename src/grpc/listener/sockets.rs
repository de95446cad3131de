//! Where callers and probes come to: what the configuration says, and the sockets bound.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::net::UnixListener;

use crate::grpc::listener::unix;

/// Where to listen; at least one of `tcp` and `unix`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// TLS with client certificates.
    pub tcp: Option<SocketAddr>,
    /// A Unix socket, whose peers are known by their user and group.
    pub unix: Option<UnixConfig>,
    /// Plain text, for grpc.health.v1 alone: for probes that cannot do TLS.
    pub health: Option<SocketAddr>,
    /// Plain HTTP/1.1, for metrics and the state of the process: see [`crate::admin`].
    pub admin: Option<SocketAddr>,
    /// Whether `admin` may be an address that others than this machine reach.
    pub admin_exposed: bool,
    /// Whether those with an identity may ask which methods there are: gRPC reflection, v1 and
    /// v1alpha, never on the health listener.
    pub reflection: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tcp: None,
            unix: None,
            health: None,
            admin: None,
            admin_exposed: false,
            reflection: true,
        }
    }
}

impl Config {
    /// Checks what can be checked without opening a socket.
    ///
    /// # Errors
    /// [`Error::Exposed`] or [`Error::Mode`].
    pub fn check(&self) -> Result<(), Error> {
        if let Some(address) = self.admin
            && !address.ip().to_canonical().is_loopback()
            && !self.admin_exposed
        {
            return Err(Error::Exposed { address });
        }
        match &self.unix {
            Some(unix) => unix::mode(&unix.mode).map(|_| ()),
            None => Ok(()),
        }
    }
}

/// A Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnixConfig {
    /// Its path; a dead process's socket there is replaced.
    pub path: PathBuf,
    /// Its permissions in octal; no access for others whatever it says.
    #[serde(default = "usual_mode")]
    pub mode: String,
    /// A name in the abstract namespace beside the path, for clients that can't take a path. Off
    /// by default: any local process may bind such a name before us and pose as the broker.
    pub abstract_name: Option<String>,
}

fn usual_mode() -> String {
    "660".into()
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The admin listener would be open to the network.
    #[error(
        "admin = {address} shows metrics and the names of tenants to whoever reaches it: take a \
         loopback address, or say admin_exposed = true where the network keeps others out"
    )]
    Exposed {
        /// Which.
        address: SocketAddr,
    },
    /// The address is not to be had.
    #[error(
        "cannot listen on {address}: {source}: choose another address in [listen], or stop what has it"
    )]
    Tcp {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The path is not to be had.
    #[error("cannot listen on {path}: {source}: its folder must be there and be writable")]
    Unix {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A living process listens there.
    #[error("{path} is in use by a living process: stop it, or choose another listen.unix.path")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// Something that is no socket is there.
    #[error("{path} exists and is no socket: move it away, or choose another listen.unix.path")]
    NoSocket {
        /// Which.
        path: PathBuf,
    },
    /// The mode is no octal number, or lets others in.
    #[error(
        "listen.unix.mode = {mode:?} is not an octal number without rights for others: 660, say"
    )]
    Mode {
        /// As configured.
        mode: String,
    },
}

/// The sockets, bound.
pub(in crate::grpc) struct Sockets {
    pub(in crate::grpc) tcp: Option<TcpListener>,
    pub(in crate::grpc) unix: Vec<UnixListener>,
    pub(in crate::grpc) health: Option<TcpListener>,
}

impl Sockets {
    /// Binds all of `config` that callers and probes come to.
    pub(in crate::grpc) async fn bind(config: &Config) -> Result<Self, Error> {
        let tcp = match config.tcp {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let health = match config.health {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let unix = match &config.unix {
            Some(config) => unix::bind(config)?,
            None => Vec::new(),
        };
        Ok(Self { tcp, unix, health })
    }
}

/// Binds `address`.
///
/// # Errors
/// [`Error::Tcp`].
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Tcp { address, source })
}
