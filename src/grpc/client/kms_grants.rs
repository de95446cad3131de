//! What the command line does with grants of AWS KMS.

use jiff::Timestamp;

use super::Client;
use super::Error;
use super::grants::operation;
use super::grants::time;
use super::timed;
use crate::grants::Operations;
use crate::grpc::grants::number;
use crate::grpc::pb;

/// What a grant of KMS is to be: all as the broker takes it.
pub struct KmsWish {
    /// The key's name.
    pub key: String,
    /// Whom it is for, by ARN.
    pub grantee: String,
    /// What it allows.
    pub operations: Operations,
    /// The pairs that must be the context, beside the key's own.
    pub equals: Vec<(String, String)>,
    /// The pairs that must be in the context, beside the key's own.
    pub subset: Vec<(String, String)>,
    /// How many seconds it lives; 0 for the usual.
    pub lifetime: u32,
}

/// A grant of KMS, as its administrators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsGrant {
    /// Its id at the broker.
    pub id: String,
    /// The key's full name.
    pub key: String,
    /// The ARN of the KMS key.
    pub arn: String,
    /// Its id in KMS.
    pub kms_id: String,
    /// Whom it is for, by ARN.
    pub grantee: String,
    /// Who made it.
    pub issuer: String,
    /// What it allows.
    pub operations: Vec<String>,
    /// When the broker ends it.
    pub expires: Option<Timestamp>,
}

impl Client {
    /// Makes a grant of KMS; also KMS's token of it. Asks once: to ask again could make two.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn create_kms_grant(&self, wish: KmsWish) -> Result<(KmsGrant, String), Error> {
        let constraints = pb::GrantConstraints {
            encryption_context_equals: wish.equals.into_iter().collect(),
            encryption_context_subset: wish.subset.into_iter().collect(),
        };
        let operations = wish.operations.iter();
        let request = pb::CreateKmsGrantRequest {
            key: wish.key,
            grantee_principal: wish.grantee,
            operations: operations.map(|one| number(one).into()).collect(),
            constraints: Some(constraints),
            lifetime_seconds: wish.lifetime,
        };
        let made = self.grants().create_kms_grant(timed(request)).await;
        let made = made.map_err(|status| self.refusal(&status))?.into_inner();
        Ok((read(made.grant.unwrap_or_default()), made.grant_token))
    }

    /// All living grants of KMS of a key, page after page.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn list_kms_grants(&self, key: &str) -> Result<Vec<KmsGrant>, Error> {
        let mut grants = Vec::new();
        let mut token = String::new();
        loop {
            let request = pb::ListKmsGrantsRequest {
                key: key.to_owned(),
                page_size: 0,
                page_token: token,
            };
            let page = self.about_grants(async |service| {
                service.list_kms_grants(timed(request.clone())).await
            });
            let page = page.await?;
            grants.extend(page.grants.into_iter().map(read));
            if page.next_page_token.is_empty() {
                return Ok(grants);
            }
            token = page.next_page_token;
        }
    }

    /// Ends a grant of KMS.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn revoke_kms_grant(&self, key: &str, id: &str) -> Result<(), Error> {
        let request = pb::RevokeKmsGrantRequest {
            key: key.to_owned(),
            grant_id: id.to_owned(),
        };
        self.about_grants(async |service| service.revoke_kms_grant(timed(request.clone())).await)
            .await
            .map(drop)
    }
}

fn read(grant: pb::KmsGrant) -> KmsGrant {
    KmsGrant {
        id: grant.id,
        key: grant.key,
        arn: grant.kms_key_arn,
        kms_id: grant.kms_grant_id,
        grantee: grant.grantee_principal,
        issuer: grant.issuing_principal,
        operations: grant.operations.into_iter().map(operation).collect(),
        expires: grant.expire_time.and_then(time),
    }
}
