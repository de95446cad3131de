//! How the client commands reach a broker.

use std::path::PathBuf;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::grpc::client::Address;
use crate::grpc::client::Client;
use crate::grpc::client::Credentials;
use crate::grpc::tls;

/// Where the broker is, and who we are.
#[derive(Clone, clap::Args)]
pub(super) struct Connection {
    /// The broker: https://host:port or unix:/path.
    #[arg(long, env = "KEYBROKER_ADDR", value_name = "ADDRESS")]
    pub(super) addr: Option<Address>,
    /// A PEM file with the CA certificates that vouch for the broker.
    #[arg(long, env = "KEYBROKER_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A PEM file with our certificate.
    #[arg(long, env = "KEYBROKER_CERT", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// A PEM file with our certificate's private key.
    #[arg(long, env = "KEYBROKER_PRIVATE_KEY", value_name = "FILE")]
    private_key: Option<PathBuf>,
    /// The name that the broker's certificate must have, if not the address's host.
    #[arg(long, env = "KEYBROKER_SERVER_NAME", value_name = "NAME")]
    server_name: Option<String>,
}

impl Connection {
    /// Connects to the broker, for calls that need an identity.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        let Some(address) = &self.addr else {
            let sentence = "which broker? give --addr or KEYBROKER_ADDR: https://host:port or \
                            unix:/path";
            return Err(Failure::new(Exit::Usage, sentence));
        };
        if let Address::Plain(_) = address {
            let sentence =
                format!("{address} is plain text, which answers health probes alone: use https://");
            return Err(Failure::new(Exit::Usage, sentence));
        }
        self.dial(address).await
    }

    /// Connects to `address` with what there is of certificates.
    pub(super) async fn dial(&self, address: &Address) -> Result<Client, Failure> {
        Client::connect(address, self.credentials().as_ref())
            .await
            .map_err(|error| Failure::broker(&error))
    }

    fn credentials(&self) -> Option<Credentials> {
        Some(Credentials {
            ca: self.ca.clone()?,
            own: tls::Config {
                certificate: self.cert.clone()?,
                private_key: self.private_key.clone()?,
            },
            server_name: self.server_name.clone(),
        })
    }
}
