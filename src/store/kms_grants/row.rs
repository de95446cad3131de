//! A grant of AWS KMS as it stands in its row.

use jiff::Timestamp;

use crate::grants::Id;
use crate::grants::Operations;
use crate::identity::Principal;
use crate::kms::Arn;
use crate::kms::IamPrincipal;
use crate::name::KeyName;
use crate::store::Error;
use crate::store::engine::Row;

/// A grant of AWS KMS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsGrant {
    /// Its id here.
    pub id: Id,
    /// Its name in KMS: `keybroker-`, what stands for the store, `-` and the id.
    pub name: String,
    /// The key.
    pub key: KeyName,
    /// The KMS key.
    pub arn: Arn,
    /// Whom it is for.
    pub grantee: IamPrincipal,
    /// What it allows.
    pub operations: Operations,
    /// Who made it.
    pub creator: Principal,
    /// When.
    pub created: Timestamp,
    /// When it is to end.
    pub expires: Timestamp,
    /// KMS's id of it; none until KMS has answered.
    pub kms_id: Option<String>,
    /// Why it is to end before its time; none where nobody has said so.
    pub ending: Option<Ending>,
}

impl KmsGrant {
    /// Why it is to end, if it is at `now`.
    pub fn cause(&self, now: Timestamp) -> Ending {
        match self.ending {
            Some(ending) => ending,
            None if self.kms_id.is_some() && self.expires <= now => Ending::Expired,
            None => Ending::Orphaned,
        }
    }
}

/// Why a grant is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It has lived its time.
    Expired,
    /// Whoever made it has not heard of KMS in time whether there is one.
    Orphaned,
    /// Its key is there no more, or its key's tenant.
    Removed,
    /// An administrator of its key has said so.
    Revoked,
    /// Its key's tenant is suspended.
    Suspended,
}

impl Ending {
    const ALL: [Self; 5] = [
        Self::Expired,
        Self::Orphaned,
        Self::Removed,
        Self::Revoked,
        Self::Suspended,
    ];

    /// In the store and in audit records.
    pub fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Orphaned => "orphaned",
            Self::Removed => "removed",
            Self::Revoked => "revoked",
            Self::Suspended => "suspended",
        }
    }

    fn read(text: &str) -> Result<Option<Self>, Error> {
        let known = Self::ALL.into_iter().find(|one| one.label() == text);
        match text.is_empty() {
            true => Ok(None),
            false => known.map(Some).ok_or(DAMAGED),
        }
    }
}

/// What keeps a grant from ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// KMS is out of reach, or what has been done could not be put on record.
    Outage,
    /// KMS refuses to end it.
    Refused,
    /// KMS does not know it, and may only not know it yet.
    Unknown,
}

impl Obstacle {
    /// In the store.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

pub(super) fn read(row: &Row) -> Result<KmsGrant, Error> {
    let text = |column| row.text(column)?.ok_or(DAMAGED);
    let bits = u16::try_from(row.number(5)?).map_err(|_| DAMAGED)?;
    let kms_id = text(9)?;
    Ok(KmsGrant {
        id: text(0)?.parse().map_err(|_| DAMAGED)?,
        key: key(row, 1)?,
        arn: text(3)?.parse().map_err(|_| DAMAGED)?,
        grantee: text(4)?.parse().map_err(|_| DAMAGED)?,
        operations: Operations::from_bits(bits).ok_or(DAMAGED)?,
        creator: text(6)?.parse().map_err(|_| DAMAGED)?,
        created: time(row.number(7)?)?,
        expires: time(row.number(8)?)?,
        kms_id: (!kms_id.is_empty()).then_some(kms_id),
        ending: Ending::read(&text(10)?)?,
        name: text(11)?,
    })
}

/// The key in two columns from `first` on.
pub(super) fn key(row: &Row, first: usize) -> Result<KeyName, Error> {
    let text = |column| row.text(column)?.ok_or(DAMAGED);
    Ok(KeyName {
        tenant: text(first)?.parse().map_err(|_| DAMAGED)?,
        key: text(first + 1)?.parse().map_err(|_| DAMAGED)?,
    })
}

fn time(millis: u64) -> Result<Timestamp, Error> {
    let millis = i64::try_from(millis).map_err(|_| DAMAGED)?;
    Timestamp::from_millisecond(millis).map_err(|_| DAMAGED)
}

/// Selects grants, in the order of columns that [`read`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, tenant, key_id, arn, grantee, operations, creator, created, expires, ",
            "kms_id, ending, name FROM kms_grants WHERE ",
            $rest
        )
    };
}

pub(super) use select;

pub(super) const DAMAGED: Error = Error::Damaged("kms_grants");
