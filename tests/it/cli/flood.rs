//! What a server keeps of answers that have no measure.

use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use keybroker::grpc::pb;

use super::house::House;
use super::site::Running;
use crate::harness::Client;
use crate::harness::soon;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::figures;

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_a_hundred_megabytes_take_no_memory() {
    let region = "eu-central-1";
    let kms = FakeKms::start().await;
    let house = House::new(&kms.key(region));
    house.use_kms(&kms);
    let server = house.serve();
    let connection = house.connect(&server).await;
    // As many connections to KMS, and data keys in the cache, as there will be.
    for n in 0..ROUNDS {
        assert_eq!(round(&connection.client(), ("good", n)).await, AT_ONCE);
    }
    let before = Memory::of(&server);

    kms.region(region).fail_all(Fault::Huge(100 << 20));
    for n in 0..ROUNDS {
        assert_eq!(round(&connection.client(), ("huge", n)).await, 0);
    }
    soon(kms.until(|log| log.iter().all(|call| call.outcome.is_some()))).await;
    let floods = kms.counts(|call| {
        call.context
            .get("round")
            .is_some_and(|round| round.starts_with("huge"))
    })[&true];
    assert!(
        floods.calls >= AT_ONCE && floods.abandoned == floods.calls,
        "{floods:?}"
    );
    let after = Memory::of(&server);
    let grown = after.resident.saturating_sub(before.resident);
    let peak = after.peak.saturating_sub(before.peak);
    assert!(grown <= 2 << 10 && peak <= 2 << 10, "{before:?} {after:?}");
    figures::record("upstream", [("huge_answers_rss_kib", grown)]);

    kms.heal();
    let good = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        while round(&connection.client(), ("again", 0)).await < AT_ONCE {
            ticks.tick().await;
        }
    };
    soon(good).await;
    assert_eq!(server.stop(), Some(0));
}

/// Calls that need a data key each, at once; how many get one.
async fn round(client: &Client, (what, n): (&str, usize)) -> usize {
    let calls = (0..AT_ONCE).map(|place| {
        let mut client = client.clone();
        let pair = ("round".to_owned(), format!("{what} {n} {place}"));
        let request = pb::EncryptRequest {
            name: "keys/orders".into(),
            plaintext: "text".into(),
            encryption_context: [pair].into(),
            ..Default::default()
        };
        async move { soon(client.encrypt(request)).await.is_ok() }
    });
    let done = join_all(calls).await;
    done.into_iter().filter(|done| *done).count()
}

/// What a process has in memory now, and had at most, in KiB.
#[derive(Debug)]
struct Memory {
    resident: u64,
    peak: u64,
}

impl Memory {
    fn of(server: &Running) -> Self {
        let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.unwrap().trim().strip_suffix(" kB");
            kib.unwrap().parse().unwrap()
        };
        Self {
            resident: field("VmRSS:"),
            peak: field("VmHWM:"),
        }
    }
}

const AT_ONCE: usize = 4;
const ROUNDS: usize = 4;
