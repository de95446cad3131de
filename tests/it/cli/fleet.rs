//! Replicas that start at the same time, with much to ask KMS for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use keybroker::datakeys::warm;
use keybroker::datakeys::warm::Purpose;
use keybroker::datakeys::warm::Recent;
use keybroker::grpc::pb;
use keybroker::message::EncryptionContext;
use keybroker::name::KeyName;
use tokio::task::JoinSet;
use tonic::IntoRequest as _;

use super::house::House;
use crate::harness::Client;
use crate::harness::rpcs::pairs;
use crate::support::dice::Dice;
use crate::support::fake_kms::FakeKms;
use crate::support::figures;
use crate::support::scale::scaled;

/// D-7: what was hot is asked for by the start and by callers at once, and KMS throttles nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_restarts_stays_within_its_budget_at_kms() {
    let (hot, limit) = scaled((600, 100), (10_000, 500));
    let kms = FakeKms::start().await;
    let arn = kms.key(REGION);
    kms.region(REGION).throttle_above(REPLICAS * limit);
    let recent: Vec<Recent> = (0..hot).map(recent).collect();
    let houses: Vec<House> = (0..REPLICAS)
        .map(|_| {
            let house = House::new(&arn);
            house.use_kms(&kms);
            let site = &house.site;
            site.edit("tenants.toml", "\"5s\"", "\"10m\"");
            let budget = format!("[kms.aws]\nrequests_per_second = {limit}");
            site.edit("keybroker.toml", "[kms.aws]", &budget);
            let cache = format!(
                "[cache]\nwarm_file = \"warm\"\nwarm_rate = {limit}\ntenant_entries = 100000\n\
                 tenant_bytes = 67108864\n\
                 [memory]"
            );
            site.edit("keybroker.toml", "[memory]", &cache);
            warm::write(&site.path("warm"), &warm::encode(&recent)).unwrap();
            house
        })
        .collect();

    let servers: Vec<_> = houses.iter().map(House::serve).collect();
    let mut callers = JoinSet::new();
    for (seed, (house, server)) in (0..).zip(houses.iter().zip(&servers)) {
        let connection = house.connect(server).await;
        let orders = Arc::new(Orders::shuffled(hot, seed));
        for _ in 0..CALLERS {
            callers.spawn(call(connection.client(), Arc::clone(&orders)));
        }
    }
    while let Some(done) = callers.join_next().await {
        done.unwrap();
    }

    let counts = kms.counts(|_| ()).remove(&()).unwrap();
    let mut seconds = BTreeMap::new();
    for call in kms.log() {
        *seconds.entry(call.at.as_secs()).or_insert(0_u32) += 1;
    }
    let budget = f64::from(REPLICAS * limit);
    let peak = seconds.values().copied().max().map(f64::from).unwrap() / budget;
    println!("{counts:?}, {seconds:?}");
    figures::record("upstream", [("fleet_restart_peak_share", peak)]);
    assert_eq!((counts.throttled, counts.refused), (0, 0));
    // Nothing is asked for twice, by the start and by a caller; each start asks about the key once.
    assert!(counts.calls <= REPLICAS as usize * (hot + 1), "{counts:?}");
    // A fifth of a second's worth may go at once.
    assert!(peak <= 1.2, "{peak}");
    for server in servers {
        assert_eq!(server.stop(), Some(0));
    }
}

/// What there is to call for, in an order of its own.
struct Orders {
    numbers: Vec<usize>,
    next: AtomicUsize,
}

impl Orders {
    fn shuffled(count: usize, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut numbers: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            numbers.swap(last, dice.below(last as u64 + 1) as usize);
        }
        Self {
            numbers,
            next: AtomicUsize::new(0),
        }
    }
}

/// Calls for the next of `orders` until there is none.
async fn call(mut client: Client, orders: Arc<Orders>) {
    while let Some(number) = orders
        .numbers
        .get(orders.next.fetch_add(1, Ordering::Relaxed))
    {
        let mut request = pb::EncryptRequest {
            name: "keys/orders".to_owned(),
            plaintext: "x".into(),
            encryption_context: pairs([("order", &number.to_string())]),
            ..Default::default()
        }
        .into_request();
        request.set_timeout(Duration::from_secs(30));
        client.encrypt(request).await.unwrap();
    }
}

fn recent(number: usize) -> Recent {
    let pairs = [
        ("keybroker:key", "orders".to_owned()),
        ("keybroker:tenant", "acme".to_owned()),
        ("order", number.to_string()),
    ];
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value));
    Recent {
        key: KeyName {
            tenant: "acme".parse().unwrap(),
            key: "orders".parse().unwrap(),
        },
        context: EncryptionContext::new(pairs).unwrap(),
        used: Timestamp::now(),
        purpose: Purpose::Seal,
    }
}

const REGION: &str = "eu-west-1";
const REPLICAS: u32 = 3;
/// Of each replica, at once.
const CALLERS: usize = 64;
