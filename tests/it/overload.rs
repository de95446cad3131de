//! Several times as many large calls as the broker has places for.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tonic::Status;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;
use crate::support::figures;
use crate::support::scale::scaled;

/// Calls of half a mebibyte, each in a task of its own: as many at once as there are places, then
/// five times as many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_served_under_overload_is_served_as_ever() {
    let broker = Broker::start()
        .with(|setup| setup.limits.in_flight = PLACES)
        .await;
    let mut clients = Vec::new();
    for _ in 0..TIMES {
        clients.push(broker.caller(WEB).await);
    }
    let lasts = scaled(Duration::from_secs(2), Duration::from_secs(20));
    let _warm = load(&clients[..1], 1, lasts / 10).await;
    let (mut usual, mut over) = (Load::default(), Load::default());
    // In turn: what else the machine does shall be in both.
    for _ in 0..ROUNDS {
        usual.add(load(&clients[..1], PLACES, lasts / ROUNDS).await);
        over.add(load(&clients, PLACES, lasts / ROUNDS).await);
    }
    println!("{usual:?} {over:?}");

    assert!(over.refused > 0);
    let goodput = over.rate() / usual.rate();
    let p99 = over.p99().as_secs_f64() / usual.p99().as_secs_f64();
    figures::record("upstream", [("overload_large_goodput", goodput)]);
    figures::record("upstream", [("overload_large_p99_ratio", p99)]);
    // The clients are on the same two busy cores, so this looks for a collapse alone.
    assert!(goodput >= 0.4, "{goodput}");
    assert!(p99 <= 20.0, "{p99}");
}

/// What became of the calls.
#[derive(Default)]
struct Load {
    took: Vec<Duration>,
    refused: usize,
    lasted: Duration,
}

impl Load {
    fn add(&mut self, other: Self) {
        self.took.extend(other.took);
        self.took.sort_unstable();
        self.refused += other.refused;
        self.lasted += other.lasted;
    }

    fn rate(&self) -> f64 {
        self.took.len() as f64 / self.lasted.as_secs_f64()
    }

    fn p99(&self) -> Duration {
        self.took[self.took.len() * 99 / 100]
    }
}

impl std::fmt::Debug for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rate, p99, refused) = (self.rate(), self.p99(), self.refused);
        write!(f, "{rate:.0} calls/s, p99 {p99:?}, {refused} refused;")
    }
}

/// Has each of `clients` make so many calls at a time, again and again.
async fn load(clients: &[Client], at_once: usize, lasts: Duration) -> Load {
    let began = Instant::now();
    let callers = clients.iter().flat_map(|client| vec![client; at_once]);
    let callers = callers.map(|client| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let (mut took, mut refused) = (Vec::new(), 0);
            while began.elapsed() < lasts {
                let began = Instant::now();
                match call(&mut client).await {
                    Ok(()) => took.push(began.elapsed()),
                    Err(status) => {
                        let refusal = Refusal::of(&status);
                        assert_eq!(refusal.reason, "OVERLOADED", "{refusal:?}");
                        assert!(refusal.retry.is_some());
                        refused += 1;
                    }
                }
            }
            (took, refused)
        })
    });
    let mut load = Load::default();
    for caller in join_all(callers).await {
        let (took, refused) = caller.unwrap();
        load.took.extend(took);
        load.refused += refused;
    }
    load.lasted = began.elapsed();
    load
}

async fn call(client: &mut Client) -> Result<(), Status> {
    let request = encrypt("keys/orders", vec![0; 512 << 10]);
    soon(client.encrypt(request)).await.map(drop)
}

/// Places for calls under way, and how many make the usual load.
const PLACES: usize = 2;
/// Times the usual load.
const TIMES: usize = 5;
const ROUNDS: u32 = 5;
