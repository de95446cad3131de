//! TLS material that changes under a running server, and what becomes of those who lose by it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keybroker::clock::Manual;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tonic::Code;

use super::certificates::admits;
use super::certificates::connector;
use super::raw;
use super::raw::GOAWAY;
use super::raw::Raw;
use crate::harness::Authority;
use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::Connection;
use crate::harness::Refusal;
use crate::harness::Setup;
use crate::harness::WEB;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;
use crate::support::scale::scaled;

/// Trusts `prod.example` with a revocation list that is empty and due in so many seconds.
fn vouch(setup: &mut Setup, due: i64) {
    let list = setup.authority.revocation_list(&[], due);
    let own = std::mem::replace(&mut setup.authority, Authority::new("prod.example"));
    setup.trust_with_crl(&own, &list);
    setup.authority = own;
}

/// Calls, and ends with the connection's end, which must come.
async fn refused_and_gone(mut client: Client, connection: Connection) -> String {
    let refused = client.encrypt(encrypt("keys/orders", "x")).await;
    let refusal = Refusal::of(&refused.unwrap_err());
    assert_eq!(refusal.code, Code::Unauthenticated);
    drop(client);
    // GOAWAY, and then the end in order: an Ok.
    soon(connection.ended).await.unwrap().unwrap();
    refusal.reason
}

#[tokio::test]
async fn who_loses_its_authority_is_refused_on_its_open_connection() {
    let broker = Broker::start().await;
    let web = broker.authority.client(WEB);
    let connection = broker.connect(&web).await.unwrap();
    let mut client = connection.client();
    client.encrypt(encrypt("keys/orders", "x")).await.unwrap();

    let successor = Authority::new("prod.example");
    broker.write("prod.example.pem", &successor.pem());
    broker.reload_tls().unwrap();
    assert_eq!(
        refused_and_gone(client, connection).await,
        "TRUST_DOMAIN_UNKNOWN"
    );
    assert!(!admits(&broker, Some(&web)).await);
    assert!(admits(&broker, Some(&successor.client(WEB))).await);
}

#[tokio::test]
async fn who_is_revoked_is_refused_on_its_open_connection() {
    let broker = Broker::start().with(|setup| vouch(setup, 3600)).await;
    let web = broker.authority.client(WEB);
    let other = broker.authority.client(WEB);
    let connection = broker.connect(&web).await.unwrap();
    let mut client = connection.client();
    client.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let mut unharmed = broker.client(&other).await;

    broker.write("prod.example.crl", &broker.authority.revoke(&[&web]));
    broker.reload_tls().unwrap();
    assert_eq!(
        refused_and_gone(client, connection).await,
        "IDENTITY_REVOKED"
    );
    assert!(!admits(&broker, Some(&web)).await);
    unharmed.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}

/// A broker with a revocation list that is due in so many seconds, and a clock of its own.
async fn with_list(due: i64) -> (Broker, Arc<Manual>) {
    let clock = Arc::new(Manual::new(Timestamp::now()));
    let broker = Broker::start()
        .with(|setup| {
            vouch(setup, due);
            setup.clock = clock.clone();
        })
        .await;
    (broker, clock)
}

#[tokio::test]
async fn an_overdue_revocation_list_lets_nobody_in() {
    let (broker, _) = with_list(-60).await;
    assert!(!admits(&broker, Some(&broker.authority.client(WEB))).await);
}

#[tokio::test]
async fn a_revocation_list_that_ends_ends_the_connections_it_vouched_for() {
    let (broker, clock) = with_list(600).await;
    let web = broker.authority.client(WEB);
    let connection = broker.connect(&web).await.unwrap();
    connection
        .client()
        .encrypt(encrypt("keys/orders", "x"))
        .await
        .unwrap();
    clock.advance(Duration::from_secs(601));
    // Without a reload, and without a call.
    soon(connection.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_expired_leaf_is_refused_on_its_open_connection() {
    let clock = Arc::new(Manual::new(Timestamp::now()));
    let broker = Broker::start()
        .with(|setup| setup.clock = clock.clone())
        .await;
    let web = broker.authority.ending_in(WEB, 600);
    let connection = broker.connect(&web).await.unwrap();
    let mut client = connection.client();
    client.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    clock.advance(Duration::from_secs(601));
    assert_eq!(
        refused_and_gone(client, connection).await,
        "IDENTITY_EXPIRED"
    );
    let records = broker.records();
    assert_eq!(records[1]["errorCode"], "IDENTITY_EXPIRED");
    assert_eq!(records.len(), 2);
}

#[tokio::test]
async fn a_connection_does_not_outlive_its_leaf() {
    let broker = Broker::start().await;
    let web = broker.authority.ending_in(WEB, 2);
    let connection = broker.connect(&web).await.unwrap();
    let mut client = connection.client();
    client.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    soon(connection.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_handshake_that_a_reload_overtakes_is_not_overlooked() {
    let broker = Broker::start().await;
    let connector = connector(&broker, &[&rustls::version::TLS13], |_| ());
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let name = "localhost".try_into().unwrap();
    let shaking = tokio::spawn(async move { connector.connect(name, near).await });
    // Carries the ClientHello over. An answer means that the server has begun with what it had.
    let mut stream = TcpStream::connect(broker.address()).await.unwrap();
    let mut bytes = vec![0; 16 << 10];
    let hello = far.read(&mut bytes).await.unwrap();
    stream.write_all(&bytes[..hello]).await.unwrap();
    let answer = soon(stream.read(&mut bytes)).await.unwrap();

    let successor = Authority::new("prod.example");
    broker.write("prod.example.pem", &successor.pem());
    broker.reload_tls().unwrap();
    far.write_all(&bytes[..answer]).await.unwrap();
    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut far, &mut stream).await });

    let mut raw = Raw::new(soon(shaking).await.unwrap().unwrap()).await;
    let call = raw::call(1, &encrypt("keys/orders", "x"));
    // Fails where the server is quicker.
    let _ = raw.write(&call).await;
    raw.until(GOAWAY).await.unwrap();
    raw.ended().await;
    assert_eq!(broker.kms_calls(), 0);
}

#[tokio::test]
async fn a_revocation_list_that_cannot_be_read_leaves_the_last_good_one_in_force() {
    let broker = Broker::start().with(|setup| vouch(setup, 3600)).await;
    let web = broker.authority.client(WEB);
    let revoked = broker.authority.client(WEB);
    let good = broker.authority.revoke(&[&revoked]);
    broker.write("prod.example.crl", &good);
    broker.reload_tls().unwrap();
    for bad in [
        "",
        "no list",
        &good[..good.len() / 2],
        &broker.authority.pem(),
        "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n",
    ] {
        broker.write("prod.example.crl", bad);
        let error = broker.reload_tls().unwrap_err();
        assert!(error.to_string().contains("prod.example.crl"), "{error}");
        assert!(admits(&broker, Some(&web)).await);
        assert!(!admits(&broker, Some(&revoked)).await);
    }
}

#[tokio::test]
async fn a_set_of_files_that_does_not_fit_leaves_the_old_one_in_force() {
    let broker = Broker::start().await;
    let web = broker.authority.client(WEB);
    let read = |name: &str| std::fs::read_to_string(broker.folder().join(name)).unwrap();
    let (certificate, bundle) = (read("server.pem"), read("prod.example.pem"));
    let other = broker.server_authority.server("localhost");
    let leaf = broker.authority.client(WEB).chain_pem();
    for (name, content) in [
        ("server.pem", &certificate[..certificate.len() / 2]),
        ("server.pem", ""),
        ("server.pem", &other.chain_pem()),
        ("server.key", "no key"),
        ("server.key", &other.key_pem()),
        ("prod.example.pem", &bundle[..bundle.len() / 2]),
        ("prod.example.pem", &leaf),
    ] {
        let good = read(name);
        broker.write(name, content);
        broker.reload_tls().unwrap_err();
        assert!(admits(&broker, Some(&web)).await, "{name}");
        broker.write(name, &good);
    }
    broker.reload_tls().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_bundles_and_lists_turn_over_under_load_without_a_failed_call() {
    let broker = Broker::start().with(|setup| vouch(setup, 3600)).await;
    let broker = Arc::new(broker);
    let rpcs = scaled(600, 10_000);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let broker = Arc::clone(&broker);
        clients.push(tokio::spawn(async move {
            for _ in 0..rpcs / CLIENTS / ON_ONE_CONNECTION {
                let mut web = broker.caller(WEB).await;
                for _ in 0..ON_ONE_CONNECTION {
                    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
                }
            }
        }));
    }
    let mut turns = 0;
    while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
        let own = broker.server_authority.server("localhost");
        let joined = Authority::new("prod.example");
        let revoked = broker.authority.client(WEB);
        broker.write("server.pem", &own.chain_pem());
        // Between two writes of one set.
        broker.reload_tls().unwrap_err();
        broker.write("server.key", &own.key_pem());
        let bundle = [broker.authority.pem(), joined.pem()].concat();
        broker.write("prod.example.pem", &bundle);
        let lists = [broker.authority.revoke(&[&revoked]), joined.revoke(&[])].concat();
        broker.write("prod.example.crl", &lists);
        broker.reload_tls().unwrap();
        turns += 1;

        let stream = broker.tls(Some(&joined.client(WEB))).await.unwrap();
        let (_, session) = stream.get_ref();
        let served = session.peer_certificates().unwrap();
        assert_eq!(
            served[0],
            own.chain()[0],
            "new handshakes see the new certificate"
        );
        assert!(!admits(&broker, Some(&revoked)).await);
    }
    for client in clients {
        client.await.unwrap();
    }
    assert!(turns > 1);
}

const CLIENTS: usize = 4;
const ON_ONE_CONNECTION: usize = 25;
