//! What a broker needs to serve one tenant, in a temporary folder: certificates, a local keyring,
//! and configuration.
#![allow(dead_code, reason = "each benchmark uses a part")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;

use jiff::Timestamp;
use keybroker::kms::local::Keyring;
use keybroker::kms::local::Purpose;
use keybroker::kms::local::SealingKey;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::SanType;
use tempfile::TempDir;

/// The folder, removed when dropped.
pub struct Stage(TempDir);

impl Stage {
    /// A server on TCP, everything made anew.
    pub fn set() -> Self {
        Self::with(CONFIG, TENANTS)
    }

    /// A server on a Unix socket, for this process's user.
    pub fn sidecar() -> Self {
        let uid = fs::metadata("/proc/self").unwrap().uid();
        let own = format!("unix:uid={uid}");
        let tenants = TENANTS.replace("spiffe://prod.example/tenant/acme/sa/*", &own);
        Self::with(&SIDECAR.replace("unix:uid=0", &own), &tenants)
    }

    fn with(config: &str, tenants: &str) -> Self {
        let stage = Self(tempfile::tempdir().unwrap());
        fs::create_dir(stage.path("audit")).unwrap();
        stage.certify();
        stage.write("keybroker.toml", config);
        stage.write("tenants.toml", tenants);
        let sealing_key = SealingKey::create(&stage.path(SEALING_KEY)).unwrap();
        let keyring = Keyring::create(&stage.path(KEYRING), Purpose::Production, sealing_key);
        let key = "orders".parse().unwrap();
        keyring.unwrap().add(&key, Timestamp::now()).unwrap();
        stage
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// The configuration file of `keybroker serve`.
    pub fn config(&self) -> PathBuf {
        self.path("keybroker.toml")
    }

    /// Where the audit records go.
    pub fn audit(&self) -> PathBuf {
        self.path(AUDIT)
    }

    /// The Unix socket of a sidecar.
    pub fn socket(&self) -> PathBuf {
        self.path(SOCKET)
    }

    /// Opens the keyring, which no other process may hold.
    pub fn keyring(&self) -> Keyring {
        let source = self.path(SEALING_KEY).to_str().unwrap().parse().unwrap();
        let sealing_key = SealingKey::load(&source, None).unwrap();
        Keyring::open(&self.path(KEYRING), Purpose::Production, sealing_key).unwrap()
    }

    /// An authority, and certificates of it for the servers and for the one client.
    fn certify(&self) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        self.write(AUTHORITY, &authority.pem());
        let issuer = Issuer::new(params, key);

        let server = SanType::DnsName(SERVER_NAME.try_into().unwrap());
        let client = SanType::URI(CLIENT_ID.try_into().unwrap());
        for (files, name, purpose) in [
            (SERVER, server, ExtendedKeyUsagePurpose::ServerAuth),
            (CLIENT, client, ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![name];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![purpose];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            self.write(files.certificate, &certificate.pem());
            self.write(files.private_key, &key.serialize_pem());
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }
}

/// The names of a certificate's files.
#[derive(Clone, Copy)]
pub struct Files {
    /// The certificate.
    pub certificate: &'static str,
    /// Its private key.
    pub private_key: &'static str,
}

/// The authority's certificate.
pub const AUTHORITY: &str = "ca.pem";
/// The servers' own.
pub const SERVER: Files = Files {
    certificate: "server.pem",
    private_key: "server.key",
};
/// The client's own.
pub const CLIENT: Files = Files {
    certificate: "client.pem",
    private_key: "client.key",
};
/// The DNS name in the servers' certificate.
pub const SERVER_NAME: &str = "localhost";
/// The SPIFFE id in the client's certificate.
pub const CLIENT_ID: &str = "spiffe://prod.example/tenant/acme/sa/checkout";

const KEYRING: &str = "keyring";
/// In a folder of its own: the server watches the one of its configuration.
const AUDIT: &str = "audit/keybroker.jsonl";
const SEALING_KEY: &str = "sealing.key";
const SOCKET: &str = "keybroker.sock";
const CONFIG: &str = r#"
tenants_file = "tenants.toml"

[listen]
tcp = "127.0.0.1:0"

[tls]
certificate = "server.pem"
private_key = "server.key"

[[identity.rule]]
match = "spiffe://prod.example/tenant/{tenant}/sa/{service}"
tenant = "{tenant}"
context = { service = "{service}" }

[[identity.bundle]]
trust_domain = "prod.example"
file = "ca.pem"

[kms.local]
keyring = "keyring"
sealing_key = "sealing.key"

[audit]
file = "audit/keybroker.jsonl"

[limits]
connections_per_identity = 128
# Batches stand in line here, and every call must succeed.
queue_delay = "10s"

[quota]
tenant_rate = 10_000_000
principal_rate = 10_000_000
"#;
const SIDECAR: &str = r#"
tenants_file = "tenants.toml"

[listen.unix]
path = "keybroker.sock"
mode = "600"

[[identity.rule]]
match = "unix:uid=0"
tenant = "acme"

[kms.local]
keyring = "keyring"
sealing_key = "sealing.key"

[audit]
file = "audit/keybroker.jsonl"
"#;
const TENANTS: &str = r#"
[[tenant]]
id = "acme"
context = { env = "prod" }

[[tenant.key]]
id = "orders"
kms = "local:orders"
users = ["spiffe://prod.example/tenant/acme/sa/*"]
"#;
