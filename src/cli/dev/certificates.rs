//! A CA that lives for one start, and the certificates that it vouches for.

use jiff::Timestamp;
use jiff::ToSpan as _;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::PKCS_ECDSA_P256_SHA256;
use rcgen::SanType;
use zeroize::Zeroizing;

use crate::identity::DEV_TRUST_DOMAIN;

/// A CA whose key is nowhere but in memory.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dates: (Date, Date),
}

/// A certificate and its private key, in PEM.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) private_key: Zeroizing<String>,
}

impl Authority {
    /// A new CA, good from the day before `now` for a month.
    pub(super) fn new(now: Timestamp) -> Result<Self, rcgen::Error> {
        let today = now.to_zoned(TimeZone::UTC).date();
        let dates = (
            today.saturating_sub(1.day()),
            today.saturating_add(30.days()),
        );
        let mut params = params("keybroker dev CA", dates);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, key()?)?;
        Ok(Self { issuer, dates })
    }

    /// The CA's own certificate, in PEM.
    pub(super) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate of a server on this machine.
    pub(super) fn server(&self) -> Result<Pair, rcgen::Error> {
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let names = CertificateParams::new(names)?.subject_alt_names;
        self.leaf("keybroker dev", names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A certificate of the workload `path` of the trust domain.
    pub(super) fn client(&self, path: &str) -> Result<Pair, rcgen::Error> {
        let id = format!("spiffe://{DEV_TRUST_DOMAIN}/{path}");
        let names = vec![SanType::URI(id.try_into()?)];
        self.leaf(path, names, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn leaf(
        &self,
        name: &str,
        alternatives: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Pair, rcgen::Error> {
        let mut params = params(name, self.dates);
        params.subject_alt_names = alternatives;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match usage {
            // The identity rules want both where there is any.
            ExtendedKeyUsagePurpose::ClientAuth => {
                vec![usage, ExtendedKeyUsagePurpose::ServerAuth]
            }
            other => vec![other],
        };
        params.use_authority_key_identifier_extension = true;
        let key = key()?;
        Ok(Pair {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            private_key: Zeroizing::new(key.serialize_pem()),
        })
    }
}

fn key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
}

fn params(name: &str, (from, until): (Date, Date)) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    // What `serve` knows them by.
    subject.push(DnType::OrganizationName, DEV_TRUST_DOMAIN);
    params.distinguished_name = subject;
    let [from, until] = [from, until].map(|date| {
        let month = u8::try_from(date.month()).expect("months are 1 to 12");
        let day = u8::try_from(date.day()).expect("days are 1 to 31");
        rcgen::date_time_ymd(i32::from(date.year()), month, day)
    });
    params.not_before = from;
    params.not_after = until;
    params
}
