//! Why a configuration is not usable.

use std::io;
use std::path::PathBuf;

use crate::directory;
use crate::directory::Clash;
use crate::grpc::listener;
use crate::grpc::tls;
use crate::identity;
use crate::kms;
use crate::name::KeyName;
use crate::strict;
use crate::strict::OutOfBounds;

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting of AWS KMS outside its bounds.
    #[error("{path}: kms.aws.{source}: settings are refused, not clamped")]
    Aws {
        /// The configuration file.
        path: PathBuf,
        /// Which.
        source: kms::aws::Misconfigured,
    },
    /// Identity rules and tenants contradict each other.
    #[error("{path}: {source}: name that pair otherwise in [[identity.rule]]")]
    Clash {
        /// The configuration file.
        path: PathBuf,
        /// How.
        source: Clash,
    },
    /// Something that `keybroker dev` made, in production.
    #[error(
        "{path}: {what} is of `keybroker dev` and never serves in production: take one of your own"
    )]
    Dev {
        /// The file that is, or names it.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The tenants file.
    #[error(transparent)]
    Directory(#[from] directory::Error),
    /// A socket's settings.
    #[error("{path}: [listen]: {source}")]
    Listen {
        /// The configuration file.
        path: PathBuf,
        /// Which and why.
        source: listener::Error,
    },
    /// A section is missing.
    #[error("{path}: {needs} needs a section [{section}]: add it, or take {needs} out")]
    Missing {
        /// The configuration file.
        path: PathBuf,
        /// What needs it.
        needs: String,
        /// Which.
        section: &'static str,
    },
    /// A tenant's key names a local key that the keyring has not got.
    #[error(
        "the key {key} names local:{id}, which is not in the keyring: add it with `keybroker \
         keyring add {id}` while no server holds the keyring"
    )]
    NoLocalKey {
        /// The tenant's key.
        key: KeyName,
        /// The local key's id.
        id: String,
    },
    /// Nobody could connect.
    #[error("{path}: [listen] names neither tcp nor unix: name where to listen")]
    NoListener {
        /// The configuration file.
        path: PathBuf,
    },
    /// A limit outside its bounds.
    #[error("{path}: {source}: limits are refused, not clamped")]
    Limit {
        /// The configuration file.
        path: PathBuf,
        /// Which.
        source: OutOfBounds,
    },
    /// The identity rules.
    #[error("{path}: {source}")]
    Rules {
        /// The configuration file.
        path: PathBuf,
        /// Which and why.
        source: identity::rules::Error,
    },
    /// `keybroker dev` was given a key of AWS.
    #[error(
        "{path}: the key {key} is in AWS KMS: `keybroker dev` plays with keys of its own keyring \
         alone, serve it with `keybroker serve`"
    )]
    RealKey {
        /// The configuration file.
        path: PathBuf,
        /// Which key.
        key: KeyName,
    },
    /// The file is not TOML of this shape.
    #[error("{path}: {source}")]
    Syntax {
        /// The configuration file.
        path: PathBuf,
        /// Where and why.
        source: strict::Error,
    },
    /// Certificates and keys.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The configuration file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}
