//! What a client's leaf certificate says about its holder. Reads one certificate; whether its
//! chain and its time are good is for the TLS room to prove.

use jiff::Timestamp;
use x509_parser::asn1_rs::Any;
use x509_parser::asn1_rs::FromDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::extensions::ParsedExtension;
use x509_parser::extensions::X509Extension;

use super::spiffe::DnsName;
use super::spiffe::SpiffeId;

/// A leaf certificate that can authenticate a client, reduced to what we use of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    name: Name,
    serial: String,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// The one name by which a certificate identifies its holder. It also says which bundle must
/// vouch for the certificate: the trust domain's, or the DNS rule's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// The only DNS SAN of a certificate without any URI SAN.
    Dns(DnsName),
    /// The only URI SAN.
    Spiffe(SpiffeId),
}

impl Leaf {
    /// Reads a DER certificate.
    ///
    /// Exactly one URI SAN, a SPIFFE id; or no URI SAN at all and exactly one DNS SAN. Never the
    /// common name, never an address. Key usage is present, critical, has digitalSignature and
    /// neither keyCertSign nor cRLSign. An extended key usage, if present, has clientAuth;
    /// serverAuth, which X.509-SVIDs also have, is not asked for, because client certificates
    /// of ordinary issuers (cert-manager) have clientAuth alone and we never meet a peer as a
    /// server.
    ///
    /// # Errors
    /// [`Refusal`], for everything else.
    pub fn parse(der: &[u8]) -> Result<Self, Refusal> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| Refusal::MalformedCertificate)?;
        if !rest.is_empty() {
            return Err(Refusal::MalformedCertificate);
        }
        check_extensions(&certificate)?;
        check_usage(&certificate)?;
        Ok(Self {
            name: name(&certificate)?,
            serial: hex(certificate.raw_serial()),
            not_before: timestamp(certificate.validity().not_before.timestamp())?,
            not_after: timestamp(certificate.validity().not_after.timestamp())?,
        })
    }

    /// Who the certificate says its holder is.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The serial number in lower-case hexadecimal, without a leading zero byte.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The first moment at which the certificate is good.
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// The last moment at which the certificate is good.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// The name and the serial number, by move.
    pub(super) fn into_parts(self) -> (Name, String) {
        (self.name, self.serial)
    }
}

/// Why a certificate authenticates nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// It is a certificate authority's.
    #[error("the certificate is a certificate authority's")]
    Authority,
    /// Its extended key usage lacks clientAuth.
    #[error("the certificate's extended key usage lacks clientAuth")]
    ExtendedKeyUsage,
    /// Key usage is absent, not critical, lacks digitalSignature or allows signing certificates.
    #[error("the certificate's key usage does not fit a client")]
    KeyUsage,
    /// The bytes are no DER certificate.
    #[error("not a DER certificate")]
    MalformedCertificate,
    /// The only DNS SAN has another spelling than ours.
    #[error("the certificate's DNS name is malformed")]
    MalformedDns,
    /// An extension is damaged or stands there twice.
    #[error("an extension of the certificate is malformed or repeated")]
    MalformedExtension,
    /// The only URI SAN is no SPIFFE id.
    #[error("the certificate's URI is no SPIFFE id")]
    MalformedSpiffeId,
    /// It has neither a URI SAN nor a DNS SAN.
    #[error("the certificate names nobody in its subject alternative names")]
    NoIdentity,
    /// It has no URI SAN and several DNS SANs.
    #[error("the certificate has several DNS names")]
    SeveralDnsNames,
    /// It has several URI SANs.
    #[error("the certificate has several URIs")]
    SeveralUris,
}

impl Refusal {
    /// A stable name, for metrics and audit records.
    pub fn label(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::ExtendedKeyUsage => "extended_key_usage",
            Self::KeyUsage => "key_usage",
            Self::MalformedCertificate => "malformed_certificate",
            Self::MalformedDns => "malformed_dns",
            Self::MalformedExtension => "malformed_extension",
            Self::MalformedSpiffeId => "malformed_spiffe_id",
            Self::NoIdentity => "no_identity",
            Self::SeveralDnsNames => "several_dns_names",
            Self::SeveralUris => "several_uris",
        }
    }
}

/// Refuses what the library could not read or would read in part: x509-parser passes over bytes
/// that follow an extension's value.
fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    certificate
        .extensions_map()
        .map_err(|_| Refusal::MalformedExtension)?;
    let whole = |extension: &X509Extension<'_>| match extension.parsed_extension() {
        ParsedExtension::ParseError { .. } => false,
        ParsedExtension::BasicConstraints(_)
        | ParsedExtension::ExtendedKeyUsage(_)
        | ParsedExtension::KeyUsage(_)
        | ParsedExtension::SubjectAlternativeName(_) => {
            Any::from_der(extension.value).is_ok_and(|(rest, _)| rest.is_empty())
        }
        _ => true,
    };
    match certificate.iter_extensions().all(whole) {
        true => Ok(()),
        false => Err(Refusal::MalformedExtension),
    }
}

fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let malformed = |_| Refusal::MalformedExtension;
    let constraints = certificate.basic_constraints().map_err(malformed)?;
    if constraints.is_some_and(|extension| extension.value.ca) {
        return Err(Refusal::Authority);
    }
    let usage = certificate.key_usage().map_err(malformed)?;
    let fits = usage.is_some_and(|extension| {
        extension.critical
            && extension.value.digital_signature()
            && !extension.value.key_cert_sign()
            && !extension.value.crl_sign()
    });
    if !fits {
        return Err(Refusal::KeyUsage);
    }
    let purposes = certificate.extended_key_usage().map_err(malformed)?;
    if purposes.is_some_and(|extension| !extension.value.client_auth) {
        return Err(Refusal::ExtendedKeyUsage);
    }
    Ok(())
}

fn name(certificate: &X509Certificate<'_>) -> Result<Name, Refusal> {
    let alternatives = certificate
        .subject_alternative_name()
        .map_err(|_| Refusal::MalformedExtension)?
        .ok_or(Refusal::NoIdentity)?;
    let mut uris = Vec::new();
    let mut names = Vec::new();
    for general in &alternatives.value.general_names {
        match general {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::DNSName(name) => names.push(*name),
            GeneralName::Invalid(..) => return Err(Refusal::MalformedExtension),
            _ => {}
        }
    }
    match (uris.as_slice(), names.as_slice()) {
        ([uri], _) => match uri.parse() {
            Ok(id) => Ok(Name::Spiffe(id)),
            Err(_) => Err(Refusal::MalformedSpiffeId),
        },
        ([], [name]) => match name.parse() {
            Ok(name) => Ok(Name::Dns(name)),
            Err(_) => Err(Refusal::MalformedDns),
        },
        ([], []) => Err(Refusal::NoIdentity),
        ([], _) => Err(Refusal::SeveralDnsNames),
        _ => Err(Refusal::SeveralUris),
    }
}

fn timestamp(seconds: i64) -> Result<Timestamp, Refusal> {
    Timestamp::from_second(seconds).map_err(|_| Refusal::MalformedCertificate)
}

/// DER puts a zero byte before a serial number whose first bit is set; nobody else shows it.
fn hex(serial: &[u8]) -> String {
    let digits = match serial {
        [0, digits @ ..] if !digits.is_empty() => digits,
        digits => digits,
    };
    digits.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
