//! The private folder of `keybroker dev`, and the files in it.

use std::fs;
use std::fs::DirBuilder;
use std::fs::OpenOptions;
use std::fs::Permissions;
use std::io;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::dev::certificates::Authority;
use crate::cli::dev::certificates::Pair;
use crate::clock::Clock as _;
use crate::clock::System;
use crate::grpc::client::Credentials;
use crate::grpc::tls;
use crate::kms::local::Keyring;
use crate::kms::local::Purpose;
use crate::kms::local::SealingKey;

/// A folder that nobody else may enter.
pub(super) struct Folder {
    path: PathBuf,
    /// Removed with all that is in it when dropped.
    _fresh: Option<TempDir>,
}

/// A tenant of the playground: its workload and its key.
#[derive(Clone, Copy)]
pub(super) struct Playmate {
    pub(super) tenant: &'static str,
    pub(super) service: &'static str,
    pub(super) key: &'static str,
}

pub(super) const ACME: Playmate = Playmate {
    tenant: "acme",
    service: "shop",
    key: "orders",
};
pub(super) const GLOBEX: Playmate = Playmate {
    tenant: "globex",
    service: "billing",
    key: "invoices",
};

impl Folder {
    /// Makes a fresh folder, or fills `kept`: which is made, or is empty, or was made by an earlier
    /// `dev`. Keys and tenants of that one stay; certificates and configuration are new each time.
    pub(super) fn make(kept: Option<&Path>, listen: SocketAddr) -> Result<Self, Failure> {
        let unmade = |path: &Path, error: io::Error| {
            let sentence = format!("cannot make {}: {error}", path.display());
            Failure::new(Exit::CannotCreate, sentence)
        };
        let folder = match kept {
            None => {
                let fresh = tempfile::Builder::new()
                    .prefix("keybroker-dev-")
                    .permissions(Permissions::from_mode(0o700))
                    .tempdir()
                    .map_err(|error| unmade(&std::env::temp_dir(), error))?;
                Self {
                    path: fresh.path().to_owned(),
                    _fresh: Some(fresh),
                }
            }
            Some(path) => {
                private(path).map_err(|error| unmade(path, error))?;
                // The commands that are printed work from anywhere.
                let path = fs::canonicalize(path).map_err(|error| unmade(path, error))?;
                Self { path, _fresh: None }
            }
        };
        if !folder.file(MARKER).exists() {
            folder.refuse_strangers()?;
            folder.first()?;
        }
        folder.each_time(listen)?;
        Ok(folder)
    }

    /// A file in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.file("keybroker.toml")
    }

    /// What the workload of `mate` connects with.
    pub(super) fn credentials(&self, mate: Playmate) -> Credentials {
        Credentials {
            ca: self.file("ca.pem"),
            own: tls::Config {
                certificate: self.file(&format!("{}.pem", mate.tenant)),
                private_key: self.file(&format!("{}.key", mate.tenant)),
            },
            server_name: None,
        }
    }

    fn refuse_strangers(&self) -> Result<(), Failure> {
        let empty = fs::read_dir(&self.path).is_ok_and(|mut entries| entries.next().is_none());
        if empty {
            return Ok(());
        }
        let sentence = format!(
            "{} holds files that `keybroker dev` did not make: name another folder",
            self.path.display()
        );
        Err(Failure::new(Exit::CannotCreate, sentence))
    }

    /// What stays from start to start: keyring and tenants.
    fn first(&self) -> Result<(), Failure> {
        let sealing_key = SealingKey::create(&self.file("sealing.key"))
            .map_err(|error| Failure::new(Exit::CannotCreate, error.to_string()))?;
        let keyring = Keyring::create(&self.file("keyring"), Purpose::Dev, sealing_key)
            .map_err(|error| Failure::keyring(&error))?;
        for mate in [ACME, GLOBEX] {
            let id = format!("{}-{}", mate.tenant, mate.key);
            let id = id.parse().expect("two labels and a dash are a label");
            keyring
                .add(&id, System.wall())
                .map_err(|error| Failure::keyring(&error))?;
        }
        self.write("tenants.toml", &tenants())?;
        for (name, text) in PROTO {
            self.write(name, text)?;
        }
        self.write("client.py", PYTHON)?;
        // Last: a folder that was filled by half is not used.
        self.write(
            MARKER,
            "Made by `keybroker dev`: keys and certificates for playing. Remove it at will.\n",
        )
    }

    /// What is new with each start: certificates and configuration.
    fn each_time(&self, listen: SocketAddr) -> Result<(), Failure> {
        let failed = |error: rcgen::Error| {
            Failure::new(Exit::Software, format!("cannot make certificates: {error}"))
        };
        let authority = Authority::new(System.wall()).map_err(failed)?;
        self.write("ca.pem", &authority.pem())?;
        self.pair("server", &authority.server().map_err(failed)?)?;
        for mate in [ACME, GLOBEX] {
            let pair = authority.client(&mate.path()).map_err(failed)?;
            self.pair(mate.tenant, &pair)?;
        }
        self.write("keybroker.toml", &config(listen))
    }

    fn pair(&self, name: &str, pair: &Pair) -> Result<(), Failure> {
        self.write(&format!("{name}.pem"), &pair.certificate)?;
        self.write(&format!("{name}.key"), &pair.private_key)
    }

    /// Writes a file that its owner alone can read.
    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.file(name);
        let written = path
            .parent()
            .map_or(Ok(()), private)
            .and_then(|()| {
                OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&path)
            })
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| {
            let sentence = format!("cannot write {}: {error}", path.display());
            Failure::new(Exit::CannotCreate, sentence)
        })
    }
}

impl Playmate {
    /// The workload's path in the trust domain.
    pub(super) fn path(self) -> String {
        format!("tenant/{}/service/{}", self.tenant, self.service)
    }

    /// The key's full name.
    pub(super) fn key_name(self) -> String {
        format!("tenants/{}/keys/{}", self.tenant, self.key)
    }
}

/// Makes the folder `path`, or takes others' rights from it.
fn private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
}

fn tenants() -> String {
    [ACME, GLOBEX]
        .map(|mate| {
            let Playmate { tenant, key, .. } = mate;
            format!(
                "[[tenant]]\n\
                 id = \"{tenant}\"\n\
                 context = {{ plan = \"dev\" }}\n\
                 \n\
                 [[tenant.key]]\n\
                 id = \"{key}\"\n\
                 kms = \"local:{tenant}-{key}\"\n\
                 users = [\"spiffe://dev.keybroker.test/{}\"]\n",
                mate.path()
            )
        })
        .join("\n")
}

fn config(listen: SocketAddr) -> String {
    format!(
        r#"# Made by `keybroker dev`, anew at each start. NOT FOR PRODUCTION: `serve` refuses it.
tenants_file = "tenants.toml"

[listen]
tcp = "{listen}"
admin = "127.0.0.1:0"

[tls]
certificate = "server.pem"
private_key = "server.key"

[[identity.bundle]]
trust_domain = "dev.keybroker.test"
file = "ca.pem"

[[identity.rule]]
match = "spiffe://dev.keybroker.test/tenant/{{tenant}}/service/{{service}}"
tenant = "{{tenant}}"
context = {{ service = "{{service}}" }}

[kms.local]
keyring = "keyring"
sealing_key = "sealing.key"

[audit]
file = "audit.jsonl"

[limits]
drain_pause = "0s"
drain = "5s"
"#
    )
}

/// Tells a folder of ours from one that only has files of these names.
const MARKER: &str = "KEYBROKER_DEV";
/// For clients that bring no proto of their own.
const PROTO: [(&str, &str); 2] = [
    (
        "proto/keybroker/v1/key_broker.proto",
        include_str!("../../../proto/keybroker/v1/key_broker.proto"),
    ),
    (
        "proto/google/api/field_behavior.proto",
        include_str!("../../../proto/google/api/field_behavior.proto"),
    ),
];
const PYTHON: &str = include_str!("client.py");
