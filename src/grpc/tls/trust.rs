//! Which client certificates prove an identity: each against the bundle of its own trust domain
//! (SPIFFE) or of its own rule (DNS), never against a union of them, since then any domain could
//! mint the others' identities.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::CertificateError;
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::RootCertStore;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerified;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::UnixTime;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::parse_x509_certificate;
use x509_parser::parse_x509_crl;

use super::Error;
use super::certificates;
use super::provider;
use crate::error::Unauthenticated;
use crate::identity::Leaf;
use crate::identity::Rules;
use crate::identity::leaf::Name;

/// The verifiers of all trust domains and DNS names.
#[derive(Debug)]
pub(in crate::grpc) struct Trust {
    domains: HashMap<String, Arc<dyn ClientCertVerifier>>,
    dns: HashMap<String, Arc<dyn ClientCertVerifier>>,
    /// Verifies handshake signatures, which depends on no bundle.
    schemes: Vec<SignatureScheme>,
    /// When the revocation lists end.
    ends: Vec<Timestamp>,
}

impl Trust {
    /// Loads the bundles that `rules` name.
    ///
    /// # Errors
    /// [`Error`], naming the file.
    pub(super) fn load(rules: &Rules) -> Result<Self, Error> {
        let mut domains = HashMap::new();
        let mut ends = Vec::new();
        for bundle in rules.bundles() {
            let (verifier, until) = verifier(&bundle.file, bundle.crl.as_deref())?;
            ends.extend(until);
            domains.insert(bundle.trust_domain.to_string(), verifier);
        }
        let mut dns = HashMap::new();
        for (name, bundle) in rules.dns_bundles() {
            let (verifier, _) = verifier(bundle, None)?;
            dns.insert(name.to_string(), verifier);
        }
        let schemes = provider()
            .signature_verification_algorithms
            .supported_schemes();
        Ok(Self {
            domains,
            dns,
            schemes,
            ends,
        })
    }

    /// Whether a revocation list ended after `earlier` and until `now`: peers whom it vouched for
    /// are no longer known to be good.
    pub(in crate::grpc) fn ended(&self, earlier: Timestamp, now: Timestamp) -> bool {
        self.ends.iter().any(|end| *end > earlier && *end <= now)
    }

    /// The identity that `chain` proves at `now`.
    ///
    /// # Errors
    /// [`Unauthenticated`].
    pub(in crate::grpc) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Leaf, Unauthenticated> {
        self.check(chain, now).map_err(|error| reason(&error))
    }

    /// Reads the identity first, which chooses the verifier, then verifies.
    fn check(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Leaf, CertificateError> {
        let (end_entity, intermediates) =
            chain.split_first().ok_or(CertificateError::BadEncoding)?;
        let leaf = Leaf::parse(end_entity)
            .map_err(|_| CertificateError::ApplicationVerificationFailure)?;
        let verifier = match leaf.name() {
            Name::Spiffe(id) => self.domains.get(id.trust_domain()),
            Name::Dns(name) => self.dns.get(name.as_str()),
        };
        let verifier = verifier.ok_or(CertificateError::UnknownIssuer)?;
        match verifier.verify_client_cert(end_entity, intermediates, now) {
            Ok(_) => Ok(leaf),
            Err(rustls::Error::InvalidCertificate(error)) => Err(error),
            Err(_) => Err(CertificateError::BadEncoding),
        }
    }
}

impl ClientCertVerifier for Trust {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Naming our authorities would tell strangers whom we serve.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let mut chain = vec![end_entity.clone()];
        chain.extend_from_slice(intermediates);
        match self.check(&chain, now) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(error) => Err(error.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

/// The verifier of a bundle, and when its revocation lists end.
fn verifier(
    bundle: &Path,
    crl: Option<&Path>,
) -> Result<(Arc<dyn ClientCertVerifier>, Vec<Timestamp>), Error> {
    let mut roots = RootCertStore::empty();
    for (anchor, number) in certificates(bundle)?.into_iter().zip(1..) {
        if !is_authority(&anchor) {
            return Err(Error::Anchor {
                path: bundle.to_owned(),
                number,
            });
        }
        roots.add(anchor).map_err(|error| Error::Certificate {
            path: bundle.to_owned(),
            why: format!("certificate {number}: {error}"),
        })?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
    let mut ends = Vec::new();
    if let Some(path) = crl {
        let lists: Vec<_> = CertificateRevocationListDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| Error::pem(path, &error))?;
        if lists.is_empty() {
            return Err(Error::Empty {
                path: path.to_owned(),
            });
        }
        for list in &lists {
            ends.push(next_update(list).ok_or_else(|| Error::Certificate {
                path: path.to_owned(),
                why: "no revocation list that names its next update".into(),
            })?);
        }
        // A leaf whose issuer has no list, or only one past its nextUpdate, is refused: to run
        // with an old list would be to accept what it was replaced for.
        builder = builder
            .with_crls(lists)
            .only_check_end_entity_revocation()
            .enforce_revocation_expiration();
    }
    let verifier = builder.build().map_err(|error| Error::Certificate {
        path: crl.unwrap_or(bundle).to_owned(),
        why: error.to_string(),
    })?;
    Ok((verifier, ends))
}

fn next_update(list: &CertificateRevocationListDer<'_>) -> Option<Timestamp> {
    let (_, list) = parse_x509_crl(list).ok()?;
    Timestamp::from_second(list.next_update()?.timestamp()).ok()
}

/// Whether basic constraints make it a CA certificate.
fn is_authority(der: &[u8]) -> bool {
    parse_x509_certificate(der).is_ok_and(|(_, certificate)| certificate.is_ca())
}

/// What a failed verification means to a connection that was once accepted.
fn reason(error: &CertificateError) -> Unauthenticated {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            Unauthenticated::Expired
        }
        CertificateError::Revoked
        | CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => Unauthenticated::Revoked,
        CertificateError::ApplicationVerificationFailure => Unauthenticated::Missing,
        _ => Unauthenticated::TrustDomainUnknown,
    }
}

/// A moment as rustls takes it.
pub(in crate::grpc) fn moment(now: Timestamp) -> UnixTime {
    let since = std::time::Duration::try_from(now.duration_since(Timestamp::UNIX_EPOCH));
    UnixTime::since_unix_epoch(since.unwrap_or_default())
}
