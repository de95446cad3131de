//! Grants of AWS KMS.

use std::error::Error as StdError;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::error::SdkError;
use aws_sdk_kms::operation::RequestId as _;
use aws_sdk_kms::types::GrantConstraints;
use aws_sdk_kms::types::GrantOperation;
use tokio::time::sleep;

use crate::kms::Arn;
use crate::kms::Delegated;
use crate::kms::Delegation;
use crate::kms::Error;
use crate::kms::Made;
use crate::kms::Matching;
use crate::kms::Named;
use crate::kms::Revoked;
use crate::kms::Undelegated;
use crate::kms::aws::Aws;
use crate::kms::aws::codes::sentence;
use crate::kms::aws::failure::failure;
use crate::kms::aws::pairs;
use crate::kms::aws::request_id;
use crate::message::EncryptionContext;

#[async_trait]
impl Delegation for Aws {
    async fn create_grant(
        &self,
        key: &Arn,
        delegation: &Delegated<'_>,
    ) -> Result<Made, Undelegated> {
        let bound = pairs(delegation.context);
        let constraints = match delegation.matching {
            Matching::Equals => GrantConstraints::builder().set_encryption_context_equals(bound),
            Matching::Subset => GrantConstraints::builder().set_encryption_context_subset(bound),
        };
        let operations = delegation.operations.iter();
        let answer = self
            .client(key)
            .create_grant()
            .key_id(key.as_str())
            .grantee_principal(delegation.grantee.as_str())
            .set_operations(Some(
                operations.map(|one| GrantOperation::from(*one)).collect(),
            ))
            .constraints(constraints.build())
            .name(delegation.name)
            .send()
            .await
            .map_err(|error| match error.code() {
                Some("InvalidArnException") => Undelegated::Principal,
                Some("LimitExceededException") => Undelegated::Full,
                Some(_) | None => undelegated(error, delegation.context),
            })?;
        let request_id = request_id(&answer);
        let id = answer.grant_id.filter(|id| is_sound(id, MAX_ID));
        let token = answer
            .grant_token
            .filter(|token| is_sound(token, MAX_TOKEN));
        match (id, token) {
            (Some(id), Some(token)) => Ok(Made {
                id,
                token,
                request_id,
            }),
            (_, _) => Err(Undelegated::Unheard(Error::Invalid(
                "a grant without an id or a token".to_owned(),
            ))),
        }
    }

    async fn revoke_grant(&self, key: &Arn, id: &str) -> Result<Revoked, Error> {
        let call = self.client(key).revoke_grant().key_id(key.as_str());
        match call.grant_id(id).send().await {
            Ok(answer) => Ok(Revoked {
                request_id: request_id(&answer),
                already_gone: false,
            }),
            // Of the grant or of its key: over it is.
            Err(error) if error.code() == Some("NotFoundException") => Ok(Revoked {
                request_id: error.request_id().map(sentence),
                already_gone: true,
            }),
            Err(error) => Err(failure(error, &EncryptionContext::default())),
        }
    }

    async fn grants_named(&self, key: &Arn, prefix: &str) -> Result<Vec<Named>, Error> {
        let client = self.client(key);
        let (mut found, mut marker) = (Vec::new(), None);
        for page in 0..MAX_PAGES {
            if page > 0 {
                sleep(PACE).await;
            }
            let call = client.list_grants().key_id(key.as_str()).limit(PAGE);
            let page = call.set_marker(marker).send().await;
            let page = page.map_err(|error| failure(error, &EncryptionContext::default()))?;
            found.extend(page.grants().iter().filter_map(|one| {
                let id = one.grant_id().filter(|id| is_sound(id, MAX_ID))?;
                let name = one.name().filter(|name| name.starts_with(prefix))?;
                is_sound(name, MAX_NAME).then(|| Named {
                    id: id.to_owned(),
                    name: name.to_owned(),
                })
            }));
            marker = page.next_marker;
            if !page.truncated || marker.is_none() {
                return Ok(found);
            }
        }
        Err(Error::Invalid("a list of grants without an end".to_owned()))
    }
}

/// Refused is what KMS has told the reason of, and that reason is no failure of its own.
fn undelegated<E>(error: SdkError<E>, context: &EncryptionContext) -> Undelegated
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    let status = error.raw_response().map(|raw| raw.status());
    let told = error.code().is_some() && status.is_some_and(|status| status.is_client_error());
    match failure(error, context) {
        failed @ Error::Unavailable(_) => Undelegated::Unheard(failed),
        refused if told => Undelegated::Refused(refused),
        // Nothing was sent.
        unsigned @ Error::Credentials(_) => Undelegated::Refused(unsigned),
        unheard => Undelegated::Unheard(unheard),
    }
}

fn is_sound(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Longest id of a grant.
const MAX_ID: usize = 128;
/// Longest name.
const MAX_NAME: usize = 256;
/// Longest token.
const MAX_TOKEN: usize = 8192;
/// Grants on a page: the most that KMS gives.
const PAGE: i32 = 100;
/// As many pages as a key can have: 50,000 grants.
const MAX_PAGES: usize = 501;
/// Between two pages: 50 a second at most, of the 100 that KMS gives.
const PACE: Duration = Duration::from_millis(20);
