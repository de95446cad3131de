//! A whole broker for a test: the real server in this process, on a free port of 127.0.0.1, with
//! certificates made for it, and real clients over mutual TLS.
//!
//! ```ignore
//! let broker = Broker::start().with(|setup| setup.limits.in_flight = 1).await;
//! let mut web = broker.caller(WEB).await;                  // a certificate and a client
//! let mut api = broker.client(&broker.authority.client(API)).await; // the same in two steps
//! let sealed = web.encrypt(pb::EncryptRequest { .. }).await;
//! assert_eq!(broker.kms.calls(), 1);
//! assert_eq!(broker.records()[0]["errorCode"], json!(null)); // there when the answer is
//! ```
//!
//! - [`Setup`] is everything that can be set before the start; the defaults are [`TENANTS`] and
//!   [`RULES`], the trust domain `prod.example`, the [`FakeKms`], the machine's clock.
//! - [`Broker::kms`] fails, panics or holds its calls on demand, and counts them. [`Broker::trail`]
//!   is the audit sink, which fails or holds on demand as well. Neither needs a sleep:
//!   `kms.reached(n)` and `trail.reached(n)` wait for what is under test.
//! - [`rpcs`] calls every RPC by its name and makes plain requests; [`Refusal`] is a status as its
//!   client reads it; [`Wire::send`] sends any path, headers and body.
//! - [`Broker::connect`] gives a bare HTTP/2 connection, which can be cut, [`Broker::tls`] a bare TLS
//!   stream, [`Broker::address`] the port.
//! - [`Broker::reload_policy`] and [`Broker::reload_tls`] change the running server;
//!   [`Broker::write`] replaces a file that TLS is loaded from.
//! - [`unwired`] is a broker without its server, for tests in virtual time.
//! - It ends when dropped; [`Broker::stop`] ends it in order and waits for that.

mod authority;
mod kms;
mod local;
mod refusal;
pub mod rpcs;
mod trail;
pub mod unwired;
mod wire;

use std::fs;
use std::future::Future;
use std::future::IntoFuture;
use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use keybroker::admin;
use keybroker::admin::Admin;
use keybroker::audit::Audit;
use keybroker::audit::Sink;
use keybroker::broker::Grants;
use keybroker::broker::Management;
use keybroker::broker::Origin;
use keybroker::clock;
use keybroker::clock::Clock;
use keybroker::crypto::Secret;
use keybroker::datakeys;
use keybroker::datakeys::DataKeys;
use keybroker::directory::Content;
use keybroker::directory::Directory;
use keybroker::directory::Row;
use keybroker::directory::Standing;
use keybroker::grants::TokenKey;
use keybroker::grants::TokenKeys;
use keybroker::grpc::Handle;
use keybroker::grpc::Limits;
use keybroker::grpc::Parts;
use keybroker::grpc::Server;
use keybroker::grpc::listener;
use keybroker::grpc::pb::admin_service_client::AdminServiceClient;
use keybroker::grpc::pb::grant_service_client::GrantServiceClient;
use keybroker::grpc::pb::key_broker_service_client::KeyBrokerServiceClient;
use keybroker::grpc::tls;
use keybroker::grpc::tls::Material;
use keybroker::identity;
use keybroker::identity::Operators;
use keybroker::identity::Rules;
use keybroker::kms::Delegation;
use keybroker::kms::Guarded;
use keybroker::kms::Kms;
use keybroker::kms::Reach;
use keybroker::kms::aws;
use keybroker::metrics::Metrics;
use keybroker::policy::Policy;
use keybroker::quota;
use keybroker::quota::Quotas;
use keybroker::store;
use keybroker::store::Freshness;
use keybroker::store::Store;
use keybroker::telemetry::Telemetry;
use keybroker::trace::Tracer;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

pub use authority::Authority;
pub use authority::Identity;
pub use kms::FakeKms;
pub use kms::demand;
pub use refusal::Refusal;
pub use refusal::reason;
pub use trail::Trail;
pub use wire::Connection;
pub use wire::Wire;
pub use wire::framed;
pub use wire::tls;

/// A client of the broker, on one connection that is never made anew.
pub type Client = KeyBrokerServiceClient<Wire>;

/// `users` of acme's keys.
pub const WEB: &str = "spiffe://prod.example/tenant/acme/sa/web";
/// Of acme, in no list of any key but its `locked` (administrators).
pub const ADMIN: &str = "spiffe://prod.example/tenant/acme/sa/admin";
/// `users` of globex's keys, and `external_users` of acme's `shared`.
pub const GLOBEX: &str = "spiffe://prod.example/tenant/globex/sa/web";
/// Of a tenant without any keys.
pub const STRANGER: &str = "spiffe://prod.example/tenant/initech/sa/web";

/// Tenants `acme` (with a fixed pair) and `globex`.
pub const TENANTS: &str = r#"
[[tenant]]
id = "acme"
context = { stage = "test" }

[[tenant.key]]
id = "orders"
kms = "local:acme-orders"
users = ["spiffe://prod.example/tenant/acme/sa/web", "spiffe://prod.example/tenant/acme/app/*"]
encrypt_only = ["spiffe://prod.example/tenant/acme/sa/writer"]
decrypt_only = ["spiffe://prod.example/tenant/acme/sa/reader"]

[[tenant.key]]
id = "invoices"
kms = "local:acme-invoices"
users = ["spiffe://prod.example/tenant/acme/sa/web"]

[[tenant.key]]
id = "shared"
kms = "local:acme-shared"
users = ["spiffe://prod.example/tenant/acme/sa/web"]
external_users = ["spiffe://prod.example/tenant/globex/sa/web"]

[[tenant.key]]
id = "locked"
kms = "local:acme-locked"
administrators = ["spiffe://prod.example/tenant/acme/sa/admin"]

[[tenant.key]]
id = "own"
kms = "local:acme-own"
owner = "tenant"
users = ["spiffe://prod.example/tenant/acme/sa/web"]

[[tenant]]
id = "globex"

[[tenant.key]]
id = "orders"
kms = "local:globex-orders"
users = ["spiffe://prod.example/tenant/globex/sa/web"]
"#;

/// `sa` identities bring nothing along; `app` identities bring the pair `app`.
pub const RULES: &str = r#"
[[rule]]
match = "spiffe://prod.example/tenant/{tenant}/sa/{service}"
tenant = "{tenant}"

[[rule]]
match = "spiffe://prod.example/tenant/{tenant}/app/{app}"
tenant = "{tenant}"
context = { app = "{app}" }
"#;

/// A running broker.
pub struct Broker {
    /// Vouches for clients of `prod.example`.
    pub authority: Authority,
    /// Vouches for the server.
    pub server_authority: Authority,
    /// The KMS, unless the setup named another.
    pub kms: Arc<FakeKms>,
    /// Where the records go.
    pub trail: Trail,
    /// What the broker counts.
    pub metrics: Metrics,
    audit: Arc<Audit>,
    broker: Arc<keybroker::broker::Broker>,
    clock: Arc<dyn Clock>,
    identity: identity::Config,
    tls: tls::Config,
    address: SocketAddr,
    health: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    handle: Handle,
    folder: TempDir,
    shutdown: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

/// What a broker starts with.
pub struct Setup {
    /// Vouches for clients of `prod.example`; replaced, or a certificate taken from it, by tests
    /// that need one before the start.
    pub authority: Authority,
    /// The tenants file.
    pub tenants: String,
    /// `[[rule]]` tables; bundles of trust domains come from `trust`. A DNS rule's `bundle` is a
    /// path: see `file`.
    pub rules: String,
    /// Sockets; `tcp` stays on port 0.
    pub listen: listener::Config,
    /// Bounds of the server; no drain pause.
    pub limits: Limits,
    /// What callers may spend.
    pub quota: quota::Config,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Another KMS than the fake one.
    pub kms: Option<Arc<dyn Kms>>,
    /// Where grants of KMS are made; nowhere if none.
    pub delegation: Option<Arc<dyn Delegation>>,
    /// What stands before the KMS, as in `serve`; nothing does otherwise, so that tests of what is
    /// behind see each failure once.
    pub guard: Option<aws::Config>,
    /// The data-key cache.
    pub cache: datakeys::Config,
    /// How fresh what the broker knows of tenants is; always fresh otherwise.
    pub freshness: Option<Arc<Freshness>>,
    /// Who may call the AdminService, as the configuration names them.
    pub operators: Operators,
    /// The folder of the store; one of its own if none.
    pub store: Option<PathBuf>,
    /// Whether the broker serves before it has taken up any grant of its store.
    pub early: bool,
    folder: TempDir,
    bundles: Vec<identity::rules::BundleConfig>,
}

impl Setup {
    fn new() -> Self {
        Self {
            authority: Authority::new("prod.example"),
            tenants: TENANTS.to_owned(),
            rules: RULES.to_owned(),
            listen: listener::Config {
                tcp: Some((Ipv4Addr::LOCALHOST, 0).into()),
                ..listener::Config::default()
            },
            limits: Limits {
                drain_pause: SignedDuration::ZERO,
                // Work stands in line as a matter of course where tests share a processor.
                queue_delay: SignedDuration::from_secs(10),
                ..Limits::default()
            },
            quota: quota::Config::default(),
            clock: Arc::new(clock::System),
            kms: None,
            delegation: None,
            guard: None,
            cache: datakeys::Config::default(),
            freshness: None,
            operators: Operators::default(),
            store: None,
            early: false,
            folder: tempfile::tempdir().unwrap(),
            bundles: Vec::new(),
        }
    }

    /// Trusts another domain's authority. `prod.example` is trusted as it is.
    pub fn trust(&mut self, authority: &Authority) {
        self.bundle(authority, None);
    }

    /// Trusts a domain's authority (`prod.example` too) with the revocation list `crl`, PEM. The
    /// list is the file `<domain>.crl`.
    pub fn trust_with_crl(&mut self, authority: &Authority, crl: &str) {
        let crl = self.file(&format!("{}.crl", authority.domain()), crl);
        self.bundle(authority, Some(crl));
    }

    /// Writes a file into the broker's folder.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn bundle(&mut self, authority: &Authority, crl: Option<PathBuf>) {
        let file = self.file(&format!("{}.pem", authority.domain()), &authority.pem());
        self.bundles.push(identity::rules::BundleConfig {
            trust_domain: authority.domain().parse().unwrap(),
            file,
            crl,
        });
    }
}

/// A broker about to start: `.await` starts it.
pub struct Start(Setup);

impl Start {
    /// Changes what it starts with.
    pub fn with<T>(mut self, change: impl FnOnce(&mut Setup) -> T) -> Self {
        change(&mut self.0);
        self
    }
}

impl IntoFuture for Start {
    type Output = Broker;
    type IntoFuture = Pin<Box<dyn Future<Output = Broker> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(Broker::run(self.0))
    }
}

impl Broker {
    /// A broker with the defaults.
    pub fn start() -> Start {
        Start(Setup::new())
    }

    async fn run(mut setup: Setup) -> Self {
        let domain = setup.authority.domain().to_owned();
        if !setup
            .bundles
            .iter()
            .any(|bundle| bundle.trust_domain.as_str() == domain)
        {
            let file = setup.file(&format!("{domain}.pem"), &setup.authority.pem());
            setup.bundles.push(identity::rules::BundleConfig {
                trust_domain: domain.parse().unwrap(),
                file,
                crl: None,
            });
        }
        let mut identity: identity::Config = toml::from_str(&setup.rules).unwrap();
        identity.bundle = setup.bundles.clone();
        let rules = Rules::new(&identity).unwrap();

        let server_authority = Authority::new("broker.example");
        let own = server_authority.server("localhost");
        let tls = tls::Config {
            certificate: setup.file("server.pem", &own.chain_pem()),
            private_key: setup.file("server.key", &own.key_pem()),
        };
        let material = Material::load(&tls, &rules, setup.clock.wall()).unwrap();

        let directory = Directory::parse(&setup.tenants, Path::new("tenants.toml")).unwrap();
        let policy = Policy::new(Arc::new(directory), Arc::new(rules)).unwrap();
        let fake = Arc::new(FakeKms::new());
        let telemetry = Telemetry::new();
        let metrics = telemetry.metrics();
        let mut kms = setup.kms.unwrap_or_else(|| fake.clone());
        if let Some(config) = &setup.guard {
            kms = Arc::new(Guarded::new(kms, config, metrics.clone(), Tracer::off()).unwrap());
        }
        let data_keys = DataKeys::new(kms, Arc::clone(&setup.clock), metrics.clone(), &setup.cache);
        let quotas = Quotas::new(&setup.quota, metrics.clone(), Arc::clone(&setup.clock));
        let store = setup
            .store
            .unwrap_or_else(|| setup.folder.path().to_owned());
        let grants = grants(&store, Arc::clone(&setup.clock));
        let mut broker = keybroker::broker::Broker::new(policy, quotas, data_keys, grants);
        if let Some(delegation) = setup.delegation {
            broker = broker.delegating(delegation);
        }
        if let Some(freshness) = setup.freshness {
            broker = broker.following(freshness);
        }
        broker.manage(Management {
            operators: setup.operators,
            reach: Reach::AwsAndLocal,
            origin: Origin::Store,
        });
        let broker = Arc::new(broker);
        if !setup.early {
            broker.grants().catch_up().await.unwrap();
        }

        let trail = Trail::default();
        let audit = Audit::new(Sink::to(trail.clone()), Arc::clone(&setup.clock));
        let parts = Parts {
            broker: Arc::clone(&broker),
            audit: Arc::clone(&audit),
            clock: Arc::clone(&setup.clock),
            tracer: Tracer::off(),
        };
        let server = Server::bind(parts, &setup.listen, setup.limits, Some(material))
            .await
            .unwrap();
        let address = server.tcp_address().unwrap();
        let health = server.health_address();
        let handle = server.handle();
        let admin = match setup.listen.admin {
            Some(address) => {
                let view = admin::View::new(telemetry, metrics.clone(), server.handle());
                Some(Admin::bind(address, view).await.unwrap())
            }
            None => None,
        };
        let admin_address = admin.as_ref().and_then(Admin::address);
        let (shutdown, asked) = oneshot::channel::<()>();
        let running = tokio::spawn(async {
            let mut aside = JoinSet::new();
            if let Some(admin) = admin {
                aside.spawn(admin.run());
            }
            // Err: the broker was dropped, which asks as well.
            server.run(async { drop(asked.await) }).await;
            aside.shutdown().await;
        });
        Self {
            authority: setup.authority,
            metrics,
            server_authority,
            kms: fake,
            trail,
            audit,
            broker,
            clock: setup.clock,
            identity,
            tls,
            address,
            health,
            admin: admin_address,
            handle,
            folder: setup.folder,
            shutdown: Some(shutdown),
            running,
        }
    }

    /// The address of the TLS listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the health listener, if `setup.listen.health` was set.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health
    }

    /// The address of the admin listener, if `setup.listen.admin` was set.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// The folder that `setup.file` and [`Broker::write`] write to.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A client with a certificate of `prod.example` for the SPIFFE id `id`.
    pub async fn caller(&self, id: &str) -> Client {
        self.client(&self.authority.client(id)).await
    }

    /// A client of the GrantService for the SPIFFE id `id`.
    pub async fn granter(&self, id: &str) -> GrantServiceClient<Wire> {
        let identity = self.authority.client(id);
        self.connect(&identity).await.unwrap().grants()
    }

    /// A client of the AdminService for the SPIFFE id `id`.
    pub async fn operator(&self, id: &str) -> AdminServiceClient<Wire> {
        let identity = self.authority.client(id);
        self.connect(&identity).await.unwrap().admin()
    }

    /// Has the broker ask its store for news, as `serve` does by itself.
    pub async fn hear(&self) {
        self.broker.grants().catch_up().await.unwrap();
    }

    /// A client that shows `identity`.
    pub async fn client(&self, identity: &Identity) -> Client {
        self.connect(identity).await.unwrap().client()
    }

    /// An HTTP/2 connection that shows `identity`. A refusal of it is an error here or, since
    /// TLS 1.3 clients are done before servers are, the connection's end.
    pub async fn connect(&self, identity: &Identity) -> io::Result<Connection> {
        Connection::new(self.tls(Some(identity)).await?).await
    }

    /// A TLS stream that shows `identity`, or no certificate.
    pub async fn tls(&self, identity: Option<&Identity>) -> io::Result<TlsStream<TcpStream>> {
        tls(self.address, &self.server_authority, identity).await
    }

    /// All records so far. A call's own is there when its answer is.
    pub fn records(&self) -> Vec<serde_json::Value> {
        self.trail.records()
    }

    /// Calls of the fake KMS so far.
    pub fn kms_calls(&self) -> usize {
        self.kms.calls()
    }

    /// The operations' own state, for `data_keys().stats()`.
    pub fn inner(&self) -> &keybroker::broker::Broker {
        &self.broker
    }

    /// Has it end what grants of KMS are due, as `serve` does once a second, unless another than
    /// `holder` has the turn.
    pub async fn end_due_kms_grants(&self, holder: &str) {
        let ended = self.broker.end_due_kms_grants(holder, &self.audit);
        ended.await.unwrap();
    }

    /// Puts another tenants file in force, as a reload does.
    pub fn reload_policy(&self, tenants: &str) {
        let current = self.broker.policy();
        let directory = Directory::parse(tenants, Path::new("tenants.toml"))
            .unwrap()
            .succeed(current.directory());
        let policy = Policy::new(Arc::new(directory), Arc::clone(current.rules())).unwrap();
        self.broker.reload(policy);
    }

    /// Has the tenants of a file in force, and of them `tenant` in this standing.
    pub fn stand(&self, tenants: &str, tenant: &str, standing: Standing) {
        let file = self.folder.path().join("tenants.toml");
        fs::write(&file, tenants).unwrap();
        let (_, documents) = Directory::load_with_documents(&file).unwrap();
        let rows = documents.into_iter().map(|(id, document)| Row {
            standing: if id.as_str() == tenant {
                standing
            } else {
                Standing::Active
            },
            id: id.to_string(),
            content: Content::Document(document),
            purged: 0,
        });
        let (directory, unusable) = Directory::default().with(rows);
        assert!(unusable.is_empty(), "{unusable:?}");
        let current = self.broker.policy();
        let directory = directory.succeed(current.directory());
        let policy = Policy::new(Arc::new(directory), Arc::clone(current.rules())).unwrap();
        self.broker.reload(policy);
    }

    /// Replaces a file that TLS is loaded from: `server.pem`, `server.key`, `<domain>.pem`,
    /// `<domain>.crl`.
    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.folder.path().join(name), content).unwrap();
    }

    /// Loads the TLS files anew and puts them in force; if they can't be used, says why and
    /// leaves the server as it is.
    pub fn reload_tls(&self) -> Result<(), tls::Error> {
        let rules = Rules::new(&self.identity).unwrap();
        let material = Material::load(&self.tls, &rules, self.clock.wall())?;
        self.handle.reload(material);
        Ok(())
    }

    /// Asks the server to stop. It drains; [`Broker::stop`] waits for it.
    pub fn ask_to_stop(&mut self) {
        self.shutdown.take();
    }

    /// Stops the server in order, and waits until it has.
    pub async fn stop(mut self) {
        self.ask_to_stop();
        soon(&mut self.running).await.unwrap();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// The grants of a store in `folder`. All have the same key for their tokens.
pub fn grants(folder: &Path, clock: Arc<dyn Clock>) -> Grants {
    let config = store::Config {
        file: folder.join("store.db"),
        ..store::Config::default()
    };
    let store = Arc::new(Store::new(&config, None).unwrap());
    let key = TokenKey::new(Secret::filled(|cell| cell.fill(7)));
    Grants::new(store, TokenKeys::new(key, None), clock)
}

/// Waits for what must happen soon, and fails the test if it doesn't: a hang should have a name.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("it happens within 30 s")
}

/// Waits until `condition` holds, without a sleep: the rest of the test's runtime goes on.
pub async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
