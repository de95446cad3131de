//! AWS KMS behind [`Kms`]: the one file that knows the AWS SDK.
//!
//! One request per call. Retries, budgets and breakers stand above it, where they can see tenants.

mod codes;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::error::Error as StdError;
use std::iter;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_config::Region;
use aws_config::SdkConfig;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::Client;
use aws_sdk_kms::config::ConfigBag;
use aws_sdk_kms::config::Intercept;
use aws_sdk_kms::config::RuntimeComponents;
use aws_sdk_kms::config::StalledStreamProtectionConfig;
use aws_sdk_kms::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::error::BoxError;
use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::error::SdkError;
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::KeyMetadata;
use aws_sdk_kms::types::KeySpec;
use aws_sdk_kms::types::KeyState;
use aws_sdk_kms::types::KeyUsageType;
use aws_smithy_types::body::SdkBody;
use http_body_util::Limited;
use jiff::SignedDuration;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::crypto::Secret;
use crate::kms::AWS_PROVIDER;
use crate::kms::Arn;
use crate::kms::DATA_KEY;
use crate::kms::DataKey;
use crate::kms::Error;
use crate::kms::KeyRef;
use crate::kms::Kms;
use crate::kms::Unwrapped;
use crate::kms::aws::codes::meaning;
use crate::kms::aws::codes::sentence;
use crate::message::EncryptedDataKey;
use crate::message::EncryptionContext;
use crate::message::context::is_reserved;

/// How AWS KMS is reached. Credentials are no part of it: they come from the SDK's standard chain
/// (environment, profile, web identity, container, instance).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A URL that takes the place of AWS's own endpoints, for the keys of every Region: a VPC
    /// endpoint or an emulator. `https://…`, or `http://…` on this machine's loopback.
    pub endpoint: Option<String>,
    /// Longest wait for KMS to begin its answer, connection included: above 0, at most 10 s.
    pub attempt_timeout: SignedDuration,
    /// Longest time for a whole call, the loading of our own credentials included: at least
    /// `attempt_timeout`, at most 30 s.
    pub operation_timeout: SignedDuration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            // KMS answers in 50 to 300 ms, seldom in more.
            attempt_timeout: SignedDuration::from_millis(750),
            // A token exchange with STS or a slow metadata service fits in, once an hour.
            operation_timeout: SignedDuration::from_secs(5),
        }
    }
}

impl Config {
    /// Checks every setting against its bounds.
    ///
    /// # Errors
    /// [`Misconfigured`] for the first outside.
    pub fn check(&self) -> Result<(), Misconfigured> {
        timeouts(self)?;
        match &self.endpoint {
            Some(endpoint) if !is_confidential(endpoint) => Err(Misconfigured {
                field: "endpoint",
                why: "https://<host>, or http://<host> on the loopback of this machine",
            }),
            Some(_) | None => Ok(()),
        }
    }
}

/// A setting of [`Config`] is outside its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Misconfigured {
    /// The setting's name.
    pub field: &'static str,
    /// What it must be.
    pub why: &'static str,
}

/// AWS KMS in all Regions.
///
/// A Region's client, with its connections, is made at the first call for a key of that Region
/// and kept. The Region is the one that the key's ARN names.
pub struct Aws {
    plan: aws_sdk_kms::config::Builder,
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
        plan.set_endpoint_url(config.endpoint);
        Ok(Self {
            plan,
            clients: Mutex::default(),
        })
    }

    fn client(&self, arn: &Arn) -> Client {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients
            .entry(arn.region().to_owned())
            .or_insert_with(|| {
                let region = Region::new(arn.region().to_owned());
                Client::from_conf(self.plan.clone().region(region).build())
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
            .map_err(|error| match failure(error, context) {
                // There was no ciphertext to complain of.
                Error::InvalidCiphertext | Error::IncorrectKey => {
                    Error::Invalid("an error about ciphertext, and none was sent".to_owned())
                }
                other => other,
            })?;
        let plaintext = secret(answer.plaintext.take())?;
        let request_id = request_id(&answer);
        let named = same_key(arn, answer.key_id())?;
        let ciphertext = answer
            .ciphertext_blob
            .map(Blob::into_inner)
            .unwrap_or_default();
        if ciphertext.is_empty() || ciphertext.len() > MAX_WRAPPED {
            let length = ciphertext.len();
            return Err(Error::Invalid(format!("a wrapped key of {length} bytes")));
        }
        Ok(DataKey {
            plaintext,
            wrapped: EncryptedDataKey {
                provider_id: AWS_PROVIDER.to_owned(),
                provider_info: named.as_str().to_owned(),
                ciphertext,
            },
            request_id,
        })
    }

    async fn decrypt(
        &self,
        key: &KeyRef,
        wrapped: &EncryptedDataKey,
        context: &EncryptionContext,
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
}

fn timeouts(config: &Config) -> Result<TimeoutConfig, Misconfigured> {
    let within = |field, span: SignedDuration, ceiling: Duration, why| {
        Duration::try_from(span)
            .ok()
            .filter(|span| !span.is_zero() && *span <= ceiling)
            .ok_or(Misconfigured { field, why })
    };
    let attempt = within(
        "attempt_timeout",
        config.attempt_timeout,
        MAX_ATTEMPT,
        "above 0, at most 10s",
    )?;
    let operation = within(
        "operation_timeout",
        config.operation_timeout,
        MAX_OPERATION,
        "above 0, at most 30s",
    )?;
    if operation < attempt {
        return Err(Misconfigured {
            field: "operation_timeout",
            why: "at least attempt_timeout",
        });
    }
    // The SDK's own attempt timeout would also cut short the loading of credentials, and a load
    // that is cut short begins anew at the next call: a token service that takes longer than one
    // attempt would never get through. The read timeout begins after it.
    Ok(TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .read_timeout(attempt)
        .operation_attempt_timeout(operation)
        .operation_timeout(operation)
        .build())
}

/// Whether plaintext keys may travel to `endpoint`: by TLS, or without leaving this machine.
fn is_confidential(endpoint: &str) -> bool {
    let Some(rest) = endpoint.strip_prefix("http://") else {
        return endpoint
            .strip_prefix("https://")
            .is_some_and(|rest| !rest.is_empty());
    };
    let host = rest.split('/').next().unwrap_or_default();
    let name = match host.split_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let address = host
        .parse::<SocketAddr>()
        .map(|address| address.ip())
        .or_else(|_| name.parse::<IpAddr>());
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn arn(key: &KeyRef) -> Result<&Arn, Error> {
    match key {
        KeyRef::Aws(arn) => Ok(arn),
        KeyRef::Local(_) => Err(Error::NotFound("a local key in AWS KMS".to_owned())),
    }
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

/// The ARN that KMS answered with, which must name the key that was asked.
fn same_key(asked: &Arn, answered: Option<&str>) -> Result<Arn, Error> {
    answered
        .and_then(|text| text.parse().ok())
        .filter(|arn| asked.is_replica_of(arn))
        .ok_or_else(|| Error::Invalid("an answer for another key".to_owned()))
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

/// What a failed call with `context` means to us.
fn failure<E>(error: SdkError<E>, context: &EncryptionContext) -> Error
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    match &error {
        SdkError::ConstructionFailure(_) => Error::Invalid(causes(&error)),
        SdkError::ServiceError(service) => {
            let answer = service.err();
            match answer.code() {
                Some(code) => {
                    let message = without(answer.message().unwrap_or_default(), context);
                    meaning(code, &message)
                }
                // Without a code it was not KMS who refused: a proxy or a load balancer.
                None if service.raw().status().is_success() => {
                    Error::Invalid("an answer that cannot be read".to_owned())
                }
                None => Error::Unavailable("an error that names no code".to_owned()),
            }
        }
        // Timeouts, failures to connect, torn answers; `SdkError` keeps the right to grow.
        _ => match sources(&error).find(|cause| cause.is::<CredentialsError>()) {
            Some(cause) => Error::Credentials(causes(cause)),
            None => Error::Unavailable(causes(&error)),
        },
    }
}

/// A sentence of KMS's without the values of `context`, should it repeat them. Our own pair, the
/// tenant's id, stays: it is no secret, and may be a part of many a role's name.
fn without(message: &str, context: &EncryptionContext) -> String {
    let foreign = context.pairs().filter(|(name, _)| !is_reserved(name));
    let mut values: Vec<&str> = foreign.map(|(_, value)| value).collect();
    // One may be a part of another.
    values.sort_by_key(|value| Reverse(value.len()));
    let cut = |text: String, value: &&str| text.replace(value, "…");
    values.iter().fold(message.to_owned(), cut)
}

fn sources<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// An error and what caused it, in one line.
fn causes(error: &(dyn StdError + 'static)) -> String {
    let texts: Vec<String> = sources(error).map(ToString::to_string).collect();
    sentence(&texts.join(": "))
}

/// Ends answers at [`MAX_ANSWER`]: the SDK itself reads as much as it is sent.
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
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response_mut().body_mut();
        let whole = std::mem::replace(body, SdkBody::taken());
        *body = SdkBody::from_body_1_x(Limited::new(whole, MAX_ANSWER));
        Ok(())
    }
}

/// Time to connect, TLS included: a handshake with a Region on the same continent, thrice.
const CONNECT: Duration = Duration::from_secs(1);
/// Longest attempt; callers have given up by then.
const MAX_ATTEMPT: Duration = Duration::from_secs(10);
/// Longest operation.
const MAX_OPERATION: Duration = Duration::from_secs(30);
/// Longest wrapped key that KMS makes, in bytes.
const MAX_WRAPPED: usize = 6144;
/// Longest answer, in bytes: a wrapped key in base64 and a description of a key fit in many times.
const MAX_ANSWER: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_keys_travel_by_tls_or_stay_on_the_machine() {
        for good in [
            "https://vpce-1.kms.eu-west-1.vpce.amazonaws.com",
            "http://127.0.0.1:5000",
            "http://127.0.0.1:5000/",
            "http://[::1]:5000",
            "http://localhost:5000",
        ] {
            assert!(is_confidential(good), "{good}");
        }
        for bad in [
            "",
            "https://",
            "http://",
            "kms.example",
            "ftp://127.0.0.1",
            "http://kms.example",
            "http://10.0.0.1:80",
            "http://127.0.0.1.example",
            "http://localhost.example",
            "http://localhost:a@kms.example",
            "http://127.0.0.1:1@kms.example",
        ] {
            assert!(!is_confidential(bad), "{bad}");
        }
    }

    #[test]
    fn a_sentence_that_repeats_the_context_loses_its_values() {
        let pairs = [
            ("ward", "seven"),
            ("bed", "seventy"),
            ("keybroker:tenant", "kms"),
        ];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let context = EncryptionContext::new(pairs).expect("a context");
        let said = without("no kms:Decrypt of {ward: seven, bed: seventy}", &context);
        assert_eq!(said, "no kms:Decrypt of {ward: …, bed: …}");
    }

    #[test]
    fn timeouts_hold_at_the_edge_and_one_beyond() {
        let check = |attempt: i64, operation: i64| {
            let config = Config {
                endpoint: None,
                attempt_timeout: SignedDuration::from_millis(attempt),
                operation_timeout: SignedDuration::from_millis(operation),
            };
            timeouts(&config).map(drop).map_err(|error| error.field)
        };
        assert_eq!(check(1, 1), Ok(()));
        assert_eq!(check(10_000, 30_000), Ok(()));
        assert_eq!(check(0, 5_000), Err("attempt_timeout"));
        assert_eq!(check(-1, 5_000), Err("attempt_timeout"));
        assert_eq!(check(10_001, 30_000), Err("attempt_timeout"));
        assert_eq!(check(750, 30_001), Err("operation_timeout"));
        assert_eq!(check(750, 749), Err("operation_timeout"));
    }

    #[test]
    fn an_empty_table_is_the_default_and_unknown_settings_are_refused() {
        assert_eq!(toml::from_str(""), Ok(Config::default()));
        let config: Config = toml::from_str("attempt_timeout = \"750ms\"").expect("a setting");
        assert_eq!(config, Config::default());
        assert!(toml::from_str::<Config>("secret_access_key = \"x\"").is_err());
    }
}
