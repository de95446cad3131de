//! TLS 1.3 with client certificates, and nothing else: our certificate, and who may connect.
//!
//! No resumption and no early data: a resumed session would skip the check of the client's
//! certificate. Material is loaded whole or not at all; new handshakes see the newest.

pub(in crate::grpc) mod trust;

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::server::NoServerSessionStorage;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use x509_parser::parse_x509_certificate;
use x509_parser::x509::X509Name;

use crate::identity::DEV_TRUST_DOMAIN;
use crate::identity::Rules;

pub(in crate::grpc) use trust::Trust;

/// Our own certificate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A PEM file: our certificate, then the intermediates.
    pub certificate: PathBuf,
    /// A PEM file: the certificate's private key.
    pub private_key: PathBuf,
}

/// What handshakes are made with.
pub struct Material {
    pub(super) server: Arc<ServerConfig>,
    pub(super) trust: Arc<Trust>,
    not_after: Timestamp,
}

impl Material {
    /// Loads our certificate, and the bundles and revocation lists that `rules` name.
    ///
    /// # Errors
    /// [`Error`], naming the file.
    pub fn load(config: &Config, rules: &Rules, now: Timestamp) -> Result<Self, Error> {
        let chain = certificates(&config.certificate)?;
        let not_after = not_after(&config.certificate, &chain)?;
        if not_after < now {
            return Err(Error::Expired {
                path: config.certificate.clone(),
                not_after,
            });
        }
        let key = private_key(&config.private_key)?;
        let trust = Arc::new(Trust::load(rules)?);
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_client_cert_verifier(trust.clone())
            .with_single_cert(chain, key)
            .map_err(|error| Error::pair(config, error))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        Ok(Self {
            server: Arc::new(server),
            trust,
            not_after,
        })
    }

    /// The last moment at which our certificate is good.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

/// Why TLS material is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A trust anchor is no CA certificate.
    #[error("{path}: certificate {number} is no CA certificate")]
    Anchor {
        /// The bundle.
        path: PathBuf,
        /// Which, counted from 1.
        number: usize,
    },
    /// A certificate is none, or not one that serves.
    #[error("{path}: {why}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Our certificate has expired.
    #[error("{path}: the certificate expired on {not_after}: put a new one in its place")]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        not_after: Timestamp,
    },
    /// The certificate belongs to another key.
    #[error(
        "{certificate} is not the certificate of the key in {private_key}: the two files must be one pair"
    )]
    OtherKey {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
    },
    /// A PEM file has nothing of what is wanted.
    #[error(
        "{path}: no PEM section of the expected kind: certificates, a private key or revocation lists"
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// What rustls has against a certificate and its key.
    pub(in crate::grpc) fn pair(config: &Config, error: rustls::Error) -> Self {
        match error {
            rustls::Error::InconsistentKeys(_) => Self::OtherKey {
                certificate: config.certificate.clone(),
                private_key: config.private_key.clone(),
            },
            other => Self::Certificate {
                path: config.certificate.clone(),
                why: other.to_string(),
            },
        }
    }

    fn pem(path: &Path, error: &rustls_pki_types::pem::Error) -> Self {
        let path = path.to_owned();
        match error {
            rustls_pki_types::pem::Error::NoItemsFound => Self::Empty { path },
            rustls_pki_types::pem::Error::Io(error) => Self::Unreadable {
                path,
                source: error
                    .raw_os_error()
                    .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error),
            },
            other => Self::Certificate {
                path,
                why: format!("not PEM: {other}"),
            },
        }
    }
}

pub(in crate::grpc) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| Error::pem(path, &error))
}

/// Whether any certificate in the PEM file at `path` was made by `keybroker dev`.
///
/// # Errors
/// [`Error`] when there are no certificates to look at.
pub fn is_for_dev(path: &Path) -> Result<bool, Error> {
    let ours = |name: &X509Name<'_>| {
        name.iter_organization()
            .any(|one| one.as_str().is_ok_and(|text| text == DEV_TRUST_DOMAIN))
    };
    let chain = certificates(path)?;
    Ok(chain.iter().any(|der| {
        parse_x509_certificate(der).is_ok_and(|(_, one)| ours(one.issuer()) || ours(one.subject()))
    }))
}

/// The one provider, aws-lc-rs.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

pub(in crate::grpc) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| Error::pem(path, &error))?;
    if chain.is_empty() {
        return Err(Error::Empty {
            path: path.to_owned(),
        });
    }
    Ok(chain)
}

fn not_after(path: &Path, chain: &[CertificateDer<'_>]) -> Result<Timestamp, Error> {
    let malformed = |why: &str| Error::Certificate {
        path: path.to_owned(),
        why: why.into(),
    };
    let leaf = chain.first().ok_or_else(|| malformed("no certificate"))?;
    let (_, leaf) = parse_x509_certificate(leaf).map_err(|_| malformed("no X.509 certificate"))?;
    Timestamp::from_second(leaf.validity().not_after.timestamp())
        .map_err(|_| malformed("it ends beyond the calendar"))
}
