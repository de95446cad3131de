//! A broker that shares PostgreSQL with others.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::site::Running;
use super::site::Site;
use super::site::credited;
use super::site::good;
use super::site::uid;
use crate::harness::soon;
use crate::support::postgres::Postgres;

/// A broker with PostgreSQL for its store.
pub(super) struct Replica {
    pub(super) site: Site,
    pub(super) server: Option<Running>,
    pub(super) admin: Option<SocketAddr>,
}

impl Replica {
    /// One that finds `postgres` at `address`.
    pub(super) fn of(postgres: &Postgres, address: SocketAddr) -> Self {
        let site = Site::with_operator();
        let store = format!(
            "[store]\nurl = \"postgres://keybroker@{address}/postgres\"\nca = \"{}\"\n\
             password = \"{}\"\n\n[grants]\ntoken_key = \"token.key\"\n\n[kms.local]",
            postgres.ca().display(),
            postgres.password().display()
        );
        site.edit("keybroker.toml", "[kms.local]", &store);
        site.write("token.key", &"5a".repeat(32));
        let closed = fs::Permissions::from_mode(0o600);
        fs::set_permissions(site.path("token.key"), closed).unwrap();
        site.edit("keybroker.toml", "tenants_file = \"tenants.toml\"\n", "");
        site.edit(
            "keybroker.toml",
            "[listen]",
            "[listen]\nadmin = \"127.0.0.1:0\"",
        );
        Self {
            site,
            server: None,
            admin: None,
        }
    }

    /// One in which work may stand in line, as it does where tests share a processor.
    pub(super) fn patient(postgres: &Postgres) -> Self {
        let replica = Self::of(postgres, postgres.address());
        let patient = "[limits]\nqueue_delay = \"10s\"";
        replica.site.edit("keybroker.toml", "[limits]", patient);
        replica
    }

    pub(super) fn serve(mut self) -> Self {
        self.start();
        self
    }

    /// Starts its server.
    pub(super) fn start(&mut self) {
        let server = Running::logging(credited(self.site.command(&["serve"])));
        self.admin = Some(admin(&server));
        self.server = Some(server);
    }

    /// Ends its server as a crash does.
    pub(super) fn crash(&mut self) {
        self.server.take().unwrap().crash();
    }

    /// The keys that the tests' own user sees.
    pub(super) fn keys(&self) -> String {
        self.keys_of("tenants/acme")
    }

    /// Those of the tenant `parent`.
    pub(super) fn keys_of(&self, parent: &str) -> String {
        good(self.listing(parent), b"")
    }

    pub(super) fn listing(&self, parent: &str) -> Command {
        self.at(&["keys", "list", "--parent", parent])
    }

    /// A command for this broker.
    pub(super) fn at(&self, args: &[&str]) -> Command {
        self.site.at(args)
    }

    /// Brings `tenants` in, and removes all others; what it said.
    pub(super) fn apply(&self, tenants: &str) -> String {
        good(self.applying(tenants), b"")
    }

    /// The command for that. `UID` in `tenants` is whoever runs the tests.
    pub(super) fn applying(&self, tenants: &str) -> Command {
        let text = tenants.replace("UID", &uid().to_string());
        self.site.write("tenants.toml", &text);
        self.at(&["apply", "--prune", "-f", "tenants.toml"])
    }

    /// Waits until it refuses the tests' own user, with `word`.
    pub(super) async fn refuses(&self, word: &str) {
        let refused = async {
            loop {
                let output = self.listing("tenants/acme").output().unwrap();
                if String::from_utf8_lossy(&output.stderr).contains(word) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        soon(refused).await;
    }

    /// Waits until it shows this key, or none.
    pub(super) async fn becomes(&self, key: &str) {
        let seen = async {
            loop {
                let output = self.listing("tenants/acme").output().unwrap();
                let seen = String::from_utf8_lossy(&output.stdout);
                let shows = seen.contains(key) && seen.is_empty() == key.is_empty();
                if output.status.success() && shows {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        soon(seen).await;
    }
}

/// Three brokers that serve `tenants`.
pub(super) async fn fleet(postgres: &Postgres, tenants: &str) -> [Replica; 3] {
    let fleet = [(); 3].map(|()| Replica::patient(postgres).serve());
    fleet[0].apply(tenants);
    for replica in &fleet {
        replica.becomes("tenants/acme/keys/orders").await;
    }
    fleet
}

/// [`GRANTING`], of a tenant whose revocations count at once.
pub(super) fn strict() -> String {
    GRANTING.replace("\"acme\"\n", "\"acme\"\nrevocation = \"strict\"\n")
}

pub(super) fn admin(server: &Running) -> SocketAddr {
    let line = server.await_line("serving metrics and readiness in plain text");
    line.split_once("address=")
        .unwrap()
        .1
        .trim()
        .parse()
        .unwrap()
}

/// A tenant whose key whoever runs the tests administers, and may not use.
pub(super) const GRANTING: &str = r#"
[[tenant]]
id = "acme"
[[tenant.key]]
id = "orders"
kms = "local:orders"
administrators = ["unix:uid=UID"]
"#;
