//! Unix sockets: who is known by the kernel's word, and what may lie at the path.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keybroker::audit::Audit;
use keybroker::audit::Sink;
use keybroker::clock;
use keybroker::crypto::Secret;
use keybroker::datakeys;
use keybroker::datakeys::DataKeys;
use keybroker::directory::Directory;
use keybroker::grpc::Limits;
use keybroker::grpc::Parts;
use keybroker::grpc::Server;
use keybroker::grpc::listener;
use keybroker::grpc::listener::UnixConfig;
use keybroker::identity;
use keybroker::identity::Rules;
use keybroker::kms;
use keybroker::kms::DataKey;
use keybroker::kms::Demand;
use keybroker::kms::KeyRef;
use keybroker::kms::Kms;
use keybroker::kms::Unwrapped;
use keybroker::kms::Wrapped;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::metrics::KmsOperation;
use keybroker::metrics::Metrics;
use keybroker::policy::Policy;
use keybroker::quota;
use keybroker::quota::Quotas;
use keybroker::trace::Tracer;
use tokio::net::UnixStream;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::Connection;
use crate::harness::Start;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;

fn config(path: &Path) -> UnixConfig {
    UnixConfig {
        path: path.to_owned(),
        mode: "660".into(),
        abstract_name: None,
    }
}

/// A broker about to listen at a path, where this process's user is of tenant acme and may use
/// what `web` may.
fn local(change: impl FnOnce(&mut UnixConfig)) -> (Start, PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broker.sock");
    let own = fs::metadata("/proc/self").unwrap();
    let (uid, gid) = (own.uid(), own.gid());
    let start = Broker::start().with(|setup| {
        let mut unix = config(&path);
        change(&mut unix);
        setup.listen.unix = Some(unix);
        setup.rules.push_str(&format!(
            "[[rule]]\nmatch = \"unix:uid={uid},gid={gid}\"\ntenant = \"acme\"\n"
        ));
        let principal = format!("\"{WEB}\", \"unix:uid={uid},gid={gid}\"");
        setup.tenants = TENANTS.replace(&format!("\"{WEB}\""), &principal);
    });
    (start, path, folder)
}

/// Why a server can't listen so.
async fn refused(unix: UnixConfig) -> listener::Error {
    let clock = Arc::new(clock::System);
    let directory = Directory::parse("", Path::new("tenants.toml")).unwrap();
    let rules = Rules::new(&identity::Config::default()).unwrap();
    let policy = Policy::new(Arc::new(directory), Arc::new(rules)).unwrap();
    let data_keys = DataKeys::new(
        Arc::new(Unreachable),
        clock.clone(),
        Metrics::unread(),
        &datakeys::Config::default(),
    );
    let quotas = Quotas::new(&quota::Config::default(), Metrics::unread(), clock.clone());
    let folder = tempfile::tempdir().unwrap();
    let grants = crate::harness::grants(folder.path(), clock.clone());
    let broker = keybroker::broker::Broker::new(policy, quotas, data_keys, grants);
    let parts = Parts {
        broker: Arc::new(broker),
        audit: Audit::new(Sink::to(io::sink()), clock.clone()),
        clock,
        tracer: Tracer::off(),
    };
    let listen = listener::Config {
        unix: Some(unix),
        ..listener::Config::default()
    };
    match Server::bind(parts, &listen, Limits::default(), None).await {
        Ok(_) => panic!("it was bound"),
        Err(error) => error,
    }
}

/// A KMS that no test here may reach.
struct Unreachable;

#[async_trait]
impl Kms for Unreachable {
    async fn generate_data_key(
        &self,
        _: &KeyRef,
        _: &EncryptionContext,
        _: &Demand,
    ) -> Result<DataKey, kms::Error> {
        unreachable!()
    }

    async fn encrypt(
        &self,
        _: &KeyRef,
        _: &Secret<{ kms::DATA_KEY }>,
        _: &EncryptionContext,
        _: &Demand,
    ) -> Result<Wrapped, kms::Error> {
        unreachable!()
    }

    async fn decrypt(
        &self,
        _: &KeyRef,
        _: &EncryptedDataKey,
        _: &EncryptionContext,
        _: &Demand,
    ) -> Result<Unwrapped, kms::Error> {
        unreachable!()
    }

    async fn describe_key(&self, _: &KeyRef) -> Result<(), kms::Error> {
        unreachable!()
    }

    async fn dry_run(
        &self,
        _: KmsOperation,
        _: &KeyRef,
        _: &EncryptionContext,
        _: &Demand,
    ) -> Result<(), kms::Error> {
        unreachable!()
    }
}

async fn client(path: &Path) -> Client {
    let stream = UnixStream::connect(path).await.unwrap();
    Connection::new(stream).await.unwrap().client()
}

#[tokio::test]
async fn a_local_user_is_known_by_uid_and_gid() {
    let (start, path, _folder) = local(|_| ());
    let broker = start.await;
    let mut own = client(&path).await;
    own.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let record = &broker.records()[0];
    let own = fs::metadata("/proc/self").unwrap();
    let id = format!("unix:uid={},gid={}", own.uid(), own.gid());
    assert_eq!(record["userIdentity"]["type"], "Unix");
    assert_eq!(record["userIdentity"]["principalId"], id);
    assert_eq!(record["sourceIPAddress"], "unix");
    assert_eq!(record["tlsDetails"], serde_json::Value::Null);
}

#[tokio::test]
async fn a_local_user_without_a_rule_is_nobody() {
    let (start, path, _folder) = local(|_| ());
    let _broker = start
        .with(|setup| setup.rules = crate::harness::RULES.to_owned())
        .await;
    let outcome = client(&path)
        .await
        .encrypt(encrypt("keys/orders", "x"))
        .await;
    assert_eq!(reason(outcome), "IDENTITY_UNMAPPED");
}

#[tokio::test]
async fn the_socket_is_for_its_user_and_group_alone() {
    for (mode, on_disk) in [("660", 0o660), ("600", 0o600), ("0770", 0o770)] {
        let (start, path, _folder) = local(|unix| unix.mode = mode.into());
        let _broker = start.await;
        let permissions = fs::metadata(&path).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o7777, on_disk);
    }
}

#[tokio::test]
async fn a_mode_that_lets_others_in_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broker.sock");
    for mode in ["666", "661", "777", "1660", "rw", "", "-660", "9"] {
        let mut unix = config(&path);
        unix.mode = mode.into();
        let error = refused(unix).await;
        assert!(matches!(error, listener::Error::Mode { .. }), "{error}");
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn the_socket_of_a_dead_process_is_replaced() {
    let (start, path, _folder) = local(|_| ());
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _broker = start.await;
    client(&path)
        .await
        .encrypt(encrypt("keys/orders", "x"))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_socket_of_a_living_process_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broker.sock");
    let _living = UnixListener::bind(&path).unwrap();
    let error = refused(config(&path)).await;
    assert!(matches!(error, listener::Error::InUse { .. }), "{error}");
    StdStream::connect(&path).unwrap();
}

#[tokio::test]
async fn what_is_no_socket_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "precious").unwrap();
    let error = refused(config(&path)).await;
    assert!(matches!(error, listener::Error::NoSocket { .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

    // Nor is a link followed, not even to the socket of a dead process.
    let dead = folder.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&dead, &link).unwrap();
    let error = refused(config(&link)).await;
    assert!(matches!(error, listener::Error::NoSocket { .. }), "{error}");
    assert!(dead.exists());
}

#[tokio::test]
async fn an_abstract_name_answers_only_where_it_is_configured() {
    let name = format!("keybroker-test-{}", uuid::Uuid::now_v7());
    let connect = || -> io::Result<UnixStream> {
        let address = SocketAddr::from_abstract_name(&name)?;
        let stream = StdStream::connect_addr(&address)?;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    };
    let (start, _, _folder) = local(|_| ());
    let without = start.await;
    assert_eq!(
        connect().unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
    drop(without);

    let (start, _, _folder) = local(|unix| unix.abstract_name = Some(name.clone()));
    let _broker = start.await;
    let mut own = Connection::new(connect().unwrap()).await.unwrap().client();
    own.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}
