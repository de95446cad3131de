use std::sync::LazyLock;

use proptest::prelude::*;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CustomExtension;
use rcgen::ExtendedKeyUsagePurpose as Purpose;
use rcgen::IsCa;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose as Usage;
use rcgen::SanType;
use rcgen::SerialNumber;

use super::*;

const ID: &str = "spiffe://prod.example/tenant/acme/sa/web";

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

/// A good client certificate with these names, changed by `change`.
fn certificate(names: Vec<SanType>, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.key_usages = vec![Usage::DigitalSignature];
    params.extended_key_usages = vec![Purpose::ClientAuth];
    params.serial_number = Some(SerialNumber::from_slice(&[0x9f, 0x00, 0x1a]));
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

fn named(names: Vec<SanType>) -> Result<Name, Refusal> {
    Leaf::parse(&certificate(names, |_| {})).map(|leaf| leaf.name().clone())
}

fn changed(change: impl FnOnce(&mut CertificateParams)) -> Result<Leaf, Refusal> {
    Leaf::parse(&certificate(vec![uri(ID)], change))
}

#[test]
fn an_svid_is_its_spiffe_id() {
    let leaf = changed(|params| {
        params.extended_key_usages = vec![Purpose::ClientAuth, Purpose::ServerAuth];
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2026, 1, 3);
    })
    .unwrap();
    assert_eq!(leaf.name(), &Name::Spiffe(ID.parse().unwrap()));
    assert_eq!(leaf.serial(), "9f001a");
    assert_eq!(leaf.not_before().to_string(), "2026-01-02T00:00:00Z");
    assert_eq!(leaf.not_after().to_string(), "2026-01-03T00:00:00Z");
}

#[test]
fn one_uri_or_else_one_dns_name_identifies() {
    let spiffe = Ok(Name::Spiffe(ID.parse().unwrap()));
    assert_eq!(named(vec![uri(ID), dns("a.example")]), spiffe);
    assert_eq!(
        named(vec![dns("a.example"), uri(ID), dns("b.example")]),
        spiffe
    );
    let name = Ok(Name::Dns("a.example".parse().unwrap()));
    assert_eq!(named(vec![dns("a.example")]), name);
    let address = SanType::IpAddress([127, 0, 0, 1].into());
    assert_eq!(named(vec![dns("a.example"), address.clone()]), name);

    assert_eq!(named(vec![]), Err(Refusal::NoIdentity));
    assert_eq!(named(vec![address]), Err(Refusal::NoIdentity));
    assert_eq!(
        named(vec![dns("a.example"), dns("b.example")]),
        Err(Refusal::SeveralDnsNames)
    );
    assert_eq!(named(vec![dns("*.example")]), Err(Refusal::MalformedDns));
}

#[test]
fn where_a_uri_stands_a_dns_name_does_not_help() {
    let malformed = Err(Refusal::MalformedSpiffeId);
    let other = "https://prod.example/a";
    assert_eq!(named(vec![uri(other), dns("a.example")]), malformed);
    for bad in ["spiffe://Prod.example/a", "spiffe://prod.example/"] {
        assert_eq!(named(vec![uri(bad)]), malformed, "{bad}");
    }
    let long = format!("spiffe://prod.example/{}", "a".repeat(2048));
    assert_eq!(named(vec![uri(&long)]), malformed);
    for second in [ID, other] {
        assert_eq!(
            named(vec![uri(ID), uri(second)]),
            Err(Refusal::SeveralUris),
            "{second}"
        );
    }
}

#[test]
fn the_common_name_identifies_nobody() {
    let der = certificate(vec![], |params| {
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, ID);
    });
    assert_eq!(Leaf::parse(&der), Err(Refusal::NoIdentity));
}

#[test]
fn a_signing_certificate_never_authenticates() {
    let authority = changed(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(authority, Err(Refusal::Authority));
    assert!(changed(|p| p.is_ca = IsCa::ExplicitNoCa).is_ok());
    for usages in [
        vec![],
        vec![Usage::KeyEncipherment],
        vec![Usage::DigitalSignature, Usage::KeyCertSign],
        vec![Usage::DigitalSignature, Usage::CrlSign],
    ] {
        let leaf = changed(|p| p.key_usages = usages.clone());
        assert_eq!(leaf, Err(Refusal::KeyUsage), "{usages:?}");
    }
}

#[test]
fn key_usage_must_be_critical() {
    // BIT STRING, 7 unused bits, digitalSignature.
    let usage = |critical| {
        changed(|params| {
            params.key_usages = vec![];
            let mut extension =
                CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
            extension.set_criticality(critical);
            params.custom_extensions = vec![extension];
        })
    };
    assert!(usage(true).is_ok());
    assert_eq!(usage(false), Err(Refusal::KeyUsage));
}

#[test]
fn an_extended_key_usage_must_hold_client_auth() {
    assert!(changed(|p| p.extended_key_usages = vec![]).is_ok());
    for purposes in [vec![Purpose::ServerAuth], vec![Purpose::Any]] {
        let leaf = changed(|p| p.extended_key_usages = purposes.clone());
        assert_eq!(leaf, Err(Refusal::ExtendedKeyUsage), "{purposes:?}");
    }
}

#[test]
fn extensions_that_cannot_be_read_in_full_are_refused() {
    const CONSTRAINTS: [u64; 4] = [2, 5, 29, 19];
    const POLICIES: [u64; 4] = [2, 5, 29, 32];
    for (oid, content) in [
        // cA false, followed by a second value that says true.
        (CONSTRAINTS, vec![0x30, 0, 0x30, 3, 1, 1, 0xff]),
        (CONSTRAINTS, vec![0x30, 3, 1, 1]),
        (POLICIES, vec![0xff]),
    ] {
        let leaf = changed(|params| {
            params.custom_extensions = vec![CustomExtension::from_oid_content(&oid, content)];
        });
        assert_eq!(leaf, Err(Refusal::MalformedExtension), "{oid:?}");
    }
    let twice = changed(|params| {
        let unknown = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        params.custom_extensions = vec![unknown.clone(), unknown];
    });
    assert_eq!(twice, Err(Refusal::MalformedExtension));
}

#[test]
fn an_unreadable_uri_does_not_leave_the_field_to_a_dns_name() {
    // A URI that is no UTF-8, and the DNS name "a".
    let names = vec![0x30, 6, 0x86, 1, 0xff, 0x82, 1, b'a'];
    let der = certificate(vec![], |params| {
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], names)];
    });
    assert_eq!(Leaf::parse(&der), Err(Refusal::MalformedExtension));
}

#[test]
fn bytes_after_the_certificate_are_refused() {
    let mut der = certificate(vec![uri(ID)], |_| {});
    der.push(0);
    assert_eq!(Leaf::parse(&der), Err(Refusal::MalformedCertificate));
}

static GOOD: LazyLock<Vec<u8>> =
    LazyLock::new(|| certificate(vec![uri(ID), dns("a.example")], |_| {}));

proptest! {
    #[test]
    fn parsing_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Leaf::parse(&bytes);
    }

    #[test]
    fn damaged_certificates_do_not_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in any::<prop::sample::Index>(),
    ) {
        let mut der = GOOD.clone();
        for (at, byte) in changes {
            der[at.index(GOOD.len())] = byte;
        }
        let _ = Leaf::parse(&der);
        der.truncate(length.index(GOOD.len()));
        prop_assert!(Leaf::parse(&der).is_err());
    }
}
