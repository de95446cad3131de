//! What a grant can allow, named as in AWS KMS.

use std::fmt;

/// An operation that a grant can allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Makes a grant that allows no more than this one, and no longer.
    CreateGrant,
    /// Opens a message.
    Decrypt,
    /// Sees what the key is, whatever the constraint.
    DescribeKey,
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
    /// Ends this grant, whatever the constraint.
    RetireGrant,
}

impl Operation {
    /// All operations: each that a key of ours can do. Those of AWS KMS that sign, make MACs or
    /// agree on secrets are not among them.
    pub const ALL: [Self; 9] = [
        Self::CreateGrant,
        Self::Decrypt,
        Self::DescribeKey,
        Self::Encrypt,
        Self::GenerateDataKey,
        Self::GenerateDataKeyWithoutPlaintext,
        Self::ReEncryptFrom,
        Self::ReEncryptTo,
        Self::RetireGrant,
    ];

    /// The name.
    pub fn label(self) -> &'static str {
        match self {
            Self::CreateGrant => "CreateGrant",
            Self::Decrypt => "Decrypt",
            Self::DescribeKey => "DescribeKey",
            Self::Encrypt => "Encrypt",
            Self::GenerateDataKey => "GenerateDataKey",
            Self::GenerateDataKeyWithoutPlaintext => "GenerateDataKeyWithoutPlaintext",
            Self::ReEncryptFrom => "ReEncryptFrom",
            Self::ReEncryptTo => "ReEncryptTo",
            Self::RetireGrant => "RetireGrant",
        }
    }

    /// The operation of this name, spelled exactly so.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.label() == name)
    }

    /// Whether it uses the key, hence has an encryption context that a constraint can be about.
    pub fn is_use(self) -> bool {
        match self {
            Self::CreateGrant | Self::DescribeKey | Self::RetireGrant => false,
            Self::Decrypt
            | Self::Encrypt
            | Self::GenerateDataKey
            | Self::GenerateDataKeyWithoutPlaintext
            | Self::ReEncryptFrom
            | Self::ReEncryptTo => true,
        }
    }

    /// Its bit where operations are kept as a number. Tokens and stores hold these: none ever
    /// changes.
    fn bit(self) -> u16 {
        match self {
            Self::CreateGrant => 1 << 0,
            Self::Decrypt => 1 << 1,
            Self::DescribeKey => 1 << 2,
            Self::Encrypt => 1 << 3,
            Self::GenerateDataKey => 1 << 4,
            Self::GenerateDataKeyWithoutPlaintext => 1 << 5,
            Self::ReEncryptFrom => 1 << 6,
            Self::ReEncryptTo => 1 << 7,
            Self::RetireGrant => 1 << 8,
        }
    }
}

/// Some operations, at least one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operations(u16);

impl Operations {
    /// Those in `list`, which may repeat itself; none for an empty one.
    pub fn new(list: impl IntoIterator<Item = Operation>) -> Option<Self> {
        let bits = list.into_iter().fold(0, |bits, one| bits | one.bit());
        (bits != 0).then_some(Self(bits))
    }

    /// Those of [`Operations::bits`]; none for a number that it never returns.
    pub fn from_bits(bits: u16) -> Option<Self> {
        let known = Operation::ALL.iter().fold(0, |bits, one| bits | one.bit());
        (bits != 0 && bits & !known == 0).then_some(Self(bits))
    }

    /// As a number, which never changes its meaning.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// Whether `operation` is among them.
    pub fn contain(self, operation: Operation) -> bool {
        self.0 & operation.bit() != 0
    }

    /// Whether all of them are among `others`.
    pub fn are_within(self, others: Self) -> bool {
        self.0 & !others.0 == 0
    }

    /// Each of them, in the order of [`Operation::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Operation> {
        let among = move |one: &Operation| self.contain(*one);
        Operation::ALL.into_iter().filter(among)
    }
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_first_release() {
        let bits = |one| Operations::new([one]).unwrap().bits();
        assert_eq!(Operation::ALL.map(bits), [1, 2, 4, 8, 16, 32, 64, 128, 256]);
        assert_eq!(Operations::from_bits(0), None);
        assert_eq!(Operations::from_bits(512), None);
        let both = Operations::new([Operation::Decrypt, Operation::Encrypt]);
        assert_eq!(Operations::from_bits(10), both);
    }

    #[test]
    fn operations_that_no_key_of_ours_can_do_have_no_name() {
        for one in Operation::ALL {
            assert_eq!(Operation::named(one.label()), Some(one));
        }
        for other in [
            "",
            "decrypt",
            "kms:Decrypt",
            "Sign",
            "GenerateMac",
            "DeriveSharedSecret",
        ] {
            assert_eq!(Operation::named(other), None, "{other}");
        }
    }
}
