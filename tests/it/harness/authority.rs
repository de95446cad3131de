//! Certificates made at run time, good ones and every kind of bad one.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertificateRevocationListParams;
use rcgen::CertifiedIssuer;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::KeyIdMethod;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::RevocationReason;
use rcgen::RevokedCertParams;
use rcgen::SanType;
use rcgen::SerialNumber;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::PrivatePkcs8KeyDer;

/// So many seconds from now. A macro, because the type is of a crate that is not ours to name.
macro_rules! moment {
    ($seconds:expr) => {
        rcgen::date_time_ymd(1970, 1, 1)
            + Duration::from_secs(
                (Timestamp::now().as_second() + $seconds)
                    .try_into()
                    .unwrap(),
            )
    };
}

/// A certificate authority of a trust domain.
pub struct Authority {
    domain: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Between the leaves and the trust anchor, nearest first: PEM and DER.
    between: Vec<(String, CertificateDer<'static>)>,
}

/// A certificate with its chain and its key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    pem: String,
    key: KeyPair,
    serial: SerialNumber,
}

impl Authority {
    /// A root of its own for `domain`.
    pub fn new(domain: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self {
            domain: domain.to_owned(),
            issuer: CertifiedIssuer::self_signed(authority(domain), key).unwrap(),
            between: Vec::new(),
        }
    }

    /// An authority whose certificate this one signs; its leaves bring that along in their chain.
    pub fn intermediate(&self) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority(&format!("{} intermediate", self.domain));
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        let own = (issuer.pem(), issuer.der().clone());
        let between = std::iter::once(own).chain(self.between.iter().cloned());
        Self {
            domain: self.domain.clone(),
            between: between.collect(),
            issuer,
        }
    }

    /// The trust domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A good client certificate with the one URI SAN `id`, for a day.
    pub fn client(&self, id: &str) -> Identity {
        self.issue(|leaf| leaf.subject_alt_names = vec![uri(id)])
    }

    /// A client certificate that ended an hour ago.
    pub fn expired(&self, id: &str) -> Identity {
        self.issue(|leaf| {
            leaf.subject_alt_names = vec![uri(id)];
            leaf.not_before = moment!(-7200);
            leaf.not_after = moment!(-3600);
        })
    }

    /// A client certificate that ends in so many seconds.
    pub fn ending_in(&self, id: &str, seconds: i64) -> Identity {
        self.issue(|leaf| {
            leaf.subject_alt_names = vec![uri(id)];
            leaf.not_after = moment!(seconds);
        })
    }

    /// A client certificate that begins in an hour.
    pub fn not_yet_valid(&self, id: &str) -> Identity {
        self.issue(|leaf| {
            leaf.subject_alt_names = vec![uri(id)];
            leaf.not_before = moment!(3600);
        })
    }

    /// A client certificate without any SAN.
    pub fn common_name(&self, name: &str) -> Identity {
        self.issue(|leaf| leaf.distinguished_name.push(DnType::CommonName, name))
    }

    /// A client certificate with several URI SANs.
    pub fn uris(&self, ids: &[&str]) -> Identity {
        self.issue(|leaf| leaf.subject_alt_names = ids.iter().map(|id| uri(id)).collect())
    }

    /// A client certificate with the one DNS SAN `name`.
    pub fn dns(&self, name: &str) -> Identity {
        self.issue(|leaf| leaf.subject_alt_names = vec![dns(name)])
    }

    /// A server certificate for `name`.
    pub fn server(&self, name: &str) -> Identity {
        self.issue(|leaf| leaf.subject_alt_names = vec![dns(name)])
    }

    /// Any certificate: `shape` changes a good leaf that has no SAN yet.
    pub fn issue(&self, shape: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut leaf = leaf();
        shape(&mut leaf);
        let serial = leaf.serial_number.clone().unwrap();
        let certificate = leaf.signed_by(&key, &self.issuer).unwrap();
        let mut chain = vec![certificate.der().clone()];
        let mut pem = certificate.pem();
        for (between_pem, der) in &self.between {
            chain.push(der.clone());
            pem.push_str(between_pem);
        }
        Identity {
            chain,
            pem,
            key,
            serial,
        }
    }

    /// A revocation list, PEM, good for an hour.
    pub fn revoke(&self, revoked: &[&Identity]) -> String {
        self.revocation_list(revoked, 3600)
    }

    /// A revocation list, PEM, whose next update is due in so many seconds.
    pub fn revocation_list(&self, revoked: &[&Identity], due: i64) -> String {
        let revoked = revoked.iter().map(|identity| RevokedCertParams {
            serial_number: identity.serial.clone(),
            revocation_time: moment!(-60),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: moment!(-7200),
            next_update: moment!(due),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

impl Identity {
    /// A client certificate that nobody but itself vouches for.
    pub fn self_signed(id: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut leaf = leaf();
        leaf.subject_alt_names = vec![uri(id)];
        let serial = leaf.serial_number.clone().unwrap();
        let certificate = leaf.self_signed(&key).unwrap();
        Self {
            chain: vec![certificate.der().clone()],
            pem: certificate.pem(),
            key,
            serial,
        }
    }

    /// The leaf and what is between it and the root.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    /// The same in PEM.
    pub fn chain_pem(&self) -> String {
        self.pem.clone()
    }

    /// The private key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    /// The same in PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The serial number in lower-case hexadecimal, as records have it.
    pub fn serial(&self) -> String {
        let bytes = self.serial.to_bytes();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A URI SAN.
pub fn uri(id: &str) -> SanType {
    SanType::URI(id.try_into().unwrap())
}

/// A DNS SAN.
pub fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = moment!(-7200);
    params.not_after = moment!(86_400);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = moment!(-7200);
    params.not_after = moment!(86_400);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    // Our own, so that a revocation list can name it.
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).unwrap();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}
