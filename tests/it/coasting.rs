//! A KMS that is gone for ten minutes: what is cached goes on to its limits, and the rest comes back
//! by itself.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use keybroker::clock::Manual;
use keybroker::grpc::pb;
use tonic::Code;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::pairs;
use crate::harness::soon;
use crate::support::fake_kms::FakeKms;
use crate::support::figures;
use crate::support::http1::get;

const REGION: &str = "eu-west-1";

#[tokio::test]
async fn ten_minutes_without_kms_are_served_from_the_cache_to_its_limits_and_no_further() {
    let clock = Arc::new(Manual::new(Timestamp::now()));
    let fake = FakeKms::start().await;
    let broker = broker(&fake, &clock).await;
    let admin = broker.admin_address().unwrap();
    let web = broker.caller(WEB).await;
    // Data keys of many ages, each of which is used all the time from then on.
    let mut sealed = Vec::new();
    for place in 0..KEYS {
        clock.advance(Duration::from_secs(5));
        sealed.push(seal(&mut web.clone(), place).await.unwrap());
        for outcome in use_all(&web, &sealed).await {
            assert_eq!(outcome, [Ok(()), Ok(())]);
        }
    }
    let region = fake.region(REGION);
    region.cut_off().await;
    let (mut due, mut served, mut past) = (0_u32, 0_u32, 0_u32);
    // The eldest was made at 5 s of this clock, the others 5 s after one another.
    let eldest = Duration::from_secs(5 * (KEYS as u64 - 1));
    for step in 0..OUTAGE / STEP {
        for (place, outcomes) in use_all(&web, &sealed).await.into_iter().enumerate() {
            let born = Duration::from_secs(5 * place as u64);
            let age = eldest + Duration::from_secs(STEP) * step as u32 - born;
            for outcome in outcomes {
                if age < MAX_AGE {
                    due += 1;
                    served += u32::from(outcome.is_ok());
                } else {
                    past += u32::from(outcome.is_ok());
                    assert_eq!(outcome, Err((Code::Unavailable, "KMS_UNAVAILABLE".into())));
                }
            }
        }
        let health = get(admin, "/healthz").await;
        assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
        assert_eq!(get(admin, "/readyz").await.status, 200);
        clock.advance(Duration::from_secs(STEP));
    }
    assert!(due > 1000, "{due}");
    assert_eq!((served, past), (due, 0));
    let ready = get(admin, "/readyz").await;
    let degraded = r#"{"status":"degraded","reasons":["kms"]}"#;
    assert_eq!((ready.status, ready.body.as_str()), (200, degraded));

    region.heal();
    let all = async {
        let good = |outcomes: &[Outcome; 2]| outcomes.iter().all(Result::is_ok);
        while !use_all(&web, &sealed).await.iter().all(good) {
            // What a caller may spend comes back with time.
            clock.advance(Duration::from_millis(10));
        }
    };
    soon(all).await;
    let hits = f64::from(served) / f64::from(due);
    figures::record("upstream", [("outage_hits_served", hits)]);
    figures::record("upstream", [("outage_past_limit", past)]);
}

type Outcome = Result<(), (Code, String)>;

async fn broker(fake: &FakeKms, clock: &Arc<Manual>) -> Broker {
    let arn = fake.key(REGION);
    let tenants = format!(
        "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\nkms = \"{arn}\"\n\
         users = [\"{WEB}\"]\n"
    );
    let broker = Broker::start().with(|setup| {
        setup.tenants = tenants;
        setup.clock = clock.clone();
        setup.kms = Some(Arc::new(fake.aws()));
        setup.guard = Some(fake.config());
        setup.listen.admin = Some(([127, 0, 0, 1], 0).into());
    });
    broker.await
}

/// Seals and opens with each data key.
async fn use_all(web: &Client, sealed: &[pb::DecryptRequest]) -> Vec<[Outcome; 2]> {
    let uses = sealed.iter().enumerate().map(|(place, message)| {
        let (mut web, message) = (web.clone(), message.clone());
        async move {
            let seals = seal(&mut web, place).await.map(drop);
            let opens = soon(web.decrypt(message)).await;
            let opens = opens.map(drop).map_err(|status| told(&status));
            [seals, opens]
        }
    });
    join_all(uses).await
}

async fn seal(web: &mut Client, place: usize) -> Result<pb::DecryptRequest, (Code, String)> {
    let context = pairs([("place", place.to_string().as_str())]);
    let request = pb::EncryptRequest {
        encryption_context: context.clone(),
        ..encrypt("keys/orders", "x")
    };
    match soon(web.encrypt(request)).await {
        Ok(answer) => Ok(pb::DecryptRequest {
            encryption_context: context,
            ..decrypt(&answer.into_inner().ciphertext)
        }),
        Err(status) => Err(told(&status)),
    }
}

fn told(status: &tonic::Status) -> (Code, String) {
    (status.code(), Refusal::of(status).reason)
}

/// Data keys in use.
const KEYS: usize = 12;
/// How long KMS is gone, and the time between two uses of a data key, in seconds.
const OUTAGE: u64 = 600;
const STEP: u64 = 5;
/// What a data key has by default.
const MAX_AGE: Duration = Duration::from_secs(300);
