//! AWS KMS through the real SDK, against the fake and against moto.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::credential_fn::provide_credentials_fn;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use jiff::SignedDuration;
use keybroker::crypto::Secret;
use keybroker::kms::Arn;
use keybroker::kms::Error;
use keybroker::kms::Guarded;
use keybroker::kms::KeyRef;
use keybroker::kms::Kms;
use keybroker::kms::Signer as _;
use keybroker::kms::aws::Aws;
use keybroker::kms::aws::Config;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::metrics::Metrics;
use keybroker::trace::Tracer;
use tokio::net::TcpListener;

use crate::harness::demand;
use crate::kms_contract::Fixture;
use crate::kms_contract::contract;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::fake_kms::State;
use crate::support::fake_kms::sdk_config;
use crate::support::moto::Moto;

const REGION: &str = "eu-west-1";

fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
    EncryptionContext::new(pairs.iter().map(|&(n, v)| (n.to_owned(), v.to_owned()))).unwrap()
}

fn acme() -> EncryptionContext {
    context(&[("keybroker:tenant", "acme"), ("keybroker:key", "orders")])
}

fn named(arn: &Arn) -> KeyRef {
    KeyRef::Aws(arn.clone())
}

/// The error of a call whose success cannot be printed.
fn refusal<T>(result: Result<T, Error>) -> Error {
    result.err().expect("a refusal")
}

/// A fake with one key, its client, and a data key under it.
struct Scene {
    fake: FakeKms,
    aws: Aws,
    arn: Arn,
    key: KeyRef,
    wrapped: EncryptedDataKey,
}

impl Scene {
    async fn set() -> Self {
        let fake = FakeKms::start().await;
        let aws = fake.aws();
        let arn = fake.key(REGION);
        let key = named(&arn);
        let wrapped = aws
            .generate_data_key(&key, &acme(), &demand())
            .await
            .unwrap()
            .wrapped;
        Self {
            fake,
            aws,
            arn,
            key,
            wrapped,
        }
    }

    async fn generate(&self) -> Error {
        refusal(
            self.aws
                .generate_data_key(&self.key, &acme(), &demand())
                .await,
        )
    }

    async fn decrypt(&self) -> Error {
        let result = self
            .aws
            .decrypt(&self.key, &self.wrapped, &acme(), &demand())
            .await;
        refusal(result)
    }
}

#[tokio::test]
async fn a_data_key_comes_back_under_its_context() {
    let scene = Scene::set().await;
    let (aws, key) = (&scene.aws, &scene.key);
    let made = aws
        .generate_data_key(key, &acme(), &demand())
        .await
        .unwrap();
    assert_eq!(made.wrapped.provider_id, "aws-kms");
    assert_eq!(made.wrapped.provider_info, scene.arn.as_str());
    let opened = aws
        .decrypt(key, &made.wrapped, &acme(), &demand())
        .await
        .unwrap();
    assert!(opened.plaintext.matches(made.plaintext.expose()));
    assert!(made.request_id.is_some() && opened.request_id.is_some());
    assert_ne!(made.request_id, opened.request_id);

    let call = scene.fake.log().pop().unwrap();
    assert_eq!(call.operation, Operation::Decrypt);
    assert_eq!(call.key.as_deref(), Some(scene.arn.as_str()));
    assert_eq!(
        (call.region.as_str(), call.caller.as_str()),
        (REGION, BROKER)
    );
    assert_eq!(call.context["keybroker:tenant"], "acme");
}

#[tokio::test]
async fn another_context_or_a_damaged_blob_does_not_open() {
    let mut scene = Scene::set().await;
    for other in [
        context(&[]),
        context(&[("keybroker:tenant", "acme")]),
        context(&[("keybroker:tenant", "acme"), ("keybroker:key", "order")]),
        context(&[("keybroker:tenan", "tacme"), ("keybroker:key", "orders")]),
    ] {
        let result = scene
            .aws
            .decrypt(&scene.key, &scene.wrapped, &other, &demand())
            .await;
        assert_eq!(refusal(result), Error::InvalidCiphertext, "{other:?}");
    }
    scene.wrapped.ciphertext[0] ^= 1;
    assert_eq!(scene.decrypt().await, Error::InvalidCiphertext);
}

#[tokio::test]
async fn a_key_that_a_message_names_is_never_called() {
    let scene = Scene::set().await;
    let foreign = EncryptedDataKey {
        provider_info: scene.fake.key(REGION).to_string(),
        ..scene.wrapped.clone()
    };
    let other_provider = EncryptedDataKey {
        provider_id: "aws-kms-hierarchy".to_owned(),
        ..scene.wrapped.clone()
    };
    for wrapped in [foreign, other_provider] {
        let result = scene
            .aws
            .decrypt(&scene.key, &wrapped, &acme(), &demand())
            .await;
        assert_eq!(refusal(result), Error::IncorrectKey);
    }
    assert_eq!(scene.fake.calls(Operation::Decrypt), 0);
}

#[tokio::test]
async fn a_blob_of_another_key_is_refused_whatever_it_claims() {
    let scene = Scene::set().await;
    let other = scene.fake.key(REGION);
    let disguised = EncryptedDataKey {
        provider_info: other.to_string(),
        ..scene.wrapped
    };
    let result = scene
        .aws
        .decrypt(&named(&other), &disguised, &acme(), &demand())
        .await;
    assert_eq!(refusal(result), Error::IncorrectKey);
    assert_eq!(scene.fake.calls_of(&other, Operation::Decrypt), 1);
}

#[tokio::test]
async fn a_local_key_is_not_asked_of_aws() {
    let scene = Scene::set().await;
    let local: KeyRef = "local:orders".parse().unwrap();
    let calls = scene.fake.log().len();
    let result = scene
        .aws
        .generate_data_key(&local, &acme(), &demand())
        .await;
    assert!(matches!(refusal(result), Error::NotFound(_)));
    assert_eq!(scene.fake.log().len(), calls);
}

#[tokio::test]
async fn every_code_has_its_meaning_under_either_status_in_one_request() {
    let scene = Scene::set().await;
    let said = "as the test wants it".to_owned();
    let coded = |code: &str| format!("{code}: {said}");
    let mut calls = 0;
    for (code, expected) in [
        (
            "AccessDeniedException",
            Error::AccessDenied(said.clone().into()),
        ),
        (
            "DependencyTimeoutException",
            Error::Unavailable(coded("DependencyTimeoutException")),
        ),
        ("DisabledException", Error::Disabled),
        (
            "ExpiredTokenException",
            Error::Credentials("ExpiredTokenException".to_owned()),
        ),
        ("IncorrectKeyException", Error::IncorrectKey),
        ("InvalidCiphertextException", Error::InvalidCiphertext),
        (
            "InvalidGrantTokenException",
            Error::AccessDenied(said.clone().into()),
        ),
        ("InvalidKeyUsageException", Error::NotFound(said.clone())),
        (
            "InvalidSignatureException",
            Error::Credentials("InvalidSignatureException".to_owned()),
        ),
        (
            "KMSInternalException",
            Error::Unavailable(coded("KMSInternalException")),
        ),
        (
            "KMSInvalidStateException",
            Error::PendingDeletion(said.clone()),
        ),
        (
            "KeyUnavailableException",
            Error::Unavailable(coded("KeyUnavailableException")),
        ),
        (
            "LimitExceededException",
            Error::Invalid(coded("LimitExceededException")),
        ),
        ("NotFoundException", Error::NotFound(said.clone())),
        ("ThrottlingException", Error::Throttled),
        (
            "UnrecognizedClientException",
            Error::Credentials("UnrecognizedClientException".to_owned()),
        ),
        (
            "ValidationException",
            Error::Invalid("ValidationException".to_owned()),
        ),
        ("ANewException", Error::Invalid(coded("ANewException"))),
    ] {
        for status in [400, 500] {
            let fault = Fault::Code(code, status);
            scene.fake.fail_next(1, Operation::Decrypt, fault);
            assert_eq!(scene.decrypt().await, expected, "{code} {status}");
            calls += 1;
            assert_eq!(
                scene.fake.calls(Operation::Decrypt),
                calls,
                "{code} {status}"
            );
        }
    }
}

#[tokio::test]
async fn making_a_data_key_never_blames_a_ciphertext() {
    let scene = Scene::set().await;
    for code in ["IncorrectKeyException", "InvalidCiphertextException"] {
        let fault = Fault::Code(code, 400);
        scene.fake.fail_next(1, Operation::GenerateDataKey, fault);
        assert!(
            matches!(scene.generate().await, Error::Invalid(_)),
            "{code}"
        );
    }
}

#[tokio::test]
async fn wrapping_a_data_key_never_blames_a_ciphertext_or_believes_another_key() {
    let scene = Scene::set().await;
    let (data_key, context, demand) = (Secret::random().unwrap(), acme(), demand());
    let encrypt = || {
        let (aws, key) = (&scene.aws, &scene.key);
        aws.encrypt(key, &data_key, &context, &demand)
    };
    for fault in [
        Fault::Code("IncorrectKeyException", 400),
        Fault::Code("InvalidCiphertextException", 400),
        Fault::Garbage,
        Fault::WrongKeyId,
    ] {
        scene.fake.fail_next(1, Operation::Encrypt, fault.clone());
        let error = refusal(encrypt().await);
        assert!(matches!(error, Error::Invalid(_)), "{fault:?}: {error}");
    }
    let wrapped = encrypt().await.unwrap();
    assert_eq!(wrapped.wrapped.provider_info, scene.arn.as_str());
    assert!(wrapped.request_id.is_some());
    let call = scene.fake.log().pop().unwrap();
    assert_eq!(call.context["keybroker:tenant"], "acme");
}

#[tokio::test]
async fn failures_are_not_tried_again() {
    let scene = Scene::set().await;
    let operation = Operation::GenerateDataKey;
    for fault in [
        Fault::Code("ThrottlingException", 400),
        Fault::Code("KMSInternalException", 500),
        Fault::Page(503),
        Fault::Reset,
        Fault::Truncate,
    ] {
        let before = scene.fake.calls(operation);
        scene.fake.fail_next(2, operation, fault.clone());
        let error = scene.generate().await;
        assert!(
            matches!(error, Error::Throttled | Error::Unavailable(_)),
            "{fault:?}: {error}"
        );
        assert_eq!(scene.fake.calls(operation), before + 1, "{fault:?}");
        scene.fake.heal();
    }
    // Nothing is left behind that would harm the next call.
    assert!(
        scene
            .aws
            .generate_data_key(&scene.key, &acme(), &demand())
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn an_answer_against_the_contract_gives_no_key() {
    let scene = Scene::set().await;
    let invalid: fn(&Error) -> bool = |error| matches!(error, Error::Invalid(_));
    // What KMS unwraps to another length is no data key, and that is the message's fault.
    let message: fn(&Error) -> bool = |error| *error == Error::InvalidCiphertext;
    for (fault, of_decrypt) in [
        (Fault::Garbage, invalid),
        (Fault::WrongKeyId, invalid),
        (Fault::WrongLength(0), message),
        (Fault::WrongLength(31), message),
        (Fault::WrongLength(33), message),
    ] {
        scene.fake.fail(Operation::GenerateDataKey, fault.clone());
        scene.fake.fail(Operation::Decrypt, fault.clone());
        let error = scene.generate().await;
        assert!(invalid(&error), "{fault:?}: {error}");
        let error = scene.decrypt().await;
        assert!(of_decrypt(&error), "{fault:?}: {error}");
    }
    scene.fake.fail(Operation::DescribeKey, Fault::WrongKeyId);
    let error = refusal(scene.aws.describe_key(&scene.key).await);
    assert!(matches!(error, Error::Invalid(_)), "{error}");
}

#[tokio::test]
async fn an_endless_answer_is_cut() {
    let scene = Scene::set().await;
    // Valid JSON up to the limit and beyond, so that only the length can be at fault.
    scene.fake.fail(Operation::Decrypt, Fault::Huge(100 << 20));
    let error = scene.decrypt().await;
    assert!(
        matches!(&error, Error::Unavailable(why) if why.contains("length limit")),
        "{error}"
    );
}

#[tokio::test]
async fn a_silent_kms_ends_the_call_at_the_timeout() {
    let fake = FakeKms::start().await;
    let key = named(&fake.key(REGION));
    let config = Config {
        attempt_timeout: SignedDuration::from_millis(200),
        ..fake.config()
    };
    let aws = Aws::new(&sdk_config(BROKER), config).unwrap();
    fake.fail(Operation::GenerateDataKey, Fault::Hang);
    let error = refusal(aws.generate_data_key(&key, &acme(), &demand()).await);
    assert!(
        matches!(&error, Error::Unavailable(why) if why.contains("read timeout")),
        "{error}"
    );
    assert!(fake.calls(Operation::GenerateDataKey) <= 1);
}

#[tokio::test]
async fn slow_credentials_end_the_call_at_the_operation_timeout_alone() {
    let fake = FakeKms::start().await;
    let key = named(&fake.key(REGION));
    let config = Config {
        attempt_timeout: SignedDuration::from_millis(50),
        operation_timeout: SignedDuration::from_millis(100),
        ..fake.config()
    };
    let never = provide_credentials_fn(std::future::pending);
    let aws = Aws::new(&credentials(never), config).unwrap();
    let error = refusal(aws.generate_data_key(&key, &acme(), &demand()).await);
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert_eq!(fake.calls(Operation::GenerateDataKey), 0);
}

#[tokio::test]
async fn slow_credentials_are_not_held_against_kms() {
    let fake = FakeKms::start().await;
    let key = named(&fake.key(REGION));
    let attempt = Duration::from_millis(500);
    let config = Config {
        attempt_timeout: SignedDuration::try_from(attempt).unwrap(),
        ..fake.config()
    };
    let slow = provide_credentials_fn(move || async move {
        tokio::time::sleep(attempt * 2).await;
        Ok(Credentials::new(BROKER, "secret", None, None, "slow"))
    });
    let aws = Aws::new(&credentials(slow), config.clone()).unwrap();
    let metrics = Metrics::unread();
    let guarded = Guarded::new(Arc::new(aws), &config, metrics.clone(), Tracer::off()).unwrap();
    guarded
        .generate_data_key(&key, &acme(), &demand())
        .await
        .unwrap();
    assert_eq!(metrics.kms(REGION).retries(), 0);

    // Of a later attempt the credentials take nothing: it ends in time.
    fake.fail(Operation::GenerateDataKey, Fault::Hang);
    let error = refusal(guarded.generate_data_key(&key, &acme(), &demand()).await);
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert_eq!(metrics.kms(REGION).retries(), 2);
}

#[tokio::test]
async fn missing_credentials_are_told_from_an_outage() {
    let fake = FakeKms::start().await;
    let key = named(&fake.key(REGION));
    let none = provide_credentials_fn(async || Err(CredentialsError::not_loaded("no profile")));
    let aws = Aws::new(&credentials(none), fake.config()).unwrap();
    let error = refusal(aws.generate_data_key(&key, &acme(), &demand()).await);
    assert!(
        matches!(&error, Error::Credentials(why) if why.contains("no profile")),
        "{error}"
    );
    assert_eq!(fake.calls(Operation::GenerateDataKey), 0);
}

fn credentials(
    provider: impl aws_credential_types::provider::ProvideCredentials + 'static,
) -> SdkConfig {
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .credentials_provider(SharedCredentialsProvider::new(provider))
        .build()
}

#[tokio::test]
async fn credentials_that_kms_does_not_know_are_told_from_a_denial() {
    let scene = Scene::set().await;
    scene.fake.revoke(BROKER);
    let error = scene.generate().await;
    assert!(matches!(error, Error::Credentials(_)), "{error}");
}

#[tokio::test]
async fn an_unreachable_endpoint_is_an_outage() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let config = Config {
        endpoint: Some(format!("http://{address}")),
        ..Config::default()
    };
    let aws = Aws::new(&sdk_config(BROKER), config).unwrap();
    let arn = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd";
    let error = refusal(aws.describe_key(&arn.parse().unwrap()).await);
    assert!(
        matches!(&error, Error::Unavailable(why) if why.contains("refused")),
        "{error}"
    );
}

#[tokio::test]
async fn the_state_of_the_key_counts() {
    let scene = Scene::set().await;
    assert_eq!(scene.aws.describe_key(&scene.key).await, Ok(()));
    scene.fake.disable(&scene.arn);
    assert_eq!(scene.generate().await, Error::Disabled);
    assert_eq!(scene.decrypt().await, Error::Disabled);
    assert_eq!(
        scene.aws.describe_key(&scene.key).await,
        Err(Error::Disabled)
    );
    for state in [
        State::Creating,
        State::PendingDeletion,
        State::PendingImport,
        State::PendingReplicaDeletion,
        State::Unavailable,
    ] {
        scene.fake.set_state(&scene.arn, state);
        assert!(
            matches!(scene.generate().await, Error::PendingDeletion(_)),
            "{state:?}"
        );
        assert!(
            matches!(scene.decrypt().await, Error::PendingDeletion(_)),
            "{state:?}"
        );
        let described = scene.aws.describe_key(&scene.key).await;
        assert_eq!(described, Err(Error::PendingDeletion(format!("{state:?}"))));
    }
    scene.fake.set_state(&scene.arn, State::Updating);
    assert_eq!(scene.aws.describe_key(&scene.key).await, Ok(()));
    scene.fake.enable(&scene.arn);
    assert!(
        scene
            .aws
            .generate_data_key(&scene.key, &acme(), &demand())
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_key_of_another_kind_is_no_key() {
    let scene = Scene::set().await;
    let mac = named(&scene.fake.hmac_key(REGION));
    let described = scene.aws.describe_key(&mac).await;
    assert!(matches!(described, Err(Error::NotFound(_))));
    let result = scene.aws.generate_data_key(&mac, &acme(), &demand()).await;
    assert!(matches!(refusal(result), Error::NotFound(_)));
}

#[tokio::test]
async fn a_denial_is_per_caller_operation_and_key() {
    let scene = Scene::set().await;
    scene.fake.deny(BROKER, Operation::Decrypt, &scene.arn);
    let error = scene.decrypt().await;
    assert!(
        matches!(&error, Error::AccessDenied(why) if why.to_string().contains("kms:Decrypt")),
        "{error}"
    );
    assert!(
        scene
            .aws
            .generate_data_key(&scene.key, &acme(), &demand())
            .await
            .is_ok()
    );
    let other = Aws::new(&sdk_config("AKIAOTHER"), scene.fake.config()).unwrap();
    assert!(
        other
            .decrypt(&scene.key, &scene.wrapped, &acme(), &demand())
            .await
            .is_ok()
    );
    scene.fake.allow(BROKER, Operation::Decrypt, &scene.arn);
    assert!(
        scene
            .aws
            .decrypt(&scene.key, &scene.wrapped, &acme(), &demand())
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn old_material_opens_what_it_wrapped_after_a_rotation() {
    let scene = Scene::set().await;
    scene.fake.rotate(&scene.arn);
    assert!(
        scene
            .aws
            .decrypt(&scene.key, &scene.wrapped, &acme(), &demand())
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_replica_in_another_region_opens_what_the_primary_wrapped() {
    let fake = FakeKms::start().await;
    let aws = fake.aws();
    let primary = fake.multi_region_key(REGION);
    let replica = fake.replica(&primary, "us-east-1");
    let made = aws
        .generate_data_key(&named(&primary), &acme(), &demand())
        .await
        .unwrap();
    fake.disable(&primary);
    let opened = aws
        .decrypt(&named(&replica), &made.wrapped, &acme(), &demand())
        .await
        .unwrap();
    assert!(opened.plaintext.matches(made.plaintext.expose()));
    assert_eq!(fake.log().pop().unwrap().region, "us-east-1");
    assert_eq!(fake.calls_of(&primary, Operation::Decrypt), 0);
}

#[tokio::test]
async fn a_key_is_asked_in_its_own_region() {
    let scene = Scene::set().await;
    scene
        .fake
        .region("us-east-1")
        .fail(Operation::GenerateDataKey, Fault::Reset);
    assert!(
        scene
            .aws
            .generate_data_key(&scene.key, &acme(), &demand())
            .await
            .is_ok()
    );
    let abroad = named(&scene.fake.key("us-east-1"));
    let error = refusal(
        scene
            .aws
            .generate_data_key(&abroad, &acme(), &demand())
            .await,
    );
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn held_calls_are_counted_and_go_on_when_released() {
    let scene = Scene::set().await;
    let hold = scene.fake.hold();
    let context = acme();
    let demand = demand();
    let call = scene.aws.generate_data_key(&scene.key, &context, &demand);
    let release = async {
        scene.fake.arrived(Operation::GenerateDataKey, 2).await;
        drop(hold);
    };
    let (made, ()) = tokio::join!(call, release);
    assert!(made.is_ok());
}

#[tokio::test]
async fn the_configuration_alone_says_where_kms_is() {
    let scene = Scene::set().await;
    let elsewhere = FakeKms::start().await;
    let sdk = sdk_config(BROKER)
        .into_builder()
        .endpoint_url(elsewhere.endpoint())
        .build();
    let aws = Aws::new(&sdk, scene.fake.config()).unwrap();
    assert_eq!(aws.describe_key(&scene.key).await, Ok(()));
    assert!(elsewhere.log().is_empty());
}

#[test]
fn plaintext_to_another_machine_is_refused() {
    let config = Config {
        endpoint: Some("http://kms.example".to_owned()),
        ..Config::default()
    };
    let refused = Aws::new(&sdk_config(BROKER), config).err().unwrap();
    assert_eq!(refused.field, "endpoint");
}

#[tokio::test]
async fn a_server_of_others_understands_us() {
    let moto = Moto::start().await;
    let aws = moto.aws();
    let key = named(&moto.key(REGION).await);
    assert_eq!(aws.describe_key(&key).await, Ok(()));
    let made = aws
        .generate_data_key(&key, &acme(), &demand())
        .await
        .unwrap();
    let opened = aws
        .decrypt(&key, &made.wrapped, &acme(), &demand())
        .await
        .unwrap();
    assert!(opened.plaintext.matches(made.plaintext.expose()));
    let other = context(&[("keybroker:tenant", "acme")]);
    let result = aws.decrypt(&key, &made.wrapped, &other, &demand()).await;
    assert_eq!(refusal(result), Error::InvalidCiphertext);
    let unknown = format!("arn:aws:kms:{REGION}:123456789012:key/1234abcd");
    let described = aws.describe_key(&unknown.parse().unwrap()).await;
    assert!(matches!(described, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_key_that_signs_signs_for_us_and_one_that_encrypts_does_not() {
    let fake = FakeKms::start().await;
    let aws = fake.aws();
    let key = aws.signing_key(&fake.signing_key(REGION));
    let public = key.public_key().await.unwrap();
    let signature = key.sign(&public, b"message").await.unwrap();
    assert!(public.verifies(b"message", &signature));
    assert!(!public.verifies(b"massage", &signature));
    let other = aws.signing_key(&fake.signing_key(REGION));
    let other = other.public_key().await.unwrap();
    let refused = key.sign(&other, b"message").await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    assert_eq!(key.dry_run().await, Ok(()));
    let encrypts = aws.signing_key(&fake.key(REGION)).public_key().await;
    assert!(matches!(encrypts, Err(Error::NotFound(_))), "{encrypts:?}");
}

/// The keys of a fake, in the states of the contract.
struct Keys<'a> {
    fake: &'a FakeKms,
    enabled: [Arn; 2],
    disabled: Arn,
    pending_deletion: Arn,
}

#[async_trait]
impl Fixture for Keys<'_> {
    fn enabled(&self) -> [KeyRef; 2] {
        self.enabled.clone().map(KeyRef::Aws)
    }

    fn disabled(&self) -> KeyRef {
        named(&self.disabled)
    }

    fn pending_deletion(&self) -> KeyRef {
        named(&self.pending_deletion)
    }

    fn absent(&self) -> KeyRef {
        let absent = format!("arn:aws:kms:{REGION}:111122223333:key/1234abcd");
        absent.parse().unwrap()
    }

    async fn rotate(&self, key: &KeyRef) {
        let arn = self.enabled.iter().find(|arn| named(arn) == *key);
        self.fake.rotate(arn.unwrap());
    }
}

#[tokio::test]
async fn aws_keeps_the_contract() {
    let fake = FakeKms::start().await;
    let keys = Keys {
        fake: &fake,
        enabled: [fake.key(REGION), fake.key(REGION)],
        disabled: fake.key(REGION),
        pending_deletion: fake.key(REGION),
    };
    fake.disable(&keys.disabled);
    fake.schedule_deletion(&keys.pending_deletion);
    contract(&fake.aws(), &keys).await;
}
