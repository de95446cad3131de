//! Who gets through a handshake.

use std::sync::Arc;

use rcgen::BasicConstraints;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::KeyUsagePurpose;
use rcgen::SanType;
use rustls::ClientConfig;
use rustls::HandshakeKind;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::raw::Raw;
use super::raw::SETTINGS;
use crate::harness::Authority;
use crate::harness::Broker;
use crate::harness::Identity;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;

/// Whether the server speaks HTTP/2 with a client that shows `identity`.
pub async fn admits(broker: &Broker, identity: Option<&Identity>) -> bool {
    let Ok(stream) = broker.tls(identity).await else {
        return false;
    };
    // A client of TLS 1.3 is done before the server has looked at its certificate.
    let mut raw = Raw::new(stream).await;
    raw.until(SETTINGS).await.is_some()
}

#[tokio::test]
async fn certificates_that_prove_no_identity_are_refused_in_the_handshake() {
    let broker = Broker::start().await;
    let authority = &broker.authority;
    let elsewhere = Authority::new("prod.example");
    let web = |shape: &dyn Fn(&mut rcgen::CertificateParams)| {
        authority.issue(|leaf| {
            leaf.subject_alt_names = vec![SanType::URI(WEB.try_into().unwrap())];
            shape(leaf);
        })
    };
    let long = format!("spiffe://prod.example/{}", "x".repeat(2048));
    let refused = [
        ("expired", authority.expired(WEB)),
        ("not yet valid", authority.not_yet_valid(WEB)),
        ("another authority of that name", elsewhere.client(WEB)),
        ("self-signed", Identity::self_signed(WEB)),
        ("a common name alone", authority.common_name(WEB)),
        (
            "two URIs",
            authority.uris(&[WEB, "spiffe://prod.example/tenant/acme/sa/api"]),
        ),
        (
            "a URI of another scheme",
            authority.client("https://prod.example/tenant/acme/sa/web"),
        ),
        (
            "an address alone",
            authority.issue(|leaf| {
                leaf.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
            }),
        ),
        (
            "an upper-case trust domain",
            authority.client("spiffe://PROD.example/tenant/acme/sa/web"),
        ),
        (
            "an unknown trust domain",
            authority.client("spiffe://other.example/tenant/acme/sa/web"),
        ),
        (
            "the trust domain alone",
            authority.client("spiffe://prod.example"),
        ),
        ("the root path", authority.client("spiffe://prod.example/")),
        (
            "an empty segment",
            authority.client("spiffe://prod.example/tenant//web"),
        ),
        ("an id over 2048 bytes", authority.client(&long)),
        (
            "a certificate authority's",
            web(&|leaf| {
                leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
        ),
        (
            "one that signs",
            web(&|leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ),
        ("without key usage", web(&|leaf| leaf.key_usages.clear())),
        (
            "for servers alone",
            web(&|leaf| {
                leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
        (
            "a DNS name without a rule",
            authority.dns("web.prod.example"),
        ),
    ];
    for (what, identity) in &refused {
        assert!(!admits(&broker, Some(identity)).await, "{what}");
    }
    assert!(!admits(&broker, None).await, "no certificate");
    assert!(admits(&broker, Some(&authority.client(WEB))).await);
    assert_eq!(broker.kms_calls(), 0);
}

#[tokio::test]
async fn a_trust_domain_cannot_mint_the_ids_of_another() {
    let dev = Authority::new("dev.example");
    let broker = Broker::start().with(|setup| setup.trust(&dev)).await;
    let own = "spiffe://dev.example/tenant/acme/sa/web";
    assert!(admits(&broker, Some(&dev.client(own))).await);
    assert!(!admits(&broker, Some(&dev.client(WEB))).await);
    assert!(!admits(&broker, Some(&broker.authority.client(own))).await);
}

#[tokio::test]
async fn an_intermediate_that_the_client_brings_along_is_followed() {
    let broker = Broker::start().await;
    let between = broker.authority.intermediate();
    assert!(admits(&broker, Some(&between.client(WEB))).await);
}

#[tokio::test]
async fn a_dns_name_is_vouched_for_by_its_rules_own_bundle_alone() {
    let dns = Authority::new("dns");
    let broker = Broker::start()
        .with(|setup| {
            let bundle = setup.file("dns.pem", &dns.pem());
            setup.rules.push_str(&format!(
                "[[rule]]\nmatch = \"dns:web.example\"\ntenant = \"acme\"\nbundle = {bundle:?}\n"
            ));
        })
        .await;
    assert!(admits(&broker, Some(&dns.dns("web.example"))).await);
    assert!(!admits(&broker, Some(&dns.dns("api.example"))).await);
    assert!(!admits(&broker, Some(&broker.authority.dns("web.example"))).await);
    assert!(!admits(&broker, Some(&dns.client(WEB))).await);
}

#[tokio::test]
async fn a_sound_identity_without_a_rule_is_told_so() {
    let broker = Broker::start().await;
    let mut other = broker.caller("spiffe://prod.example/other").await;
    let outcome = other.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(outcome), "IDENTITY_UNMAPPED");
}

/// The TLS of a client that is `web`, shaped by a test.
pub fn connector(
    broker: &Broker,
    versions: &[&'static rustls::SupportedProtocolVersion],
    shape: impl FnOnce(&mut ClientConfig),
) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(broker.server_authority.pem().as_bytes());
    roots.add(root.unwrap()).unwrap();
    let web = broker.authority.client(WEB);
    let mut config = ClientConfig::builder_with_provider(keybroker::grpc::tls::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(web.chain(), web.key())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    shape(&mut config);
    TlsConnector::from(Arc::new(config))
}

async fn stream(broker: &Broker) -> TcpStream {
    TcpStream::connect(broker.address()).await.unwrap()
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let broker = Broker::start().await;
    let connector = connector(&broker, &[&rustls::version::TLS12], |_| ());
    let name = "localhost".try_into().unwrap();
    assert!(
        soon(connector.connect(name, stream(&broker).await))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_client_that_does_not_ask_for_h2_is_closed() {
    let broker = Broker::start().await;
    for protocols in [vec![], vec![b"http/1.1".to_vec()]] {
        let connector = connector(&broker, &[&rustls::version::TLS13], |config| {
            config.alpn_protocols = protocols;
        });
        let name = "localhost".try_into().unwrap();
        if let Ok(mut stream) = soon(connector.connect(name, stream(&broker).await)).await {
            let mut bytes = Vec::new();
            // Closed with an alert or without.
            let _ = soon(stream.read_to_end(&mut bytes)).await;
            assert!(bytes.is_empty(), "not a byte of HTTP");
        }
    }
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let broker = Broker::start().await;
    let connector = connector(&broker, &[&rustls::version::TLS13], |config| {
        config.enable_early_data = true;
    });
    for _ in 0..2 {
        let name = "localhost".try_into().unwrap();
        let secured = connector
            .connect(name, stream(&broker).await)
            .await
            .unwrap();
        let mut raw = Raw::new(secured).await;
        // Tickets would have come before this.
        raw.until(SETTINGS).await.unwrap();
        let secured: TlsStream<TcpStream> = raw.into_inner();
        let (_, session) = secured.get_ref();
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
        assert!(!session.is_early_data_accepted());
    }
}
