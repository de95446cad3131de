//! Grants of AWS KMS itself, for principals of IAM who call KMS without us.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;

use crate::kms::Arn;
use crate::kms::Error;
use crate::message::EncryptionContext;

/// A service that has grants.
///
/// Names are the creator's own: with one a grant is found again whose creation nobody has heard
/// the end of.
#[async_trait]
pub trait Delegation: Send + Sync + 'static {
    /// Makes a grant of `key`, or finds the one of that name and these parameters.
    ///
    /// # Errors
    /// [`Undelegated`].
    async fn create_grant(
        &self,
        key: &Arn,
        delegation: &Delegated<'_>,
    ) -> Result<Made, Undelegated>;

    /// Ends the grant `id` of `key`, also one that is over.
    ///
    /// # Errors
    /// [`Error`].
    async fn revoke_grant(&self, key: &Arn, id: &str) -> Result<Revoked, Error>;

    /// The grants of `key` whose names begin with `prefix`.
    ///
    /// # Errors
    /// [`Error`].
    async fn grants_named(&self, key: &Arn, prefix: &str) -> Result<Vec<Named>, Error>;
}

/// What a grant is to be.
pub struct Delegated<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whom it is for.
    pub grantee: &'a IamPrincipal,
    /// What it allows, as KMS names it.
    pub operations: &'a [&'static str],
    /// How contexts compare with `context`.
    pub matching: Matching,
    /// The pairs that bind it.
    pub context: &'a EncryptionContext,
}

/// How a context compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matching {
    /// It is these pairs and no others.
    Equals,
    /// It has these pairs.
    Subset,
}

/// A grant that there is.
pub struct Made {
    /// Its id.
    pub id: String,
    /// Has KMS know it at once. Not to be logged.
    pub token: String,
    /// The service's name for this call, for the audit record.
    pub request_id: Option<String>,
}

/// A grant in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// A grant that there is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The service's name for this call, for the audit record.
    pub request_id: Option<String>,
    /// Whether it was gone already.
    pub already_gone: bool,
}

/// Why a grant was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undelegated {
    /// As many grants of the key live as may.
    #[error("the key has as many grants as KMS allows")]
    Full,
    /// The service, or whoever was to sign the call, has refused it.
    #[error(transparent)]
    Refused(Error),
    /// There is no such principal.
    #[error("KMS knows no such principal")]
    Principal,
    /// What the service has made of it is not known: there may be a grant all the same.
    #[error(transparent)]
    Unheard(Error),
}

/// A user, a role or a session of IAM, by its ARN. Nobody whose name stands for several: no account
/// as a whole, no service and no pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IamPrincipal(Arc<str>);

impl IamPrincipal {
    /// The longest ARN, in bytes: as long as KMS takes.
    pub const MAX: usize = 256;

    /// The ARN.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IamPrincipal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for IamPrincipal {
    type Err = MalformedIamPrincipal;

    fn from_str(text: &str) -> Result<Self, MalformedIamPrincipal> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, service, "", account, resource] = *parts else {
            return Err(MalformedIamPrincipal);
        };
        let known = match resource.split_once('/') {
            Some(("user" | "role", path)) => service == "iam" && path.split('/').all(is_name),
            Some(("assumed-role", path)) => {
                service == "sts"
                    && path
                        .split_once('/')
                        .is_some_and(|(role, session)| is_name(role) && is_name(session))
            }
            Some(("federated-user", name)) => service == "sts" && is_name(name),
            Some(_) | None => false,
        };
        let account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let partition = matches!(partition, "aws" | "aws-cn" | "aws-us-gov");
        match known && account && partition && text.len() <= Self::MAX {
            true => Ok(Self(text.into())),
            false => Err(MalformedIamPrincipal),
        }
    }
}

/// A text that is no [`IamPrincipal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the ARN of an IAM user, role or session")]
pub struct MalformedIamPrincipal;

fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b);
    !text.is_empty() && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn users_roles_and_sessions_are_principals() {
        for text in [
            "arn:aws:iam::111122223333:user/alice",
            "arn:aws:iam::111122223333:role/team/etl",
            "arn:aws-cn:sts::111122223333:assumed-role/etl/session@1",
            "arn:aws-us-gov:sts::111122223333:federated-user/bob",
        ] {
            assert_eq!(text.parse::<IamPrincipal>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn what_stands_for_several_is_no_principal() {
        for text in [
            "",
            "*",
            "111122223333",
            "arn:aws:iam::111122223333:root",
            "arn:aws:iam::111122223333:role/*",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role//etl",
            "arn:aws:iam::11112222333:role/etl",
            "arn:aws:iam:eu-west-1:111122223333:role/etl",
            "arn:aws:sts::111122223333:role/etl",
            "arn:aws:sts::111122223333:assumed-role/etl",
            "arn:aws:sts::111122223333:assumed-role/etl/a/b",
            "arn:evil:iam::111122223333:role/etl",
            "lambda.amazonaws.com",
        ] {
            assert!(text.parse::<IamPrincipal>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_itself_or_refused(text in "(arn:aws:(iam|sts)::[0-9]{11,13}:(role|user|assumed-role)/)?\\PC{0,300}") {
            if let Ok(principal) = text.parse::<IamPrincipal>() {
                prop_assert_eq!(principal.as_str(), text.as_str());
                prop_assert!(text.len() <= IamPrincipal::MAX);
                prop_assert!(!text.contains('*') && text.is_ascii());
            }
        }
    }
}
