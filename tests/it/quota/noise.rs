//! One tenant far over what it may spend, and what its neighbor notices of that.
//!
//! Nearly all of the noise is refused and the neighbor's data key is in the cache: of turns at KMS
//! `demand::fairness` tells.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::GLOBEX;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::pairs;
use crate::harness::until;
use crate::support::figures;
use crate::support::scale::scaled;

/// acme may spend 100 units a second, which are ten calls with a context that nobody used before;
/// it makes a thousand and more. globex makes 200 a second, in blocks with and without that noise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_far_over_its_share_costs_its_neighbor_nothing() {
    let broker = Broker::start()
        .with(|setup| {
            let share = TENANTS.replacen("id = \"acme\"", "id = \"acme\"\nrate = 100", 1);
            setup.tenants = share;
        })
        .await;
    let noise = Arc::new(Noise::default());
    let mut noisy = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let client = broker.caller(WEB).await;
        for place in 0..PLACES {
            let (noise, client) = (Arc::clone(&noise), client.clone());
            noisy.spawn(noise.make(client, format!("{connection} {place}")));
        }
    }
    let mut steady = broker.caller(GLOBEX).await;
    let (mut quiet, mut loud) = (Vec::new(), Vec::new());
    let mut spent = Duration::ZERO;
    block(&mut steady).await;
    // In turn and not for long: what else the machine does shall be in both.
    for _ in 0..scaled(10, 60) {
        quiet.extend(block(&mut steady).await);
        noise.on.store(true, Ordering::Relaxed);
        let began = Instant::now();
        loud.extend(block(&mut steady).await);
        spent += began.elapsed();
        noise.on.store(false, Ordering::Relaxed);
        until(|| noise.under_way.load(Ordering::Relaxed) == 0).await;
    }
    noisy.shutdown().await;
    let errors = [&quiet, &loud].map(|calls| calls.iter().filter(|call| call.is_none()).count());
    let errors = errors[0] + errors[1];
    let ratio = p99(loud).as_secs_f64() / p99(quiet).as_secs_f64();
    let calls = noise.calls.load(Ordering::Relaxed);
    let rate = calls as f64 / spent.as_secs_f64();
    figures::record("upstream", [("quota_neighbour_errors", errors)]);
    figures::record("upstream", [("quota_neighbour_p99_ratio", ratio)]);
    figures::record("upstream", [("quota_neighbour_calls_per_second", rate)]);
    println!("p99 {ratio:.2} times as long beside {rate:.0} calls/s of noise");
    assert_eq!(errors, 0);
    let refused = noise.refused.load(Ordering::Relaxed);
    assert!(refused > calls / 2, "{refused} of {calls}");
    // The clients are on the same two busy cores: what is no matter of luck.
    assert!(ratio <= scaled(10.0, 2.0), "{ratio}");
    assert!(rate >= scaled(200.0, 1000.0), "{rate}");
}

/// Calls with a context of their own, as fast as they are answered.
#[derive(Default)]
struct Noise {
    on: AtomicBool,
    under_way: AtomicUsize,
    calls: AtomicUsize,
    refused: AtomicUsize,
}

impl Noise {
    async fn make(self: Arc<Self>, mut client: Client, who: String) {
        for n in 0.. {
            while !self.on.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            self.under_way.fetch_add(1, Ordering::Relaxed);
            let mut request = encrypt("keys/orders", "x");
            let context = format!("{who} {n}");
            request.encryption_context = pairs([("noise", context.as_str())]);
            if let Err(status) = client.encrypt(request).await {
                assert_eq!(reason::<()>(Err(status)), "RATE_LIMITED");
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
            self.calls.fetch_add(1, Ordering::Relaxed);
            self.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// How long the calls of a steady tenant took in a block at a pace of its own; none for those that
/// failed.
async fn block(client: &mut Client) -> Vec<Option<Duration>> {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut calls = Vec::new();
    for _ in 0..BLOCK {
        ticks.tick().await;
        let began = Instant::now();
        let answer = client.encrypt(encrypt("keys/orders", "x")).await;
        calls.push(answer.ok().map(|_| began.elapsed()));
    }
    calls
}

fn p99(calls: Vec<Option<Duration>>) -> Duration {
    let mut took: Vec<Duration> = calls.into_iter().flatten().collect();
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

/// Calls in a block.
const BLOCK: usize = 100;
const CONNECTIONS: usize = 2;
/// Calls at a time on one of them.
const PLACES: usize = 50;
