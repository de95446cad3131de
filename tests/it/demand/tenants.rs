//! What one tenant's KMS does, others do not feel.

use std::sync::Arc;

use keybroker::grpc::pb;
use tokio::task::JoinSet;

use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::soon;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;

#[tokio::test]
async fn a_tenant_whose_kms_hangs_takes_no_place_of_others() {
    let fake = FakeKms::start().await;
    let (hung, good) = (fake.key("eu-west-1"), fake.key("eu-west-1"));
    fake.fail_key(&hung, Operation::GenerateDataKey, Fault::Hang);
    let broker = Broker::start()
        .with(|setup| {
            setup.tenants = [("acme", &hung, WEB), ("globex", &good, GLOBEX)]
                .map(|(tenant, arn, user)| {
                    format!(
                        "[[tenant]]\nid = \"{tenant}\"\n[[tenant.key]]\nid = \"orders\"\n\
                         kms = \"{arn}\"\nusers = [\"{user}\"]\n"
                    )
                })
                .concat();
            setup.kms = Some(Arc::new(fake.aws()));
            setup.guard = Some(fake.config());
            // So few that those who wait would have taken them all.
            setup.limits.in_flight = 8;
            setup.cache.waiters = 4 * PLACES;
        })
        .await;
    let mut webs = Vec::new();
    let mut calls = JoinSet::new();
    for number in 0..PLACES + 50 {
        if number % 50 == 0 {
            webs.push(broker.caller(WEB).await);
        }
        let mut web = webs.last().unwrap().clone();
        calls.spawn(async move { web.encrypt(request(number)).await.unwrap_err() });
    }
    for _ in 0..50 {
        let refused = soon(calls.join_next()).await.unwrap().unwrap();
        assert_eq!(Refusal::of(&refused).reason, "OVERLOADED");
    }
    soon(fake.arrived(Operation::GenerateDataKey, SHARE)).await;

    let mut globex = broker.caller(GLOBEX).await;
    for number in 0..20 {
        soon(globex.encrypt(request(number))).await.unwrap();
    }
    let most = fake.most_at_once(|call| call.tenant() == Some("acme"));
    assert_eq!(most, SHARE);
    assert_eq!(calls.len() as u64, PLACES, "they still wait");
}

/// One that needs a data key of its own.
fn request(number: u64) -> pb::EncryptRequest {
    pb::EncryptRequest {
        name: "keys/orders".into(),
        plaintext: "x".into(),
        encryption_context: [("number".to_owned(), number.to_string())].into(),
        ..Default::default()
    }
}

/// Of one tenant among those that wait.
const PLACES: u64 = 100;
/// Of one tenant among the requests under way.
const SHARE: usize = 64;
