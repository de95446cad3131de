//! What can be done with a key.

use crate::grants::Operation;

/// A use of a key, named as in AWS KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Opens a message.
    Decrypt,
    /// Seals a message.
    Encrypt,
    /// Makes a key, hands it out and seals it.
    GenerateDataKey,
    /// Makes a key and seals it.
    GenerateDataKeyWithoutPlaintext,
    /// Opens a message in order to seal it anew.
    ReEncryptFrom,
    /// Seals what was opened so.
    ReEncryptTo,
}

impl Action {
    /// The name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Decrypt => "Decrypt",
            Self::Encrypt => "Encrypt",
            Self::GenerateDataKey => "GenerateDataKey",
            Self::GenerateDataKeyWithoutPlaintext => "GenerateDataKeyWithoutPlaintext",
            Self::ReEncryptFrom => "ReEncryptFrom",
            Self::ReEncryptTo => "ReEncryptTo",
        }
    }

    /// Whether it seals or opens.
    pub fn direction(self) -> Direction {
        match self {
            Self::Decrypt | Self::ReEncryptFrom => Direction::Open,
            Self::Encrypt
            | Self::GenerateDataKey
            | Self::GenerateDataKeyWithoutPlaintext
            | Self::ReEncryptTo => Direction::Seal,
        }
    }
}

impl From<Action> for Operation {
    fn from(action: Action) -> Self {
        match action {
            Action::Decrypt => Self::Decrypt,
            Action::Encrypt => Self::Encrypt,
            Action::GenerateDataKey => Self::GenerateDataKey,
            Action::GenerateDataKeyWithoutPlaintext => Self::GenerateDataKeyWithoutPlaintext,
            Action::ReEncryptFrom => Self::ReEncryptFrom,
            Action::ReEncryptTo => Self::ReEncryptTo,
        }
    }
}

/// Which way a key is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Ciphertext comes in.
    Open,
    /// Ciphertext goes out.
    Seal,
}
