//! A key with an additional KMS key in another Region: messages that either of the two opens, and
//! what happens while one is lost, or refuses. Through the real SDK, behind the guard of `serve`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use jiff::SignedDuration;
use jiff::Timestamp;
use keybroker::clock::Manual;
use keybroker::datakeys::warm;
use keybroker::datakeys::warm::Pace;
use keybroker::grpc::pb;
use keybroker::kms::Arn;
use keybroker::kms::Error;
use keybroker::kms::aws::Config;
use keybroker::message::Message;
use keybroker::metrics::Retirement;
use serde_json::json;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::pairs;
use crate::harness::rpcs::seal;
use crate::harness::until;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::Call;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;

const NEAR: &str = "eu-west-1";
const FAR: &str = "us-east-1";

/// Two KMS keys that have nothing in common.
struct Scene {
    fake: FakeKms,
    near: Arn,
    far: Arn,
}

impl Scene {
    async fn set() -> Self {
        let fake = FakeKms::start().await;
        let (near, far) = (fake.key(NEAR), fake.key(FAR));
        Self { fake, near, far }
    }

    /// A broker with nothing in its cache, and its clock.
    async fn broker(&self) -> (Broker, Arc<Manual>) {
        let clock = Arc::new(Manual::new(Timestamp::now()));
        let tenants = format!(
            "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\n\
             kms = {{ key = \"{}\", additional_key = \"{}\" }}\nusers = [\"{WEB}\"]\n",
            self.near, self.far
        );
        let config = Config {
            attempt_timeout: SignedDuration::from_millis(500),
            operation_timeout: SignedDuration::from_secs(5),
            ..self.fake.config()
        };
        let broker = Broker::start().with(|setup| {
            setup.tenants = tenants;
            setup.clock = clock.clone();
            setup.kms = Some(Arc::new(self.fake.aws_with(config.clone())));
            setup.guard = Some(config);
            setup.cache.warm_file = Some("warm".into());
        });
        (broker.await, clock)
    }

    async fn client(&self) -> (Broker, Client) {
        let (broker, _) = self.broker().await;
        let web = broker.caller(WEB).await;
        (broker, web)
    }

    fn arn(&self, region: &str) -> &Arn {
        match region {
            NEAR => &self.near,
            _ => &self.far,
        }
    }

    /// What was asked since the log had `before` calls.
    fn asked(&self, before: usize) -> Vec<(Operation, String)> {
        let calls = self.fake.log().into_iter().skip(before);
        calls.map(|call| (call.operation, call.region)).collect()
    }
}

/// A broker whose key `orders` has two keys of a KMS that fails at once, and its clock.
async fn locally() -> (Broker, Arc<Manual>) {
    let clock = Arc::new(Manual::new(Timestamp::now()));
    let both = "{ key = \"local:acme-orders\", additional_key = \"local:acme-orders-2\" }";
    let tenants = TENANTS.replacen("\"local:acme-orders\"", both, 1);
    let broker = Broker::start().with(|setup| {
        setup.tenants = tenants;
        setup.clock = clock.clone();
    });
    (broker.await, clock)
}

/// The KMS keys that wrapped the data key of `message`.
fn wrappers(message: &Bytes) -> Vec<String> {
    let message = Message::parse(message).unwrap();
    let keys = message.encrypted_data_keys().iter();
    keys.map(|key| key.provider_info.clone()).collect()
}

async fn opens(web: &mut Client, message: &Bytes) {
    let opened = web.decrypt(decrypt(message)).await.unwrap().into_inner();
    assert_eq!(opened.plaintext, "x");
}

#[tokio::test]
async fn a_data_key_is_made_by_one_kms_key_and_wrapped_by_the_other() {
    let scene = Scene::set().await;
    let (broker, mut web) = scene.client().await;
    let message = seal(&mut web, "keys/orders", "x").await;
    assert_eq!(
        wrappers(&message),
        [scene.near.to_string(), scene.far.to_string()]
    );
    let log = scene.fake.log();
    let [made, wrapped]: &[Call; 2] = log.as_slice().try_into().unwrap();
    assert_eq!(
        (made.operation, made.key.as_deref()),
        (Operation::GenerateDataKey, Some(scene.near.as_str()))
    );
    assert_eq!(
        (wrapped.operation, wrapped.key.as_deref()),
        (Operation::Encrypt, Some(scene.far.as_str()))
    );
    assert_eq!(made.context, wrapped.context);
    assert_eq!(made.context["keybroker:tenant"], "acme");
    let plaintexts = scene.fake.plaintexts();
    assert_eq!(plaintexts.len(), 2);
    assert_eq!(plaintexts[0], plaintexts[1], "one data key, wrapped twice");

    // What was sealed here opens here without KMS, and the next message takes no call either.
    opens(&mut web, &message).await;
    seal(&mut web, "keys/orders", "y").await;
    assert_eq!(scene.fake.log().len(), 2);

    let record = broker.records().remove(0);
    let resource = |arn: &Arn| {
        json!({
            "name": "tenants/acme/keys/orders/versions/1",
            "ARN": arn.as_str(),
            "type": "KMSKey",
        })
    };
    assert_eq!(
        record["resources"],
        json!([resource(&scene.near), resource(&scene.far)])
    );
    let data = &record["additionalEventData"];
    let ids = [&data["kmsRequestID"], &data["additionalKMSRequestID"]];
    assert!(
        ids.iter().all(|id| id.is_string()) && ids[0] != ids[1],
        "{data}"
    );
}

#[tokio::test]
async fn a_message_opens_when_either_kms_key_is_lost() {
    let scene = Scene::set().await;
    let (_, mut maker) = scene.client().await;
    let message = seal(&mut maker, "keys/orders", "x").await;
    let troubles: [(&str, Fault); 3] = [
        ("failing", Fault::Code("KMSInternalException", 500)),
        ("hanging", Fault::Hang),
        ("throttling", Fault::Throttle(Duration::ZERO)),
    ];
    for lost in [NEAR, FAR] {
        for (name, trouble) in troubles.clone() {
            scene.fake.region(lost).fail_all(trouble);
            let (broker, mut web) = scene.client().await;
            let before = scene.fake.log().len();
            opens(&mut web, &message).await;
            let decrypts = |regions: &[&str]| -> Vec<_> {
                let regions = regions.iter();
                regions
                    .map(|one| (Operation::Decrypt, (*one).to_owned()))
                    .collect()
            };
            let expected: &[&str] = if lost == NEAR { &[NEAR, FAR] } else { &[NEAR] };
            assert_eq!(scene.asked(before), decrypts(expected), "{lost} {name}");
            let failovers = u64::from(lost == NEAR);
            assert_eq!(broker.metrics.kms(NEAR).failovers(), failovers, "{name}");
            // The header is one entry, whoever opened it and whoever is well now.
            opens(&mut web, &message).await;
            scene.fake.heal();
            opens(&mut web, &message).await;
            assert_eq!(scene.fake.log().len(), before + expected.len());
            let opener = if lost == NEAR { FAR } else { NEAR };
            let resources = broker.records().remove(0)["resources"].clone();
            assert_eq!(resources.as_array().map(Vec::len), Some(1));
            assert_eq!(resources[0]["ARN"], scene.arn(opener).as_str());
        }
    }
    for region in [NEAR, FAR] {
        scene.fake.region(region).cut_off().await;
    }
    let (_, mut web) = scene.client().await;
    let lost = web.decrypt(decrypt(&message)).await;
    assert_eq!(reason(lost), "KMS_UNAVAILABLE");
}

#[tokio::test]
async fn a_crowd_is_served_by_one_call_to_each() {
    let scene = Scene::set().await;
    let (_sealer, web) = scene.client().await;
    let crowd = (0..50).map(|_| {
        let mut web = web.clone();
        async move { seal(&mut web, "keys/orders", "x").await }
    });
    let message = join_all(crowd).await.remove(0);
    let made = [
        (Operation::GenerateDataKey, NEAR),
        (Operation::Encrypt, FAR),
    ];
    let made = made.map(|(operation, region)| (operation, region.to_owned()));
    assert_eq!(scene.asked(0), made);

    scene.fake.region(NEAR).fail_all(Fault::Hang);
    let (_opener, web) = scene.client().await;
    let crowd = (0..50).map(|_| {
        let (mut web, message) = (web.clone(), message.clone());
        async move { opens(&mut web, &message).await }
    });
    join_all(crowd).await;
    let opened = [NEAR, FAR].map(|region| (Operation::Decrypt, region.to_owned()));
    assert_eq!(scene.asked(2), opened);
}

#[tokio::test]
async fn health_knows_of_the_additional_kms_key_without_callers() {
    let scene = Scene::set().await;
    let (broker, _) = scene.broker().await;
    scene.fake.region(FAR).cut_off().await;
    let directory = Arc::clone(broker.inner().policy().directory());
    let watch = broker
        .inner()
        .data_keys()
        .watch(move || Arc::clone(&directory));
    let watching = tokio::spawn(watch);
    until(|| broker.metrics.reasons() == ["kms"]).await;
    scene.fake.until(|log| log.len() == 1).await;
    watching.abort();
    assert_eq!(scene.asked(0), [(Operation::DescribeKey, NEAR.to_owned())]);
}

#[tokio::test]
async fn a_region_that_throttles_the_look_of_health_is_in_reach() {
    let scene = Scene::set().await;
    let (broker, _) = scene.broker().await;
    let throttle = Fault::Throttle(Duration::ZERO);
    scene.fake.region(FAR).fail_all(throttle);
    let directory = Arc::clone(broker.inner().policy().directory());
    let cache = broker.inner().data_keys();
    let watching = tokio::spawn(cache.watch(move || Arc::clone(&directory)));
    // An attempt and two more: then the look has ended.
    until(|| broker.metrics.kms(FAR).throttles() == 3).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    cache.sweep();
    assert!(broker.metrics.reasons().is_empty());
    watching.abort();
}

#[tokio::test]
async fn callers_who_leave_while_one_is_lost_find_the_data_key_when_they_come_again() {
    let scene = Scene::set().await;
    let (_, mut maker) = scene.client().await;
    let message = seal(&mut maker, "keys/orders", "x").await;
    scene.fake.region(NEAR).fail_all(Fault::Hang);
    let (broker, mut web) = scene.client().await;
    let mut request = tonic::Request::new(decrypt(&message));
    request.set_timeout(Duration::from_millis(250));
    let left = web.decrypt(request).await.unwrap_err();
    assert_eq!(reason::<()>(Err(left)), "DEADLINE_EXCEEDED");
    until(|| broker.inner().data_keys().recent().len() == 1).await;
    let calls = scene.fake.log().len();
    opens(&mut web, &message).await;
    assert_eq!(scene.fake.log().len(), calls);
}

#[tokio::test]
async fn while_one_kms_key_is_lost_the_other_makes_data_keys_until_both_wrap_again() {
    for (lost, kept) in [(NEAR, FAR), (FAR, NEAR)] {
        let scene = Scene::set().await;
        let (broker, clock) = scene.broker().await;
        let mut web = broker.caller(WEB).await;
        scene.fake.region(lost).cut_off().await;
        let message = seal(&mut web, "keys/orders", "x").await;
        assert_eq!(wrappers(&message), [scene.arn(kept).to_string()], "{lost}");
        assert_eq!(broker.metrics.kms(lost).missing_wraps(), 1);
        let cache = broker.inner().data_keys();
        cache.sweep();
        assert_eq!(broker.metrics.reasons(), ["kms"]);

        // While the other one is known not to answer, another data key would be no better.
        for _ in 0..20 {
            clock.advance(Duration::from_secs(2));
            web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
            cache.sweep();
        }
        assert_eq!(broker.metrics.kms(lost).missing_wraps(), 1);
        assert_eq!(broker.metrics.refreshes(), Default::default());

        scene.fake.heal();
        clock.advance(Duration::from_secs(30));
        cache.sweep();
        clock.advance(Duration::from_secs(1));
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
        until(|| broker.metrics.refreshes().done == 1).await;
        assert_eq!(broker.metrics.retirements(Retirement::Incomplete), 1);
        let whole = seal(&mut web, "keys/orders", "x").await;
        assert_eq!(
            wrappers(&whole),
            [scene.near.to_string(), scene.far.to_string()],
            "{lost}"
        );
        assert_eq!(broker.metrics.kms(lost).missing_wraps(), 1);
        opens(&mut web, &message).await;
        // And the usual limits hold again.
        clock.advance(Duration::from_secs(60));
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
        cache.sweep();
        assert_eq!(broker.metrics.refreshes().done, 1);
    }
}

#[tokio::test]
async fn a_successor_with_both_wraps_is_looked_for_ever_more_slowly() {
    let (broker, clock) = locally().await;
    let mut web = broker.caller(WEB).await;
    // Nobody asked it, so nothing is known of it.
    broker.kms.rule(|call| match call.operation {
        "Encrypt" => Err(Error::Crowded {
            pause: Duration::from_secs(1),
        }),
        _ => Ok(()),
    });
    let made = || broker.kms.generate_calls();
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    for _ in 0..200 {
        clock.advance(Duration::from_secs(1));
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
        until(|| broker.metrics.refreshes().failed + 1 == made() as u64).await;
    }
    assert_eq!(
        broker.metrics.kms("local").missing_wraps(),
        1,
        "the first serves"
    );
    // After 1, 2, 4, 8, 16 and then 30 s, or half of each.
    assert!((9..=20).contains(&made()), "{}", made());
    broker.kms.heal();
    clock.advance(Duration::from_secs(31));
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    until(|| broker.metrics.refreshes().done == 1).await;
    let whole = seal(&mut web, "keys/orders", "x").await;
    assert_eq!(wrappers(&whole).len(), 2);
}

#[tokio::test]
async fn a_data_key_with_both_wraps_serves_on_while_its_successor_would_lack_one() {
    let (broker, clock) = locally().await;
    let mut web = broker.caller(WEB).await;
    let both = wrappers(&seal(&mut web, "keys/orders", "x").await);
    assert_eq!(both.len(), 2);
    broker.kms.rule(|call| match call.operation {
        "Encrypt" => Err(Error::Unavailable("away".into())),
        _ => Ok(()),
    });
    let mut alone = None;
    for second in 1..300 {
        clock.advance(Duration::from_secs(1));
        let found = wrappers(&seal(&mut web, "keys/orders", "x").await);
        match alone {
            None if found.len() == 1 => alone = Some(second),
            None => assert_eq!(found, both),
            Some(_) => assert_eq!(found.len(), 1),
        }
        broker.inner().data_keys().sweep();
        let ended = || broker.metrics.refreshes().failed + broker.metrics.refreshes().done;
        until(|| ended() + 1 == broker.kms.generate_calls() as u64).await;
    }
    // Halfway between a soft limit of 210 to 270 s and 300 s: in time for no caller to wait.
    let alone = alone.unwrap();
    assert!((250..295).contains(&alone), "after {alone} s");
    assert_eq!(broker.metrics.lookups().misses, 1);
    assert_eq!(broker.metrics.kms("local").missing_wraps(), 1);
    assert!(broker.kms.generate_calls() <= 5, "it is known to be away");
}

#[tokio::test]
async fn a_restart_has_either_kms_key_open_what_was_open_before() {
    let scene = Scene::set().await;
    let (_, mut maker) = scene.client().await;
    let message = seal(&mut maker, "keys/orders", "x").await;
    let (first, mut web) = scene.client().await;
    opens(&mut web, &message).await;
    let recent = warm::parse(&warm::encode(&first.inner().data_keys().recent())).unwrap();
    scene.fake.region(NEAR).cut_off().await;
    let (second, mut web) = scene.client().await;
    let pace = Pace {
        rate: 1000,
        delay: Duration::ZERO,
    };
    let directory = Arc::clone(second.inner().policy().directory());
    let warming = second.inner().data_keys();
    let warmed = warming.warm(recent, pace, move || Arc::clone(&directory));
    assert_eq!(warmed.await.done, 1);
    let calls = scene.fake.log().len();
    opens(&mut web, &message).await;
    assert_eq!(scene.fake.log().len(), calls);
}

#[tokio::test]
async fn what_either_kms_key_refuses_is_refused() {
    type Refusal = fn(&Scene, &Arn);
    let deny_making: Refusal = |scene, key| {
        for operation in [Operation::GenerateDataKey, Operation::Encrypt] {
            scene.fake.deny(BROKER, operation, key);
        }
    };
    let disable: Refusal = |scene, key| scene.fake.disable(key);
    let delete: Refusal = |scene, key| scene.fake.schedule_deletion(key);
    for region in [NEAR, FAR] {
        for (refuse, expected) in [
            (deny_making, "KMS_ACCESS_DENIED"),
            (disable, "KEY_DISABLED"),
            (delete, "KEY_PENDING_DELETION"),
        ] {
            let scene = Scene::set().await;
            let (broker, clock) = scene.broker().await;
            let mut web = broker.caller(WEB).await;
            let message = seal(&mut web, "keys/orders", "x").await;
            refuse(&scene, scene.arn(region));
            // The cached data key goes on until a successor is due.
            opens(&mut web, &message).await;
            clock.advance(Duration::from_secs(301));
            let before = scene.fake.log().len();
            for _ in 0..3 {
                let refused = web.encrypt(encrypt("keys/orders", "x")).await;
                assert_eq!(reason(refused), expected, "{region}");
            }
            let asked = scene.asked(before);
            let far = asked.iter().any(|(_, one)| one == FAR);
            assert_eq!(far, region == FAR, "{asked:?}");
            assert!(asked.len() <= 3, "remembered: {asked:?}");
            assert_eq!(broker.metrics.kms(region).missing_wraps(), 0);
        }
    }
}

#[tokio::test]
async fn what_a_disabled_kms_key_wrapped_is_dropped_whichever_of_the_two_it_is() {
    for region in [NEAR, FAR] {
        let scene = Scene::set().await;
        let (broker, _) = scene.broker().await;
        let mut web = broker.caller(WEB).await;
        let message = seal(&mut web, "keys/orders", "x").await;
        scene.fake.disable(scene.arn(region));
        let other = pb::EncryptRequest {
            encryption_context: pairs([("table", "t")]),
            ..encrypt("keys/orders", "x")
        };
        assert_eq!(reason(web.encrypt(other).await), "KEY_DISABLED");
        assert_eq!(broker.metrics.retirements(Retirement::Denied), 1);
        let opened = web.decrypt(decrypt(&message)).await;
        match region {
            // The first decides, and it has decided.
            NEAR => assert_eq!(reason(opened), "KEY_DISABLED"),
            _ => assert_eq!(opened.unwrap().into_inner().plaintext, "x"),
        }
    }
}

#[tokio::test]
async fn a_refusal_to_open_is_taken_to_no_other_kms_key() {
    let scene = Scene::set().await;
    let (_, mut maker) = scene.client().await;
    let message = seal(&mut maker, "keys/orders", "x").await;
    scene.fake.deny(BROKER, Operation::Decrypt, &scene.near);
    let (_, mut web) = scene.client().await;
    let refused = web.decrypt(decrypt(&message)).await;
    assert_eq!(reason(refused), "KMS_ACCESS_DENIED");
    assert_eq!(scene.fake.calls_of(&scene.far, Operation::Decrypt), 0);
    scene.fake.allow(BROKER, Operation::Decrypt, &scene.near);

    // The other one's counts when it comes to that.
    scene.fake.region(NEAR).cut_off().await;
    scene.fake.deny(BROKER, Operation::Decrypt, &scene.far);
    let (_, mut web) = scene.client().await;
    let refused = web.decrypt(decrypt(&message)).await;
    assert_eq!(reason(refused), "KMS_ACCESS_DENIED");
}

#[tokio::test]
async fn messages_from_before_the_additional_kms_key_still_open() {
    let scene = Scene::set().await;
    let (broker, _) = scene.broker().await;
    let both = format!(
        "{{ key = \"{}\", additional_key = \"{}\" }}",
        scene.near, scene.far
    );
    let tenants = |kms: &str| {
        format!(
            "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\nkms = {kms}\n\
             users = [\"{WEB}\"]\n"
        )
    };
    broker.reload_policy(&tenants(&format!("\"{}\"", scene.near)));
    let mut web = broker.caller(WEB).await;
    let before = seal(&mut web, "keys/orders", "x").await;
    assert_eq!(wrappers(&before), [scene.near.to_string()]);
    broker.reload_policy(&tenants(&both));
    let after = seal(&mut web, "keys/orders", "x").await;
    assert_eq!(wrappers(&after).len(), 2, "another generation");
    for message in [&before, &after] {
        opens(&mut web, message).await;
    }
    // And those of both open when the additional one is gone from the directory.
    broker.reload_policy(&tenants(&format!("\"{}\"", scene.near)));
    let calls = scene.fake.calls_of(&scene.far, Operation::Decrypt);
    opens(&mut web, &after).await;
    assert_eq!(scene.fake.calls_of(&scene.far, Operation::Decrypt), calls);
}

#[tokio::test]
async fn an_admin_sees_both_kms_keys() {
    let scene = Scene::set().await;
    let (_broker, mut web) = scene.client().await;
    let request = pb::DescribeKeyRequest {
        name: "keys/orders".into(),
        ..Default::default()
    };
    let key = web.describe_key(request).await.unwrap().into_inner().key;
    let key = key.unwrap();
    assert_eq!(key.kms_keys, [scene.near.to_string()]);
    assert_eq!(key.additional_kms_keys, [scene.far.to_string()]);
}
