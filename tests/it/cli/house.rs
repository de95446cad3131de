//! A server in a process of its own, whose KMS is a fake.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use keybroker::kms::Arn;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::site::Running;
use super::site::Site;
use super::site::credited;
use crate::harness::Authority;
use crate::harness::Broker;
use crate::harness::Connection;
use crate::harness::Identity;
use crate::harness::WEB;
use crate::harness::tls;
use crate::support::fake_kms::FakeKms;

/// A folder for a server whose KMS is a fake.
pub(super) struct House {
    pub(super) site: Site,
    pub(super) authority: Authority,
    server_authority: Authority,
    arn: Arn,
}

impl House {
    /// Whose key `orders` is `arn`.
    pub(super) fn new(arn: &Arn) -> Self {
        let site = Site::without_keyring();
        let (authority, server_authority) = (
            Authority::new("prod.example"),
            Authority::new("broker.example"),
        );
        let own = server_authority.server("localhost");
        site.write("ca.pem", &authority.pem());
        site.write("server.pem", &own.chain_pem());
        site.write("server.key", &own.key_pem());
        site.write("tenants.toml", &tenants(arn));
        let local = "[kms.local]\nkeyring = \"keyring\"\nsealing_key = \"sealing.key\"\n";
        site.edit("keybroker.toml", local, "[kms.aws]\n\n[memory]\n");
        // Work stands in line as a matter of course where tests share a processor.
        let patient = "[limits]\nqueue_delay = \"10s\"";
        site.edit("keybroker.toml", "[limits]", patient);
        site.edit(
            "keybroker.toml",
            "context = { service = \"{service}\" }\n",
            "",
        );
        Self {
            site,
            authority,
            server_authority,
            arn: arn.clone(),
        }
    }

    pub(super) fn use_kms(&self, kms: &FakeKms) {
        let aws = format!("[kms.aws]\nendpoint = \"{}\"", kms.endpoint());
        self.site.edit("keybroker.toml", "[kms.aws]", &aws);
    }

    pub(super) fn set_memory(&self, setting: &str) {
        let config = fs::read_to_string(self.site.path("keybroker.toml")).unwrap();
        let lines = config
            .lines()
            .filter(|line| !line.starts_with("memfd_secret"));
        let config: String = lines.map(|line| format!("{line}\n")).collect();
        self.site.write("keybroker.toml", &config);
        let section = format!("[memory]\n{setting}");
        self.site.edit("keybroker.toml", "[memory]", &section);
    }

    /// A broker in this process with the same tenants and KMS.
    pub(super) async fn writer(&self, kms: &FakeKms) -> Broker {
        Broker::start()
            .with(|setup| {
                setup.tenants = tenants(&self.arn);
                setup.kms = Some(Arc::new(kms.aws()));
            })
            .await
    }

    /// The server, in a process of its own.
    pub(super) fn serve(&self) -> Running {
        Running::logging(self.equip(Command::new(KEYBROKER)))
    }

    /// `command`, which runs what it is given, as the server.
    pub(super) fn equip(&self, mut command: Command) -> Command {
        command
            .args(["serve", "--config"])
            .arg(self.site.path("keybroker.toml"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        credited(command)
    }

    /// A connection to the server, which has just started.
    pub(super) async fn connect(&self, server: &Running) -> Connection {
        self.connect_as(server, &self.authority.client(WEB)).await
    }

    /// The same with the certificate `identity`.
    pub(super) async fn connect_as(&self, server: &Running, identity: &Identity) -> Connection {
        let address = Self::address(server);
        let connection = Connection::dial(address, &self.server_authority, identity);
        connection.await.unwrap()
    }

    /// Where the server listens, which has just started.
    pub(super) fn address(server: &Running) -> SocketAddr {
        let address = server.await_line("serving with TLS address=");
        address.parse().unwrap()
    }

    /// A TLS stream to it.
    pub(super) async fn tls(
        &self,
        address: SocketAddr,
        identity: &Identity,
    ) -> TlsStream<TcpStream> {
        let stream = tls(address, &self.server_authority, Some(identity));
        stream.await.unwrap()
    }
}

fn tenants(arn: &Arn) -> String {
    format!(
        "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\nkms = \"{}\"\n\
         users = [\"{WEB}\"]\ncache = {{ max_age = \"5s\" }}\n",
        arn.as_str()
    )
}

/// The command.
pub(super) const KEYBROKER: &str = env!("CARGO_BIN_EXE_keybroker");
