//! A server through a KMS that fails in all ways by turns: every answer is right or one of the listed
//! failures, and nothing is left behind.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use keybroker::grpc::pb;
use keybroker::kms::Arn;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Code;
use tonic::Request;
use tonic::Status;

use super::house::House;
use super::site::Running;
use crate::harness::Client;
use crate::harness::Refusal;
use crate::harness::rpcs::pairs;
use crate::harness::soon;
use crate::support::dice::Dice;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::figures;
use crate::support::http1::get;
use crate::support::prometheus;
use crate::support::scale::scaled;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_through_random_faults_answers_rightly_or_as_listed_and_keeps_nothing() {
    let seed = match std::env::var("KEYBROKER_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from(std::process::id()),
    };
    println!("KEYBROKER_TEST_SEED={seed}");
    let mut dice = Dice::new(seed);
    let kms = FakeKms::start().await;
    let arn = kms.key(REGION);
    let house = House::new(&arn);
    house.use_kms(&kms);
    let timeouts = "[kms.aws]\nattempt_timeout = \"200ms\"\noperation_timeout = \"1s\"";
    house.site.edit("keybroker.toml", "[kms.aws]", timeouts);
    // The callers stay on one connection.
    let limits = "[limits]\nconnection_age = \"1h\"";
    house.site.edit("keybroker.toml", "[limits]", limits);
    let admin = "[listen]\nadmin = \"127.0.0.1:0\"";
    house.site.edit("keybroker.toml", "[listen]", admin);
    let server = house.serve();
    let connection = house.connect(&server).await;
    let line = server.await_line("serving metrics and readiness in plain text");
    let admin = line
        .split_once("address=")
        .unwrap()
        .1
        .trim()
        .parse()
        .unwrap();

    let mut counts = BTreeMap::new();
    let (warming, lasting) = scaled((10, 35), (60, 1140));
    let mut levels = Vec::new();
    for span in [warming, lasting] {
        let until = Instant::now() + Duration::from_secs(span);
        let (end, ended) = watch::channel(());
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let dice = Dice::new(seed + 1 + caller);
            callers.spawn(call(connection.client(), dice, ended.clone()));
        }
        while Instant::now() < until {
            trouble(&mut dice, &kms, &arn);
            let span = 100 + dice.below(1900);
            tokio::time::sleep(Duration::from_millis(span)).await;
            mend(&kms, &arn);
            // A refusal is believed for a while.
            let span = dice.below(2000);
            tokio::time::sleep(Duration::from_millis(span)).await;
        }
        drop((end, ended));
        while let Some(done) = soon(callers.join_next()).await {
            for (outcome, count) in done.unwrap() {
                *counts.entry(outcome).or_insert(0_u64) += count;
            }
        }
        soon(recovered(connection.client())).await;
        let most = levels.first().copied();
        levels.push(soon(Level::at_rest(&server, admin, most)).await);
    }
    println!("{counts:#?} {levels:?}");
    assert!(counts[&("OK", String::new())] > 100 && counts.len() > 4);
    let grown = levels[1].kib.saturating_sub(levels[0].kib);
    figures::record("upstream", [("soak_grown_kib", grown)]);
    assert_eq!(server.stop(), Some(0));
}

/// Something that goes wrong with KMS.
fn trouble(dice: &mut Dice, kms: &FakeKms, arn: &Arn) {
    let region = kms.region(REGION);
    match dice.below(16) {
        0 => region.fail_all(Fault::Close),
        1 => region.fail_all(Fault::Code("KMSInternalException", 500)),
        2 => region.fail_all(Fault::Code("ThrottlingException", 400)),
        3 => region.fail_all(Fault::Delay(Duration::from_millis(150))),
        4 => region.fail_all(Fault::Drip(Duration::from_millis(1))),
        5 => region.fail_all(Fault::Garbage),
        6 => region.fail_all(Fault::HalfHead),
        7 => region.fail_all(Fault::Hang),
        8 => region.fail_all(Fault::Huge(4 << 20)),
        9 => region.fail_all(Fault::Page(502)),
        10 => region.fail_all(Fault::Reset),
        11 => region.fail_all(Fault::WrongKeyId),
        12 => region.throttle_above(5),
        13 => kms.disable(arn),
        14 => USES.iter().for_each(|one| kms.deny(BROKER, *one, arn)),
        _ => kms.schedule_deletion(arn),
    }
}

/// Everything right again.
fn mend(kms: &FakeKms, arn: &Arn) {
    kms.heal();
    kms.enable(arn);
    USES.iter().for_each(|one| kms.allow(BROKER, *one, arn));
}

/// Calls until `ended`; how often came what.
async fn call(
    mut client: Client,
    mut dice: Dice,
    ended: watch::Receiver<()>,
) -> BTreeMap<(&'static str, String), u64> {
    let mut counts = BTreeMap::new();
    let mut sealed: Vec<(u64, Bytes)> = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(40));
    while ended.has_changed().is_ok() {
        ticks.tick().await;
        let wanted = dice.below(12);
        let known = match sealed.len() {
            0 => None,
            count => sealed.get(dice.below(count as u64) as usize).cloned(),
        };
        let outcome = match known {
            Some((place, message)) if wanted < 6 => {
                let opened = soon(open(&mut client, place, message)).await;
                opened.map(|plaintext| assert_eq!(plaintext, text(place)))
            }
            Some((place, message)) if wanted == 6 => {
                let mut message = message.to_vec();
                *message.last_mut().unwrap() ^= 1;
                let opened = soon(open(&mut client, place, message.into())).await;
                assert!(opened.is_err(), "a damaged message opened");
                opened.map(drop)
            }
            _ => {
                let place = dice.below(PLACES);
                let mut request = Request::new(pb::EncryptRequest {
                    name: "keys/orders".into(),
                    plaintext: text(place),
                    encryption_context: context(place),
                    ..Default::default()
                });
                if wanted == 7 {
                    request.set_timeout(Duration::from_millis(1 + dice.below(50)));
                }
                let answer = soon(client.encrypt(request)).await;
                answer.map(|answer| {
                    sealed.truncate(31);
                    sealed.insert(0, (place, answer.into_inner().ciphertext));
                })
            }
        };
        let outcome = match outcome {
            Ok(()) => ("OK", String::new()),
            Err(status) => listed(&status),
        };
        *counts.entry(outcome).or_insert(0) += 1;
    }
    counts
}

async fn open(client: &mut Client, place: u64, ciphertext: Bytes) -> Result<Bytes, Status> {
    let request = pb::DecryptRequest {
        ciphertext,
        encryption_context: context(place),
        ..Default::default()
    };
    Ok(client.decrypt(request).await?.into_inner().plaintext)
}

/// What a failing KMS may bring upon callers.
fn listed(status: &Status) -> (&'static str, String) {
    let reason = Refusal::of(status).reason;
    let listed = match (status.code(), reason.as_str()) {
        (Code::Unavailable, "KMS_THROTTLED" | "KMS_UNAVAILABLE") => "UNAVAILABLE",
        (Code::ResourceExhausted, "OVERLOADED") => "RESOURCE_EXHAUSTED",
        (Code::FailedPrecondition, "KEY_DISABLED" | "KEY_PENDING_DELETION") => {
            "FAILED_PRECONDITION"
        }
        // The latter for answers of KMS that nobody can read.
        (Code::Internal, "KMS_ACCESS_DENIED" | "INTERNAL") => "INTERNAL",
        (Code::InvalidArgument, "CIPHERTEXT_INVALID") => "INVALID_ARGUMENT",
        // Whoever's clock was faster.
        (Code::DeadlineExceeded, _) => "DEADLINE_EXCEEDED",
        (Code::Cancelled, "") => "CANCELLED",
        _ => panic!("not listed: {status:?}"),
    };
    (listed, reason)
}

/// Waits until every place is served again.
async fn recovered(mut client: Client) {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for place in 0..PLACES {
        let request = || pb::EncryptRequest {
            name: "keys/orders".into(),
            plaintext: text(place),
            encryption_context: context(place),
            ..Default::default()
        };
        while client.encrypt(request()).await.is_err() {
            ticks.tick().await;
        }
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Level {
    tasks: u64,
    files: u64,
    kib: u64,
}

impl Level {
    /// When nothing is under way; not before it is down to about `most`.
    async fn at_rest(server: &Running, admin: SocketAddr, most: Option<Self>) -> Self {
        let mut ticks = tokio::time::interval(Duration::from_millis(250));
        loop {
            ticks.tick().await;
            let scrape = get(admin, "/metrics").await;
            let series = prometheus::parse(&scrape.body);
            let folder = format!("/proc/{}", server.id());
            let status = fs::read_to_string(format!("{folder}/status")).unwrap();
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = resident.unwrap().trim().strip_suffix(" kB").unwrap();
            let level = Self {
                tasks: series["keybroker_tasks"] as u64,
                files: fs::read_dir(format!("{folder}/fd")).unwrap().count() as u64,
                kib: kib.parse().unwrap(),
            };
            let entries = series["keybroker_key_cache_entries"];
            let flat = most.is_none_or(|most| {
                level.tasks <= most.tasks + POOLED
                    && level.files <= most.files + POOLED
                    && level.kib <= most.kib + MEMORY
            });
            if entries == 0.0 && flat {
                return level;
            }
        }
    }
}

fn context(place: u64) -> BTreeMap<String, String> {
    pairs([("place", place.to_string().as_str())])
}

fn text(place: u64) -> Bytes {
    format!("what belongs to {place}").into()
}

const REGION: &str = "eu-west-1";
const USES: [Operation; 2] = [Operation::Decrypt, Operation::GenerateDataKey];
const CALLERS: u64 = 8;
const PLACES: u64 = 40;
/// Connections to KMS that are kept for later: as many as there were calls at once.
const POOLED: u64 = 40;
/// In KiB.
const MEMORY: u64 = 8 << 10;
