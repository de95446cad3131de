//! A restart that begins with what was used before it: KMS is asked at a bounded rate, for what
//! still belongs to a key, and callers find it.

use std::fs;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use jiff::Timestamp;
use keybroker::clock;
use keybroker::crypto::Secret;
use keybroker::datakeys::warm;
use keybroker::datakeys::warm::Pace;
use keybroker::datakeys::warm::Purpose;
use keybroker::datakeys::warm::Recent;
use keybroker::datakeys::warm::Warmed;
use keybroker::directory::Directory;
use keybroker::grpc::pb;
use keybroker::kms;
use keybroker::kms::Demand;
use keybroker::kms::KeyRef;
use keybroker::kms::Kms;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::metrics::KmsOperation;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::FakeKms;
use crate::harness::GLOBEX;
use crate::harness::Start;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::rpcs::pairs;
use crate::harness::rpcs::seal;
use crate::harness::soon;
use crate::support::fake_kms;
use crate::support::fake_kms::Operation;

#[tokio::test]
async fn a_restarted_broker_opens_and_seals_without_asking_kms_for_a_caller() {
    let aws = fake_kms::FakeKms::start().await;
    let arn = aws.key("eu-west-1");
    let tenants = TENANTS.replacen("local:acme-orders", arn.as_str(), 1);
    let start = || {
        keeping().with(|setup| {
            setup.tenants = tenants.clone();
            setup.kms = Some(Arc::new(aws.aws()));
        })
    };
    let before = start().await;
    let mut web = before.caller(WEB).await;
    let mut sealed = Vec::new();
    for round in ["1", "2", "3"] {
        sealed.push((round, seal_in(&mut web, round).await));
    }
    let file = written(&before);
    before.stop().await;

    let after = start().await;
    let warmed = warm_up(&after, warm::read(&file.path).unwrap(), FAST).await;
    assert_eq!(warmed, done(6));
    let stats = after.inner().data_keys().stats();
    assert_eq!((stats.hits, stats.misses, stats.coalesced), (0, 0, 0));
    assert_eq!(aws.calls(Operation::Decrypt), 3);
    assert_eq!(aws.calls(Operation::GenerateDataKey), 6);

    let mut web = after.caller(WEB).await;
    for (round, sealed) in &sealed {
        open_in(&mut web, round, sealed).await;
        let renewed = seal_in(&mut web, round).await;
        open_in(&mut web, round, &renewed).await;
    }
    let stats = after.inner().data_keys().stats();
    assert_eq!((stats.hits, stats.misses, stats.stale), (9, 0, 0));
    assert_eq!(aws.log().len(), 9);
}

#[tokio::test]
async fn nothing_is_kept_unless_a_file_is_named() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    seal(&mut web, "keys/orders", "x").await;
    assert_eq!(broker.inner().data_keys().recent(), []);
    let other = keeping().await;
    seal(&mut other.caller(WEB).await, "keys/orders", "x").await;
    let warmed = warm_up(&broker, other.inner().data_keys().recent(), FAST).await;
    assert_eq!((warmed, broker.kms_calls()), (done(0), 1));
}

#[tokio::test]
async fn kms_is_asked_no_faster_than_the_rate_and_for_the_latest_first() {
    let clock = Arc::new(clock::Manual::new(Timestamp::now()));
    let recorder = Arc::new(Recorder::default());
    let start = || {
        keeping().with(|setup| {
            setup.clock = clock.clone();
            setup.kms = Some(recorder.clone());
        })
    };
    let before = start().await;
    let mut web = before.caller(WEB).await;
    for round in 0..8 {
        seal_in(&mut web, &round.to_string()).await;
        clock.advance(Duration::from_secs(1));
    }
    let recent = before.inner().data_keys().recent();
    assert!(recent.is_sorted_by(|one, next| one.used >= next.used));
    let openings: Vec<Recent> = recent.into_iter().filter(opens).collect();
    recorder.asked.lock().unwrap().clear();

    let after = start().await;
    let rate = 20;
    let pace = Pace { rate, ..FAST };
    let begun = Instant::now();
    assert_eq!(warm_up(&after, openings, pace).await, done(8));
    let asked = recorder.asked.lock().unwrap();
    for (nth, (at, round)) in (0..).zip(asked.iter()) {
        assert!(*at - begun >= nth * Duration::from_secs(1) / rate, "{nth}");
        assert_eq!(*round, (7 - nth).to_string());
    }

    // Nobody used them: after one more restart their order is the same.
    let again = after.inner().data_keys().recent();
    let rounds = again.iter().map(|one| one.context.value("round").unwrap());
    assert!(rounds.eq(["7", "6", "5", "4", "3", "2", "1", "0"]));
}

#[tokio::test]
async fn the_file_holds_no_plaintext_of_a_data_key_and_is_closed_to_others() {
    let recorder = Arc::new(Recorder::default());
    let kms = recorder.clone();
    let broker = keeping().with(|setup| setup.kms = Some(kms)).await;
    let mut web = broker.caller(WEB).await;
    for round in ["1", "2"] {
        seal_in(&mut web, round).await;
    }
    let file = written(&broker);
    let bytes = fs::read(&file.path).unwrap();
    let holds = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    let made = recorder.made.lock().unwrap();
    assert_eq!(made.len(), 2);
    for (plaintext, wrapped) in made.iter() {
        let hex: String = plaintext.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![plaintext.to_vec(), hex.to_uppercase().into(), hex.into()];
        for engine in [&BASE64_STANDARD, &BASE64_URL_SAFE_NO_PAD] {
            // As a part of something longer it may begin at any of three places.
            for skipped in 0..3 {
                let text = engine.encode(&plaintext[skipped..]);
                forms.push(text[..text.len() - 4].into());
            }
        }
        assert!(forms.iter().all(|form| !holds(form)));
        assert!(holds(BASE64_STANDARD.encode(wrapped).as_bytes()));
    }
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file.path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn what_belongs_to_no_key_any_more_makes_no_call() {
    let before = keeping().await;
    let mut web = before.caller(WEB).await;
    for key in ["keys/orders", "keys/invoices", "keys/shared"] {
        seal(&mut web, key, "x").await;
    }
    let mut globex = before.caller(GLOBEX).await;
    seal(&mut globex, "keys/orders", "x").await;
    let recent = before.inner().data_keys().recent();
    assert_eq!(recent.len(), 8);
    let openings: Vec<Recent> = recent.iter().filter(|one| opens(one)).cloned().collect();

    // Its KMS key is another one, and it is gone.
    let other = TENANTS
        .replacen("local:acme-orders", "local:acme-new", 1)
        .replacen("local:globex-orders", "local:globex-new", 1)
        .replacen("id = \"invoices\"", "id = \"bills\"", 1)
        .replacen("id = \"shared\"", "id = \"divided\"", 1);
    let after = restarted(&before, &other).await;
    let calls = before.kms_calls();
    let foreign = |foreign| Warmed { foreign, ..done(0) };
    assert_eq!(warm_up(&after, openings, FAST).await, foreign(4));

    // Its fixed pairs are others.
    let other = TENANTS.replacen("stage = \"test\"", "stage = \"prod\"", 1);
    let after = restarted(&before, &other).await;
    let of_acme: Vec<Recent> = recent
        .iter()
        .filter(|one| one.key.tenant.as_str() == "acme")
        .cloned()
        .collect();
    assert_eq!(warm_up(&after, of_acme, FAST).await, foreign(6));

    // A context of another tenant or key.
    let mixed = recent.iter().map(|one| Recent {
        key: match one.key.tenant.as_str() {
            "acme" => keybroker::name::KeyName {
                key: "own".parse().unwrap(),
                ..one.key.clone()
            },
            _ => keybroker::name::KeyName {
                tenant: "acme".parse().unwrap(),
                ..one.key.clone()
            },
        },
        ..one.clone()
    });
    let after = restarted(&before, TENANTS).await;
    assert_eq!(warm_up(&after, mixed.collect(), FAST).await, foreign(8));
    assert_eq!(before.kms_calls(), calls);
}

#[tokio::test]
async fn what_was_used_long_ago_is_left_alone() {
    let before = keeping().await;
    seal(&mut before.caller(WEB).await, "keys/orders", "x").await;
    let late = Duration::from_secs(3601);
    let clock = clock::Manual::new(Timestamp::now() + late);
    let after = keeping()
        .with(|setup| {
            setup.clock = Arc::new(clock);
            setup.kms = Some(before.kms.clone());
        })
        .await;
    let warmed = warm_up(&after, before.inner().data_keys().recent(), FAST).await;
    assert_eq!((warmed, before.kms_calls()), (done(0), 1));
}

#[tokio::test]
async fn what_a_caller_brought_in_is_not_asked_for_again() {
    let before = keeping().await;
    let mut web = before.caller(WEB).await;
    let sealed = seal_in(&mut web, "1").await;
    let recent = before.inner().data_keys().recent();
    let after = restarted(&before, TENANTS).await;
    let mut web = after.caller(WEB).await;
    open_in(&mut web, "1", &sealed).await;
    seal_in(&mut web, "1").await;
    let calls = before.kms_calls();
    let known = Warmed {
        known: 2,
        ..done(0)
    };
    assert_eq!(warm_up(&after, recent, FAST).await, known);
    assert_eq!(before.kms_calls(), calls);
}

#[tokio::test]
async fn a_caller_waits_for_the_call_that_is_under_way() {
    let before = keeping().await;
    let sealed = seal_in(&mut before.caller(WEB).await, "1").await;
    let openings = before.inner().data_keys().recent();
    let openings = openings.into_iter().filter(opens).collect();
    let after = restarted(&before, TENANTS).await;
    let mut web = after.caller(WEB).await;
    let held = before.kms.hold().await;
    let warming = spawn(&after, openings, FAST);
    before.kms.reached(2).await;
    let opening = tokio::spawn(async move { open_in(&mut web, "1", &sealed).await });
    // What is under way can be lost no more than what waits.
    assert_eq!(after.inner().data_keys().recent().len(), 1);
    drop(held);
    soon(opening).await.unwrap();
    assert_eq!(soon(warming).await.unwrap(), done(1));
    assert_eq!(before.kms_calls(), 2);
}

#[tokio::test]
async fn a_refusal_is_believed_for_all_that_it_concerns() {
    let before = keeping().await;
    let mut web = before.caller(WEB).await;
    for round in ["1", "2", "3"] {
        seal_in(&mut web, round).await;
    }
    let recent = before.inner().data_keys().recent();
    let after = restarted(&before, TENANTS).await;
    before.kms.fail(kms::Error::Disabled);
    let pace = Pace { rate: 100, ..FAST };
    let refused = Warmed {
        refused: 6,
        ..done(0)
    };
    assert_eq!(warm_up(&after, recent, pace).await, refused);
    assert_eq!(before.kms_calls(), 4);
    assert_eq!(after.inner().data_keys().recent(), []);
}

#[tokio::test]
async fn callers_lose_nothing_when_there_is_no_room() {
    let before = keeping().await;
    let mut web = before.caller(WEB).await;
    for round in ["1", "2", "3"] {
        seal_in(&mut web, round).await;
    }
    let recent = before.inner().data_keys().recent();
    let kms = before.kms.clone();
    let after = keeping()
        .with(|setup| {
            setup.kms = Some(kms);
            setup.cache.tenant_entries = 3;
        })
        .await;
    let mut web = after.caller(WEB).await;
    let own = seal(&mut web, "keys/orders", "x").await;
    let full = Warmed { full: 6, ..done(0) };
    assert_eq!(warm_up(&after, recent, FAST).await, full);
    let request = pb::DecryptRequest {
        ciphertext: own,
        ..Default::default()
    };
    web.decrypt(request).await.unwrap();
    assert_eq!(before.kms_calls(), 4);
}

#[tokio::test]
async fn an_outage_at_the_start_is_waited_for() {
    let before = keeping().await;
    let mut web = before.caller(WEB).await;
    let sealed = seal_in(&mut web, "1").await;
    let recent = before.inner().data_keys().recent();
    let after = restarted(&before, TENANTS).await;
    before.kms.fail(kms::Error::Unavailable("down".into()));
    let warming = spawn(&after, recent, FAST);
    before.kms.reached(2).await;
    before.kms.heal();
    assert_eq!(soon(warming).await.unwrap(), done(2));
    let calls = before.kms_calls();
    let mut web = after.caller(WEB).await;
    open_in(&mut web, "1", &sealed).await;
    seal_in(&mut web, "1").await;
    assert_eq!(before.kms_calls(), calls);
}

#[tokio::test]
async fn an_outage_that_lasts_ends_the_attempt_and_loses_nothing() {
    let clock = Arc::new(clock::Manual::new(Timestamp::now()));
    let before = keeping().with(|setup| setup.clock = clock.clone()).await;
    let mut web = before.caller(WEB).await;
    for round in ["1", "2"] {
        seal_in(&mut web, round).await;
    }
    let recent = before.inner().data_keys().recent();
    let kms = before.kms.clone();
    let after = keeping()
        .with(|setup| {
            setup.clock = clock.clone();
            setup.kms = Some(kms);
        })
        .await;
    before.kms.fail(kms::Error::Throttled);
    let warming = spawn(&after, recent.clone(), FAST);
    before.kms.reached(3).await;
    clock.advance(Duration::from_secs(300));
    let failed = Warmed {
        failed: 4,
        ..done(0)
    };
    assert_eq!(soon(warming).await.unwrap(), failed);
    assert_eq!(after.inner().data_keys().recent(), recent);
}

/// A broker that keeps what the next one may begin with.
fn keeping() -> Start {
    Broker::start().with(|setup| setup.cache.warm_file = Some("warm".into()))
}

/// The next one, under `tenants`, before the same KMS.
async fn restarted(before: &Broker, tenants: &str) -> Broker {
    let kms = before.kms.clone();
    keeping()
        .with(|setup| {
            setup.tenants = tenants.to_owned();
            setup.kms = Some(kms);
        })
        .await
}

/// A file of what `broker` was used for.
struct Written {
    path: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

fn written(broker: &Broker) -> Written {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warm");
    let recent = broker.inner().data_keys().recent();
    warm::write(&path, &warm::encode(&recent)).unwrap();
    Written {
        path,
        _folder: folder,
    }
}

fn warming(
    broker: &Broker,
    recent: Vec<Recent>,
    pace: Pace,
) -> impl Future<Output = Warmed> + Send + 'static {
    let directory: Arc<Directory> = Arc::clone(broker.inner().policy().directory());
    let directory = move || Arc::clone(&directory);
    broker.inner().data_keys().warm(recent, pace, directory)
}

async fn warm_up(broker: &Broker, recent: Vec<Recent>, pace: Pace) -> Warmed {
    soon(warming(broker, recent, pace)).await
}

fn spawn(broker: &Broker, recent: Vec<Recent>, pace: Pace) -> JoinHandle<Warmed> {
    tokio::spawn(warming(broker, recent, pace))
}

fn opens(one: &Recent) -> bool {
    matches!(one.purpose, Purpose::Open(_))
}

fn done(done: u64) -> Warmed {
    Warmed {
        done,
        ..Warmed::default()
    }
}

async fn seal_in(client: &mut Client, round: &str) -> Bytes {
    let request = pb::EncryptRequest {
        name: "keys/orders".into(),
        plaintext: "x".into(),
        encryption_context: pairs([("round", round)]),
        ..Default::default()
    };
    client
        .encrypt(request)
        .await
        .unwrap()
        .into_inner()
        .ciphertext
}

async fn open_in(client: &mut Client, round: &str, ciphertext: &Bytes) {
    let request = pb::DecryptRequest {
        ciphertext: ciphertext.clone(),
        encryption_context: pairs([("round", round)]),
        ..Default::default()
    };
    client.decrypt(request).await.unwrap();
}

/// A KMS that notes when it was asked, in which round, and what it made.
#[derive(Default)]
struct Recorder {
    kms: FakeKms,
    asked: Mutex<Vec<(Instant, String)>>,
    made: Mutex<Vec<([u8; kms::DATA_KEY], Vec<u8>)>>,
}

impl Recorder {
    fn note(&self, context: &EncryptionContext) {
        let round = context.value("round").unwrap().to_owned();
        self.asked.lock().unwrap().push((Instant::now(), round));
    }
}

#[async_trait]
impl Kms for Recorder {
    async fn generate_data_key(
        &self,
        key: &KeyRef,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<kms::DataKey, kms::Error> {
        self.note(context);
        let made = self.kms.generate_data_key(key, context, demand).await?;
        let plaintext = *made.plaintext.expose();
        let wrapped = made.wrapped.ciphertext.clone();
        self.made.lock().unwrap().push((plaintext, wrapped));
        Ok(made)
    }

    async fn encrypt(
        &self,
        key: &KeyRef,
        plaintext: &Secret<{ kms::DATA_KEY }>,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<kms::Wrapped, kms::Error> {
        self.note(context);
        self.kms.encrypt(key, plaintext, context, demand).await
    }

    async fn decrypt(
        &self,
        key: &KeyRef,
        wrapped: &EncryptedDataKey,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<kms::Unwrapped, kms::Error> {
        self.note(context);
        self.kms.decrypt(key, wrapped, context, demand).await
    }

    async fn describe_key(&self, key: &KeyRef) -> Result<(), kms::Error> {
        self.kms.describe_key(key).await
    }

    async fn dry_run(
        &self,
        operation: KmsOperation,
        key: &KeyRef,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<(), kms::Error> {
        self.kms.dry_run(operation, key, context, demand).await
    }
}

/// Faster than any test looks.
const FAST: Pace = Pace {
    rate: 1000,
    delay: Duration::ZERO,
};
