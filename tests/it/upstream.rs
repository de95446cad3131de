//! What AWS KMS answers, as our callers see it: the whole broker over the real SDK and the fake.

use std::sync::Arc;

use aws_config::BehaviorVersion;
use aws_config::SdkConfig;
use keybroker::grpc::pb;
use keybroker::kms::Arn;
use keybroker::kms::aws::Aws;
use tonic::Code;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::harness::Broker;
use crate::harness::WEB;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::http1::get;
use crate::support::prometheus;

const REGION: &str = "eu-west-1";

#[tokio::test]
async fn a_message_under_an_aws_key_opens_without_asking_again() {
    let fake = FakeKms::start().await;
    let arn = fake.key(REGION);
    let broker = broker(&fake, fake.aws(), &[&arn], "operator").await;
    let mut web = broker.caller(WEB).await;
    let sealed = web.encrypt(plaintext()).await.unwrap().into_inner();
    assert_eq!(sealed.key_version, "tenants/acme/keys/orders/versions/1");
    let opened = web.decrypt(ciphertext(&sealed)).await.unwrap().into_inner();
    assert_eq!(opened.plaintext, "order 66");
    assert!(opened.used_primary);
    assert_eq!(fake.calls(Operation::GenerateDataKey), 1);
    assert_eq!(fake.calls(Operation::Decrypt), 0);
    let resource = &broker.records()[0]["resources"][0];
    assert_eq!(resource["ARN"], arn.as_str());
}

#[tokio::test]
async fn an_older_key_of_the_list_opens_and_says_that_reencryption_is_due() {
    let fake = FakeKms::start().await;
    let (old, new) = (fake.key(REGION), fake.key(REGION));
    let before = broker(&fake, fake.aws(), &[&old], "operator").await;
    let sealed = before
        .caller(WEB)
        .await
        .encrypt(plaintext())
        .await
        .unwrap()
        .into_inner();
    let after = broker(&fake, fake.aws(), &[&old, &new], "operator").await;
    let mut web = after.caller(WEB).await;
    let opened = web.decrypt(ciphertext(&sealed)).await.unwrap().into_inner();
    assert_eq!(opened.key_version, "tenants/acme/keys/orders/versions/1");
    assert!(!opened.used_primary);
    assert_eq!(fake.calls_of(&old, Operation::Decrypt), 1);
    let renewed = web.encrypt(plaintext()).await.unwrap().into_inner();
    assert_eq!(renewed.key_version, "tenants/acme/keys/orders/versions/2");
}

#[tokio::test]
async fn a_kms_key_that_the_directory_does_not_name_is_never_called() {
    let fake = FakeKms::start().await;
    let (ours, foreign) = (fake.key(REGION), fake.key(REGION));
    let theirs = broker(&fake, fake.aws(), &[&foreign], "operator").await;
    let sealed = theirs
        .caller(WEB)
        .await
        .encrypt(plaintext())
        .await
        .unwrap()
        .into_inner();
    let calls = fake.log().len();
    let broker = broker(&fake, fake.aws(), &[&ours], "operator").await;
    let status = broker
        .caller(WEB)
        .await
        .decrypt(ciphertext(&sealed))
        .await
        .unwrap_err();
    assert_eq!(
        answer(&status),
        (Code::InvalidArgument, "CIPHERTEXT_INVALID".into())
    );
    assert_eq!(fake.log().len(), calls);
}

#[tokio::test]
async fn a_wrapped_key_that_is_no_data_key_is_a_refused_ciphertext() {
    let fake = FakeKms::start().await;
    let arn = fake.key(REGION);
    let writer = broker(&fake, fake.aws(), &[&arn], "operator").await;
    let sealed = writer.caller(WEB).await.encrypt(plaintext()).await;
    let sealed = sealed.unwrap().into_inner();
    fake.fail(Operation::Decrypt, Fault::WrongLength(16));
    let reader = broker(&fake, fake.aws(), &[&arn], "operator").await;
    let mut web = reader.caller(WEB).await;
    let status = web.decrypt(ciphertext(&sealed)).await.unwrap_err();
    assert_eq!(
        answer(&status),
        (Code::InvalidArgument, "CIPHERTEXT_INVALID".into())
    );
    assert_eq!(fake.calls(Operation::Decrypt), 1);
}

#[tokio::test]
async fn the_state_of_the_kms_key_is_told() {
    let fake = FakeKms::start().await;
    let (disabled, deleted) = (fake.key(REGION), fake.key(REGION));
    fake.disable(&disabled);
    fake.schedule_deletion(&deleted);
    let absent: Arn = format!("arn:aws:kms:{REGION}:111122223333:key/absent")
        .parse()
        .unwrap();
    let elsewhere: Arn = fake
        .key(REGION)
        .as_str()
        .replace(REGION, "us-east-1")
        .parse()
        .unwrap();
    let denied = fake.key(REGION);
    fake.deny(BROKER, Operation::GenerateDataKey, &denied);
    for (arn, owner, code, reason) in [
        (
            &disabled,
            "operator",
            Code::FailedPrecondition,
            "KEY_DISABLED",
        ),
        (
            &deleted,
            "operator",
            Code::FailedPrecondition,
            "KEY_PENDING_DELETION",
        ),
        (&absent, "operator", Code::Internal, "KMS_ACCESS_DENIED"),
        (
            &absent,
            "tenant",
            Code::FailedPrecondition,
            "TENANT_KMS_CONFIG_INVALID",
        ),
        (&elsewhere, "operator", Code::Internal, "KMS_ACCESS_DENIED"),
        (&denied, "operator", Code::Internal, "KMS_ACCESS_DENIED"),
        (
            &denied,
            "tenant",
            Code::FailedPrecondition,
            "TENANT_KMS_DENIED",
        ),
    ] {
        let broker = broker(&fake, fake.aws(), &[arn], owner).await;
        let status = broker
            .caller(WEB)
            .await
            .encrypt(plaintext())
            .await
            .unwrap_err();
        assert_eq!(answer(&status), (code, reason.into()), "{arn} {owner}");
        assert!(
            !status.message().contains(arn.as_str()),
            "the caller learns no ARN"
        );
        assert_eq!(broker.records()[0]["errorCode"], reason);
    }
}

#[tokio::test]
async fn an_outage_of_kms_can_be_retried() {
    let fake = FakeKms::start().await;
    let arn = fake.key(REGION);
    fake.fail(
        Operation::GenerateDataKey,
        Fault::Code("KMSInternalException", 500),
    );
    let broker = broker(&fake, fake.aws(), &[&arn], "operator").await;
    let mut web = broker.caller(WEB).await;
    let status = web.encrypt(plaintext()).await.unwrap_err();
    assert_eq!(
        answer(&status),
        (Code::Unavailable, "KMS_UNAVAILABLE".into())
    );
    assert!(status.get_details_retry_info().is_some());
    fake.heal();
    fake.fail(
        Operation::GenerateDataKey,
        Fault::Code("ThrottlingException", 400),
    );
    let status = web.encrypt(plaintext()).await.unwrap_err();
    assert_eq!(answer(&status), (Code::Unavailable, "KMS_THROTTLED".into()));
    fake.heal();
    web.encrypt(plaintext()).await.unwrap();
}

#[tokio::test]
async fn a_failure_that_passes_is_not_told() {
    let fake = FakeKms::start().await;
    let arn = fake.key(REGION);
    let broker = broker(&fake, fake.aws(), &[&arn], "operator").await;
    let mut web = broker.caller(WEB).await;
    let operation = Operation::GenerateDataKey;
    fake.fail_next(1, operation, Fault::Code("KMSInternalException", 500));
    web.encrypt(plaintext()).await.unwrap();
    assert_eq!(fake.calls(operation), 2);
}

#[tokio::test]
async fn a_refusal_is_asked_for_once() {
    let fake = FakeKms::start().await;
    let arn = fake.key(REGION);
    fake.disable(&arn);
    let broker = broker(&fake, fake.aws(), &[&arn], "operator").await;
    let mut web = broker.caller(WEB).await;
    let status = web.encrypt(plaintext()).await.unwrap_err();
    assert_eq!(
        answer(&status),
        (Code::FailedPrecondition, "KEY_DISABLED".into())
    );
    assert_eq!(fake.calls(Operation::GenerateDataKey), 1);
}

#[tokio::test]
async fn a_kms_that_keeps_failing_is_left_alone_and_metrics_say_so() {
    let fake = FakeKms::start().await;
    let arn = fake.key(REGION);
    let operation = Operation::GenerateDataKey;
    fake.fail(operation, Fault::Code("KMSInternalException", 500));
    let broker = broker(&fake, fake.aws(), &[&arn], "operator").await;
    let mut web = broker.caller(WEB).await;
    let mut asked = None;
    while asked != Some(fake.calls(operation)) {
        asked = Some(fake.calls(operation));
        let status = web.encrypt(plaintext()).await.unwrap_err();
        assert_eq!(
            answer(&status),
            (Code::Unavailable, "KMS_UNAVAILABLE".into())
        );
        assert!(status.get_details_retry_info().is_some());
    }
    let calls = fake.calls(operation);
    assert_eq!(calls, 20);
    let record = broker.records().pop().unwrap();
    let cause = record["errorMessage"].as_str().unwrap();
    assert!(cause.contains("not asked"), "{cause}");

    let scrape = get(broker.admin_address().unwrap(), "/metrics").await;
    let series = prometheus::parse(&scrape.body);
    let requests = |outcome: &str| {
        let labels =
            format!(r#"operation="GenerateDataKey",outcome="{outcome}",region="{REGION}""#);
        series[&format!("keybroker_kms_requests_total{{{labels}}}")]
    };
    assert_eq!(requests("unavailable"), calls as f64);
    assert_eq!(requests("done"), 0.0);
    let of_region = |name: &str| series[&format!("{name}{{region=\"{REGION}\"}}")];
    assert_eq!(of_region("keybroker_kms_circuit_state"), 2.0);
    assert_eq!(of_region("keybroker_kms_throttles_total"), 0.0);
    assert!(of_region("keybroker_kms_retries_total") >= 10.0);
    let labels = format!(r#"operation="GenerateDataKey",region="{REGION}""#);
    let timed = format!("keybroker_kms_request_duration_seconds_count{{{labels}}}");
    assert_eq!(series[&timed], calls as f64);
}

#[tokio::test]
async fn without_credentials_kms_is_unavailable_and_the_record_says_why() {
    let fake = FakeKms::start().await;
    let arn = fake.key(REGION);
    let nobody = SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .build();
    let aws = Aws::new(&nobody, fake.config()).unwrap();
    let broker = broker(&fake, aws, &[&arn], "operator").await;
    let status = broker
        .caller(WEB)
        .await
        .encrypt(plaintext())
        .await
        .unwrap_err();
    assert_eq!(
        answer(&status),
        (Code::Unavailable, "KMS_UNAVAILABLE".into())
    );
    let cause = broker.records()[0]["errorMessage"].to_string();
    assert!(cause.contains("credentials"), "{cause}");
    assert_eq!(fake.log().len(), 0);
}

/// A broker whose key `keys/orders` of `acme` is wrapped by `arns`, oldest first.
async fn broker(fake: &FakeKms, aws: Aws, arns: &[&Arn], owner: &str) -> Broker {
    assert!(fake.endpoint().starts_with("http://127.0.0.1:"));
    let list: Vec<String> = arns
        .iter()
        .map(|arn| format!("{:?}", arn.as_str()))
        .collect();
    let tenants = format!(
        "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\nkms = [{}]\n\
         owner = \"{owner}\"\nusers = [\"{WEB}\"]\n",
        list.join(", ")
    );
    Broker::start()
        .with(|setup| {
            setup.tenants = tenants;
            setup.kms = Some(Arc::new(aws));
            setup.guard = Some(fake.config());
            setup.listen.admin = Some(([127, 0, 0, 1], 0).into());
        })
        .await
}

fn plaintext() -> pb::EncryptRequest {
    pb::EncryptRequest {
        name: "keys/orders".into(),
        plaintext: "order 66".into(),
        ..Default::default()
    }
}

fn ciphertext(sealed: &pb::EncryptResponse) -> pb::DecryptRequest {
    pb::DecryptRequest {
        ciphertext: sealed.ciphertext.clone(),
        ..Default::default()
    }
}

fn answer(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().unwrap();
    (status.code(), info.reason)
}
