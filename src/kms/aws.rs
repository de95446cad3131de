//! AWS KMS behind [`Kms`]: the one room that knows the AWS SDK.
//!
//! One request per call: retries and breakers stand above it, in [`Guarded`](crate::kms::Guarded).

mod codes;
mod config;
mod credentials;
mod failure;
mod grants;
mod signing;

pub use config::Config;
pub use config::Misconfigured;
pub use signing::SigningKey;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_config::Region;
use aws_config::SdkConfig;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_sdk_kms::Client;
use aws_sdk_kms::config::ConfigBag;
use aws_sdk_kms::config::Intercept;
use aws_sdk_kms::config::RuntimeComponents;
use aws_sdk_kms::config::StalledStreamProtectionConfig;
use aws_sdk_kms::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::error::BoxError;
use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::error::SdkError;
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DryRunModifierType;
use aws_sdk_kms::types::KeyMetadata;
use aws_sdk_kms::types::KeySpec;
use aws_sdk_kms::types::KeyState;
use aws_sdk_kms::types::KeyUsageType;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_types::body::SdkBody;
use http_body_util::Limited;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::crypto::Secret;
use crate::kms::AWS_PROVIDER;
use crate::kms::Arn;
use crate::kms::DATA_KEY;
use crate::kms::DataKey;
use crate::kms::Demand;
use crate::kms::Error;
use crate::kms::KeyRef;
use crate::kms::Kms;
use crate::kms::Unwrapped;
use crate::kms::Wrapped;
use crate::kms::aws::codes::sentence;
use crate::kms::aws::config::timeouts;
use crate::kms::aws::credentials::Loads;
use crate::kms::aws::credentials::Watched;
use crate::kms::aws::failure::failure;
use crate::message::EncryptedDataKey;
use crate::message::EncryptionContext;
use crate::metrics::KmsOperation;

/// AWS KMS in all Regions.
///
/// A Region's client, with its connections, is made at the first call for a key of that Region
/// and kept. The Region is the one that the key's ARN names.
pub struct Aws {
    config: Config,
    plan: aws_sdk_kms::config::Builder,
    loads: Loads,
    clients: Mutex<HashMap<String, Client>>,
}

impl Aws {
    /// AWS KMS with the credentials of the SDK's standard chain, which is asked at the first call:
    /// loading waits for no network.
    ///
    /// # Errors
    /// [`Misconfigured`] for a setting out of bounds.
    pub async fn load(config: Config) -> Result<Self, Misconfigured> {
        // Where credentials are exchanged; keys name their own Region. The standard chain would
        // end at the metadata service, and elsewhere than on EC2 hold up the start for seconds.
        let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new())
            .or_else(Region::new("us-east-1"));
        let sdk = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(region)
            .load()
            .await;
        Self::new(&sdk, config)
    }

    /// AWS KMS with the credentials of `sdk`. What `sdk` and the environment say of Regions,
    /// endpoints, retries and timeouts of KMS does not count.
    ///
    /// # Errors
    /// [`Misconfigured`] for a setting out of bounds.
    pub fn new(sdk: &SdkConfig, config: Config) -> Result<Self, Misconfigured> {
        config.check()?;
        let timeouts = timeouts(&config)?;
        // The SDK's defaults are pinned here because they change with its releases and with the
        // environment: by themselves, requests have no timeout and are sent three times.
        let mut plan = aws_sdk_kms::config::Builder::from(sdk)
            .behavior_version(BehaviorVersion::v2026_01_12())
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .interceptor(Bounded);
        let loads = Loads::default();
        if let Some(provider) = sdk.credentials_provider() {
            plan = plan.credentials_provider(Watched::new(provider, loads.clone()));
        }
        Ok(Self {
            config,
            plan,
            loads,
            clients: Mutex::default(),
        })
    }

    fn client(&self, arn: &Arn) -> Client {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients
            .entry(arn.region().to_owned())
            .or_insert_with(|| {
                let region = Region::new(arn.region().to_owned());
                let mut plan = self.plan.clone().region(region);
                let endpoint = self.config.endpoint_in(arn.region());
                plan.set_endpoint_url(endpoint.map(str::to_owned));
                Client::from_conf(plan.build())
            })
            .clone()
    }
}

#[async_trait]
impl Kms for Aws {
    async fn generate_data_key(
        &self,
        key: &KeyRef,
        context: &EncryptionContext,
        _: &Demand,
    ) -> Result<DataKey, Error> {
        let arn = arn(key)?;
        let mut answer = self
            .client(arn)
            .generate_data_key()
            .key_id(arn.as_str())
            .number_of_bytes(i32::try_from(DATA_KEY).expect("a few dozen bytes"))
            .set_encryption_context(pairs(context))
            .send()
            .await
            .map_err(|error| without_ciphertext(failure(error, context)))?;
        let plaintext = secret(answer.plaintext.take())?;
        let request_id = request_id(&answer);
        Ok(DataKey {
            plaintext,
            wrapped: wrapped(arn, answer.key_id(), answer.ciphertext_blob.as_ref())?,
            request_id,
        })
    }

    async fn encrypt(
        &self,
        key: &KeyRef,
        plaintext: &Secret<DATA_KEY>,
        context: &EncryptionContext,
        _: &Demand,
    ) -> Result<Wrapped, Error> {
        let arn = arn(key)?;
        let answer = self
            .client(arn)
            .encrypt()
            .key_id(arn.as_str())
            .plaintext(Blob::new(plaintext.expose().as_slice()))
            .set_encryption_context(pairs(context))
            .send()
            .await
            .map_err(|error| without_ciphertext(failure(error, context)))?;
        Ok(Wrapped {
            wrapped: wrapped(arn, answer.key_id(), answer.ciphertext_blob())?,
            request_id: request_id(&answer),
        })
    }

    async fn decrypt(
        &self,
        key: &KeyRef,
        wrapped: &EncryptedDataKey,
        context: &EncryptionContext,
        _: &Demand,
    ) -> Result<Unwrapped, Error> {
        let arn = arn(key)?;
        if !key.claims(wrapped) {
            return Err(Error::IncorrectKey);
        }
        if wrapped.ciphertext.is_empty() {
            // To KMS a malformed request, to us a malformed message.
            return Err(Error::InvalidCiphertext);
        }
        // With a key id always: without one, KMS opens the blob under whatever key of whatever
        // account it names, if our role may use that key.
        let mut answer = self
            .client(arn)
            .decrypt()
            .key_id(arn.as_str())
            .ciphertext_blob(Blob::new(wrapped.ciphertext.as_slice()))
            .set_encryption_context(pairs(context))
            .send()
            .await
            .map_err(|error| failure(error, context))?;
        let plaintext = secret(answer.plaintext.take());
        same_key(arn, answer.key_id())?;
        // Whoever may use the key can have KMS wrap any other bytes: the message that holds them is
        // at fault, not KMS.
        let plaintext = plaintext.map_err(|_| Error::InvalidCiphertext)?;
        Ok(Unwrapped {
            // AWS tells rotations of a key's material apart by an id without an order.
            current: true,
            plaintext,
            request_id: request_id(&answer),
        })
    }

    async fn describe_key(&self, key: &KeyRef) -> Result<(), Error> {
        let arn = arn(key)?;
        let answer = self
            .client(arn)
            .describe_key()
            .key_id(arn.as_str())
            .send()
            .await
            .map_err(|error| failure(error, &EncryptionContext::default()))?;
        let key = answer
            .key_metadata()
            .ok_or_else(|| Error::Invalid("no description of the key".to_owned()))?;
        same_key(arn, key.arn())?;
        usable(key)
    }

    async fn dry_run(
        &self,
        operation: KmsOperation,
        key: &KeyRef,
        context: &EncryptionContext,
        _: &Demand,
    ) -> Result<(), Error> {
        let arn = arn(key)?;
        let client = self.client(arn);
        match operation {
            KmsOperation::Decrypt => {
                let call = client
                    .decrypt()
                    .key_id(arn.as_str())
                    .set_encryption_context(pairs(context))
                    .dry_run(true)
                    .dry_run_modifiers(DryRunModifierType::IgnoreCiphertext);
                rehearsed(call.send().await, context)
            }
            KmsOperation::DescribeKey => self.describe_key(key).await,
            KmsOperation::Encrypt => {
                let call = client
                    .encrypt()
                    .key_id(arn.as_str())
                    .plaintext(Blob::new([0; DATA_KEY]))
                    .set_encryption_context(pairs(context))
                    .dry_run(true);
                rehearsed(call.send().await, context)
            }
            KmsOperation::GenerateDataKey => {
                let call = client
                    .generate_data_key()
                    .key_id(arn.as_str())
                    .number_of_bytes(i32::try_from(DATA_KEY).expect("a few dozen bytes"))
                    .set_encryption_context(pairs(context))
                    .dry_run(true);
                rehearsed(call.send().await, context)
            }
        }
    }

    /// All calls need our credentials, which are loaded by the first that finds them missing or
    /// about to expire.
    async fn ready_since(&self, _: &KeyRef) -> Option<Instant> {
        self.loads.ended().await
    }
}

fn arn(key: &KeyRef) -> Result<&Arn, Error> {
    key.arn()
        .ok_or_else(|| Error::NotFound("a local key in AWS KMS".to_owned()))
}

fn pairs(context: &EncryptionContext) -> Option<HashMap<String, String>> {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    (!context.is_empty()).then(|| context.pairs().map(owned).collect())
}

/// The data key in an answer, whose own buffer is wiped.
fn secret(plaintext: Option<Blob>) -> Result<Secret<DATA_KEY>, Error> {
    let bytes = Zeroizing::new(plaintext.map(Blob::into_inner).unwrap_or_default());
    Secret::copied(&bytes)
        .ok_or_else(|| Error::Invalid(format!("a data key of {} bytes", bytes.len())))
}

/// What `asked` wrapped, by an answer that must name that key.
fn wrapped(
    asked: &Arn,
    answered: Option<&str>,
    ciphertext: Option<&Blob>,
) -> Result<EncryptedDataKey, Error> {
    let named = same_key(asked, answered)?;
    let ciphertext = ciphertext.map(Blob::as_ref).unwrap_or_default();
    if ciphertext.is_empty() || ciphertext.len() > MAX_WRAPPED {
        let length = ciphertext.len();
        return Err(Error::Invalid(format!("a wrapped key of {length} bytes")));
    }
    Ok(EncryptedDataKey {
        provider_id: AWS_PROVIDER.to_owned(),
        provider_info: named.as_str().to_owned(),
        ciphertext: ciphertext.to_vec(),
    })
}

/// What the failure of a call means that sent no ciphertext to complain of.
fn without_ciphertext(error: Error) -> Error {
    match error {
        Error::InvalidCiphertext | Error::IncorrectKey => {
            Error::Invalid("an error about ciphertext, and none was sent".to_owned())
        }
        other => other,
    }
}

/// The ARN that KMS answered with, which must name the key that was asked.
fn same_key(asked: &Arn, answered: Option<&str>) -> Result<Arn, Error> {
    answered
        .and_then(|text| text.parse().ok())
        .filter(|arn| asked.is_replica_of(arn))
        .ok_or_else(|| Error::Invalid("an answer for another key".to_owned()))
}

/// What a dry run says: KMS has an error of its own for a call that would have been done.
fn rehearsed<T, E>(answer: Result<T, SdkError<E>>, context: &EncryptionContext) -> Result<(), Error>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match answer {
        Err(error) if error.code() == Some(WOULD_BE_DONE) => Ok(()),
        Err(error) => Err(failure(error, context)),
        // An emulator that knows no dry runs has done it.
        Ok(_) => Ok(()),
    }
}

fn request_id(answer: &impl RequestId) -> Option<String> {
    answer.request_id().map(sentence)
}

fn usable(key: &KeyMetadata) -> Result<(), Error> {
    let usage = key.key_usage() == Some(&KeyUsageType::EncryptDecrypt);
    if !usage || key.key_spec() != Some(&KeySpec::SymmetricDefault) {
        return Err(Error::NotFound("not a symmetric encryption key".to_owned()));
    }
    match key.key_state() {
        Some(KeyState::Enabled | KeyState::Updating) => Ok(()),
        Some(KeyState::Disabled) => Err(Error::Disabled),
        Some(other) => Err(Error::PendingDeletion(sentence(other.as_str()))),
        None => Err(Error::Invalid("a key without a state".to_owned())),
    }
}

/// Ends answers at [`MAX_ANSWER`], lists at [`MAX_LIST`]: the SDK itself reads as much as it is sent.
#[derive(Debug)]
struct Bounded;

impl Intercept for Bounded {
    fn name(&self) -> &'static str {
        "Bounded"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        call: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let longest = match call.load::<Metadata>().map(Metadata::name) {
            Some("ListGrants") => MAX_LIST,
            Some(_) | None => MAX_ANSWER,
        };
        let body = context.response_mut().body_mut();
        let whole = std::mem::replace(body, SdkBody::taken());
        *body = SdkBody::from_body_1_x(Limited::new(whole, longest));
        Ok(())
    }
}

/// Longest wrapped key that KMS makes, in bytes.
const MAX_WRAPPED: usize = 6144;
const WOULD_BE_DONE: &str = "DryRunOperationException";
/// Longest answer, in bytes: a wrapped key in base64 and a description of a key fit in many times.
const MAX_ANSWER: usize = 64 * 1024;
/// Longest page of a list, in bytes: 10 KiB for each of a hundred grants.
const MAX_LIST: usize = 1024 * 1024;
