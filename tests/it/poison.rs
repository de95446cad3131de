//! Answers of AWS KMS that are no answers: callers get a clear error, and the next good answer is
//! used. The whole broker over the real SDK and the fake.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::SignedDuration;
use keybroker::grpc::pb;
use keybroker::kms::aws::Aws;
use keybroker::kms::aws::Config;
use tonic::Code;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::soon;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;

const REGION: &str = "eu-west-1";

#[tokio::test]
async fn a_wrong_answer_is_an_error_and_leaves_nothing_in_the_cache() {
    let outage = (Code::Unavailable, "KMS_UNAVAILABLE");
    let bug = (Code::Internal, "INTERNAL");
    for (fault, answer) in [
        (Fault::Close, outage),
        (Fault::Reset, outage),
        (Fault::HalfHead, outage),
        (Fault::HeadAlone, outage),
        (Fault::Truncate, outage),
        (Fault::Drip(Duration::from_millis(50)), outage),
        (Fault::Huge(100 << 20), outage),
        (Fault::Page(502), outage),
        (Fault::Garbage, bug),
        (Fault::WrongKeyId, bug),
    ] {
        let fake = FakeKms::start().await;
        let tenants = format!(
            "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\nkms = \"{}\"\n\
             users = [\"{WEB}\"]\n",
            fake.key(REGION)
        );
        let writer = broker(fake.aws_with(config(&fake, &fault)), &tenants).await;
        let mut web = writer.caller(WEB).await;
        fake.fail(Operation::GenerateDataKey, fault.clone());
        let refused = encrypt(&mut web).await.unwrap_err();
        let refused = (refused.code, refused.reason.as_str());
        assert_eq!(refused, answer, "{fault:?}");
        fake.heal();
        let calls = fake.calls(Operation::GenerateDataKey);
        let sealed = encrypt(&mut web).await.unwrap();
        encrypt(&mut web).await.unwrap();
        let good = fake.calls(Operation::GenerateDataKey) - calls;
        assert_eq!(good, 1, "{fault:?}");

        let reader = broker(fake.aws_with(config(&fake, &fault)), &tenants).await;
        let mut web = reader.caller(WEB).await;
        fake.fail(Operation::Decrypt, fault.clone());
        let refused = decrypt(&mut web, &sealed).await.unwrap_err();
        let refused = (refused.code, refused.reason.as_str());
        assert_eq!(refused, answer, "{fault:?}");
        fake.heal();
        let calls = fake.calls(Operation::Decrypt);
        for _ in 0..2 {
            assert_eq!(decrypt(&mut web, &sealed).await.unwrap(), "order 66");
        }
        let good = fake.calls(Operation::Decrypt) - calls;
        assert_eq!(good, 1, "{fault:?}");
    }
}

/// Patience for all that ends by itself.
fn config(fake: &FakeKms, fault: &Fault) -> Config {
    let patience = match fault {
        Fault::Drip(_) => SignedDuration::from_secs(1),
        _ => SignedDuration::from_secs(10),
    };
    Config {
        attempt_timeout: patience,
        operation_timeout: patience,
        ..fake.config()
    }
}

async fn broker(aws: Aws, tenants: &str) -> Broker {
    Broker::start()
        .with(|setup| {
            setup.tenants = tenants.to_owned();
            setup.kms = Some(Arc::new(aws));
        })
        .await
}

async fn encrypt(web: &mut Client) -> Result<Bytes, Refusal> {
    let request = pb::EncryptRequest {
        name: "keys/orders".into(),
        plaintext: "order 66".into(),
        ..Default::default()
    };
    match soon(web.encrypt(request)).await {
        Ok(answer) => Ok(answer.into_inner().ciphertext),
        Err(status) => Err(Refusal::of(&status)),
    }
}

async fn decrypt(web: &mut Client, sealed: &Bytes) -> Result<Bytes, Refusal> {
    let request = pb::DecryptRequest {
        ciphertext: sealed.clone(),
        ..Default::default()
    };
    match soon(web.decrypt(request)).await {
        Ok(answer) => Ok(answer.into_inner().plaintext),
        Err(status) => Err(Refusal::of(&status)),
    }
}
