//! How a command fails: with an exit code, and one sentence for a person.

use std::process::ExitCode;

use crate::cli::warn;
use crate::grpc::client;
use crate::grpc::client::Class;
use crate::kms;
use crate::kms::local;

/// The codes with which a command fails, after sysexits.h. The table for people is the module's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// `EX_CANTCREAT`.
    CannotCreate,
    /// `EX_CONFIG`.
    Config,
    /// `EX_DATAERR`.
    Data,
    /// `EX_NOPERM`.
    Denied,
    /// `EX_IOERR`.
    Io,
    /// `EX_NOINPUT`.
    NoInput,
    /// Docker knows 0 and 1 alone.
    NotServing,
    /// `EX_SOFTWARE`.
    Software,
    /// `EX_OSERR`.
    System,
    /// `EX_UNAVAILABLE`.
    Unavailable,
    /// `EX_USAGE`.
    Usage,
}

impl Exit {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::NotServing => 1,
            Self::Usage => 64,
            Self::Data => 65,
            Self::NoInput => 66,
            Self::Unavailable => 69,
            Self::Software => 70,
            Self::System => 71,
            Self::CannotCreate => 73,
            Self::Io => 74,
            Self::Denied => 77,
            Self::Config => 78,
        }
    }
}

/// Why a command failed: its exit code, and one sentence for a person.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) sentence: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, sentence: impl Into<String>) -> Self {
        Self {
            exit,
            sentence: sentence.into(),
        }
    }

    /// A configuration or certificate is not usable.
    pub(super) fn config(error: &dyn std::error::Error) -> Self {
        Self::new(Exit::Config, chain(error))
    }

    /// The operating system refused something.
    pub(super) fn system(sentence: String) -> Self {
        Self::new(Exit::System, sentence)
    }

    /// A keyring is not usable, or not changed.
    pub(super) fn keyring(error: &local::Error) -> Self {
        let exit = match error {
            local::Error::Held { .. } => {
                let sentence = format!(
                    "{error}: a server that uses it, most likely; stop it first, or let it rotate \
                     keys by itself with kms.local.rotation_period"
                );
                return Self::new(Exit::Unavailable, sentence);
            }
            local::Error::Exists { .. } | local::Error::Unwritable { .. } => Exit::CannotCreate,
            local::Error::KeyExists { .. }
            | local::Error::KeyState { .. }
            | local::Error::KeyUnknown { .. }
            | local::Error::ManyKeys
            | local::Error::ManyVersions { .. } => Exit::Data,
            local::Error::Random(_) => Exit::System,
            local::Error::Changed { .. }
            | local::Error::File { .. }
            | local::Error::Missing { .. }
            | local::Error::Purpose { .. }
            | local::Error::Unreadable { .. } => Exit::Config,
        };
        Self::new(exit, chain(error))
    }

    /// A broker did not do what it was asked for.
    pub(super) fn broker(error: &client::Error) -> Self {
        let exit = match error {
            client::Error::Certificate { .. } => Exit::Denied,
            client::Error::Damaged(_) => Exit::Io,
            client::Error::NoCredentials => {
                let sentence = "an https:// address needs --ca, --cert and --private-key \
                                (KEYBROKER_CA, KEYBROKER_CERT, KEYBROKER_PRIVATE_KEY)";
                return Self::new(Exit::Usage, sentence);
            }
            client::Error::Refused { class, .. } => match class {
                Class::Denied => Exit::Denied,
                Class::Fault => Exit::Software,
                Class::Invalid => Exit::Data,
                Class::Unavailable => Exit::Unavailable,
            },
            client::Error::ServerName(_) => Exit::Usage,
            client::Error::Tls(_) => Exit::Config,
            client::Error::Unreachable { .. } => Exit::Unavailable,
        };
        Self::new(exit, chain(error))
    }

    /// A KMS did not do what it was asked for.
    pub(super) fn kms(error: &kms::Error) -> Self {
        let exit = match error {
            kms::Error::AccessDenied(_) | kms::Error::Credentials(_) => Exit::Denied,
            kms::Error::IncorrectKey | kms::Error::InvalidCiphertext => Exit::Data,
            kms::Error::Invalid(_) => Exit::Software,
            kms::Error::NotFound(_) => Exit::Config,
            kms::Error::Crowded { .. }
            | kms::Error::Disabled
            | kms::Error::PendingDeletion(_)
            | kms::Error::Throttled
            | kms::Error::Unavailable(_) => Exit::Unavailable,
        };
        Self::new(exit, chain(error))
    }

    pub(super) fn exit(self) -> ExitCode {
        warn(format_args!("keybroker: {}", self.sentence));
        ExitCode::from(self.exit.code())
    }
}

/// The error and its sources, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}
