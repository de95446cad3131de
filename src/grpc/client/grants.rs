//! What the command line does with grants.

use jiff::Timestamp;
use tonic::Response;
use tonic::Status;
use tonic::transport::Channel;

use super::Client;
use super::Error;
use super::timed;
use crate::grants::Operations;
use crate::grpc::MAX_MESSAGE;
use crate::grpc::grants::number;
use crate::grpc::pb;
use crate::grpc::pb::GrantOperation;
use crate::grpc::pb::grant_service_client::GrantServiceClient;

/// What a grant is to be: all as the broker takes it.
#[derive(Clone)]
pub struct Wish {
    /// The key's name.
    pub key: String,
    /// Whom it is for.
    pub grantee: String,
    /// Who may retire it; empty for nobody.
    pub retiring: String,
    /// What it allows.
    pub operations: Operations,
    /// The pairs that must be the context.
    pub equals: Vec<(String, String)>,
    /// The pairs that must be in the context.
    pub subset: Vec<(String, String)>,
    /// Its name, without which to ask twice makes two.
    pub name: String,
    /// How many seconds it lives; 0 for the usual.
    pub lifetime: u32,
    /// For how many seconds it may be renewed; 0 for not at all.
    pub renewable: u32,
    /// How often it may be used; 0 for any number.
    pub max_uses: u32,
    /// Tokens of grants that may allow to make it.
    pub tokens: Vec<String>,
}

/// A grant, as its administrators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its id.
    pub id: String,
    /// The key's full name.
    pub key: String,
    /// Whom it is for.
    pub grantee: String,
    /// Who made it.
    pub issuer: String,
    /// What it allows.
    pub operations: Vec<String>,
    /// From when on it is over.
    pub expires: Option<Timestamp>,
    /// Its name; empty for none.
    pub name: String,
}

/// Whose grants to list.
pub enum Which {
    /// Those of the key of this name, of this grantee alone unless it is empty.
    OfKey {
        /// The key's name.
        key: String,
        /// The grantee.
        grantee: String,
    },
    /// Those that we may retire, of keys of this tenant.
    Retirable {
        /// `tenants/{tenant}`, or empty for our own.
        parent: String,
    },
}

impl Client {
    /// Makes a grant, or finds the one of its name; also its token.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn create_grant(&self, wish: Wish) -> Result<(Grant, String), Error> {
        let constraints = pb::GrantConstraints {
            encryption_context_equals: wish.equals.into_iter().collect(),
            encryption_context_subset: wish.subset.into_iter().collect(),
        };
        let request = pb::CreateGrantRequest {
            key: wish.key,
            grantee_principal: wish.grantee,
            retiring_principal: wish.retiring,
            operations: wish
                .operations
                .iter()
                .map(|one| number(one).into())
                .collect(),
            constraints: Some(constraints),
            name: wish.name,
            lifetime_seconds: wish.lifetime,
            renewable_for_seconds: wish.renewable,
            max_uses: wish.max_uses,
            grant_tokens: wish.tokens,
        };
        let made = self
            .about_grants(async |service| service.create_grant(timed(request.clone())).await)
            .await?;
        Ok((read(made.grant), made.grant_token))
    }

    /// All grants of a key, or those that we may retire, page after page.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn list_grants(&self, which: &Which) -> Result<Vec<Grant>, Error> {
        let mut grants = Vec::new();
        let mut token = String::new();
        loop {
            let (page, next) = match which {
                Which::OfKey { key, grantee } => {
                    let request = pb::ListGrantsRequest {
                        key: key.clone(),
                        grant_id: String::new(),
                        grantee_principal: grantee.clone(),
                        page_size: 0,
                        page_token: token,
                    };
                    let page = self.about_grants(async |service| {
                        service.list_grants(timed(request.clone())).await
                    });
                    let page = page.await?;
                    (page.grants, page.next_page_token)
                }
                Which::Retirable { parent } => {
                    let request = pb::ListRetirableGrantsRequest {
                        parent: parent.clone(),
                        retiring_principal: String::new(),
                        page_size: 0,
                        page_token: token,
                    };
                    let page = self.about_grants(async |service| {
                        service.list_retirable_grants(timed(request.clone())).await
                    });
                    let page = page.await?;
                    (page.grants, page.next_page_token)
                }
            };
            grants.extend(page.into_iter().map(|grant| read(Some(grant))));
            if next.is_empty() {
                return Ok(grants);
            }
            token = next;
        }
    }

    /// Gives a grant back: that of `token`, or without one that of `key` and `id`.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn retire_grant(&self, token: &str, key: &str, id: &str) -> Result<(), Error> {
        let request = pb::RetireGrantRequest {
            grant_token: token.to_owned(),
            key: key.to_owned(),
            grant_id: id.to_owned(),
        };
        self.about_grants(async |service| service.retire_grant(timed(request.clone())).await)
            .await
            .map(drop)
    }

    /// Takes a grant back.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn revoke_grant(&self, key: &str, id: &str) -> Result<(), Error> {
        let request = pb::RevokeGrantRequest {
            key: key.to_owned(),
            grant_id: id.to_owned(),
        };
        self.about_grants(async |service| service.revoke_grant(timed(request.clone())).await)
            .await
            .map(drop)
    }

    /// Has a grant live for `lifetime` seconds from now, 0 for as long as it was made for; also a
    /// token that knows of it.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn renew_grant(
        &self,
        key: &str,
        id: &str,
        lifetime: u32,
    ) -> Result<(Grant, String), Error> {
        let request = pb::RenewGrantRequest {
            key: key.to_owned(),
            grant_id: id.to_owned(),
            lifetime_seconds: lifetime,
        };
        let renewed = self
            .about_grants(async |service| service.renew_grant(timed(request.clone())).await)
            .await?;
        Ok((read(renewed.grant), renewed.grant_token))
    }

    pub(super) fn grants(&self) -> GrantServiceClient<Channel> {
        GrantServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) async fn about_grants<T>(
        &self,
        attempt: impl AsyncFn(&mut GrantServiceClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        let service = self.grants();
        self.again(async || attempt(&mut service.clone()).await)
            .await
    }
}

fn read(grant: Option<pb::Grant>) -> Grant {
    let grant = grant.unwrap_or_default();
    Grant {
        id: grant.id,
        key: grant.key,
        grantee: grant.grantee_principal,
        issuer: grant.issuing_principal,
        operations: grant.operations.into_iter().map(operation).collect(),
        expires: grant.expire_time.and_then(time),
        name: grant.name,
    }
}

/// An operation's name; of one that we don't know the number.
pub(super) fn operation(number: i32) -> String {
    match GrantOperation::try_from(number) {
        Ok(known) => label(known.as_str_name()),
        Err(_) => number.to_string(),
    }
}

pub(super) fn time(time: prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

/// `GRANT_OPERATION_RE_ENCRYPT_TO` as `ReEncryptTo`.
fn label(name: &str) -> String {
    let words = name.trim_start_matches("GRANT_OPERATION_").split('_');
    let word = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().into_iter();
        first
            .chain(letters.flat_map(char::to_lowercase))
            .collect::<String>()
    };
    words.map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grants::Operation;

    #[test]
    fn operations_are_read_as_they_are_named() {
        for operation in Operation::ALL {
            assert_eq!(label(number(operation).as_str_name()), operation.label());
        }
    }
}
