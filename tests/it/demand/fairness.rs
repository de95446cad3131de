//! One tenant that asks KMS for a hundred times its share, and what others notice of that who need
//! new data keys as well.

use std::sync::Arc;
use std::time::Duration;

use keybroker::error::Error;
use keybroker::kms::aws::Config;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::unwired::Caller;
use crate::harness::unwired::Unwired;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::figures;
use crate::support::scale::scaled;

/// At the rate that a broker has by default, and with a KMS that is as fast as it gets: waiting for
/// a turn makes the most of a difference there.
#[tokio::test(start_paused = true)]
async fn a_tenant_far_over_its_share_of_kms_costs_others_no_call_and_little_time() {
    let quiet = Scene::set().play(Noise::Off).await;
    let loud = Scene::set().play(Noise::On).await;
    let ratio = loud.p99().as_secs_f64() / quiet.p99().as_secs_f64();
    let errors = quiet.errors + loud.errors;
    let asked = loud.asked as f64 / span().as_secs_f64();
    println!(
        "p99 {:?}, and {:?} beside {asked} calls/s: {ratio:.2} times as long",
        quiet.p99(),
        loud.p99()
    );
    figures::record("upstream", [("noisy_neighbour_errors", errors)]);
    figures::record("upstream", [("noisy_neighbour_p99_ratio", ratio)]);
    figures::record("upstream", [("noisy_neighbour_calls_per_second", asked)]);
    assert_eq!(errors, 0);
    assert!(ratio <= 1.5, "{ratio}");
    for played in [&quiet, &loud] {
        assert_eq!(played.waited, 0, "for a successor");
        let all = QUIET * KEYS;
        assert!(played.successors >= all, "{} of {all}", played.successors);
    }
    // It had what the others left, and the rate was used up: they have felt all that there was.
    let rate = loud.answered as f64 / span().as_secs_f64();
    assert!((0.9..=1.1).contains(&(rate / f64::from(RATE))), "{rate}");
    assert!(
        asked >= 99.0 * f64::from(RATE) / (QUIET + 1) as f64,
        "{asked}"
    );
}

#[derive(PartialEq)]
enum Noise {
    Off,
    On,
}

/// What came of it.
struct Played {
    /// How long the quiet tenants' calls with new contexts took.
    took: Vec<Duration>,
    /// Their calls that failed.
    errors: usize,
    /// Their calls with contexts in use that were not served at once.
    waited: usize,
    /// Data keys that were replaced ahead of time.
    successors: usize,
    /// Calls of the noisy one.
    asked: usize,
    /// Data keys that KMS has made.
    answered: usize,
}

impl Played {
    fn p99(&self) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        took[took.len() * 99 / 100]
    }
}

/// A broker of one noisy tenant and [`QUIET`] others, all in one account.
struct Scene {
    fake: FakeKms,
    broker: Unwired,
}

impl Scene {
    fn set() -> Self {
        let fake = FakeKms::in_virtual_time();
        fake.fail(Operation::GenerateDataKey, Fault::Delay(FASTEST));
        let tenants = (0..=QUIET).map(|number| {
            let (arn, user) = (fake.key("eu-west-1"), user(number));
            format!(
                "[[tenant]]\nid = \"t{number}\"\n\
                 [[tenant.key]]\nid = \"new\"\nkms = \"{arn}\"\nusers = [\"{user}\"]\n\
                 [[tenant.key]]\nid = \"old\"\nkms = \"{arn}\"\nusers = [\"{user}\"]\n\
                 cache = {{ max_age = \"10s\" }}\n"
            )
        });
        let config = Config {
            endpoint: Some(fake.endpoint()),
            ..Config::default()
        };
        let broker = Unwired::start(&fake, &config, &tenants.collect::<String>());
        Self { fake, broker }
    }

    async fn play(self, noise: Noise) -> Played {
        let until = Instant::now() + span();
        let noisy = Arc::new(self.broker.caller(&user(0)));
        let noisy = tokio::spawn(async move {
            match noise {
                Noise::Off => 0,
                Noise::On => make_noise(noisy, until).await,
            }
        });
        let mut quiet = JoinSet::new();
        for number in 1..=QUIET {
            let caller = Arc::new(self.broker.caller(&user(number)));
            // Not all at once.
            let offset = EACH / QUIET as u32 * number as u32;
            quiet.spawn(need_new_keys(Arc::clone(&caller), offset, until));
            quiet.spawn(use_old_keys(caller, offset, until));
        }
        let mut played = Played {
            took: Vec::new(),
            errors: 0,
            waited: 0,
            successors: 0,
            asked: 0,
            answered: 0,
        };
        for (use_of, outcomes) in quiet.join_all().await {
            played.errors += outcomes.iter().filter(|one| one.is_err()).count();
            let took = outcomes.into_iter().flatten();
            match use_of {
                Use::New => played.took.extend(took),
                // The first makes the key.
                Use::Old => played.waited += took.skip(KEYS).filter(|took| !took.is_zero()).count(),
            }
        }
        played.asked = noisy.await.unwrap();
        played.successors = self.broker.metrics.refreshes().done as usize;
        let counts = self.fake.counts(|_| ());
        played.answered = counts[&()].answered;
        played
    }
}

enum Use {
    New,
    Old,
}

type Outcomes = Vec<Result<Duration, Error>>;

/// A call with a context of its own each time.
async fn need_new_keys(caller: Arc<Caller>, offset: Duration, until: Instant) -> (Use, Outcomes) {
    let mut calls = JoinSet::new();
    let mut ticks = tokio::time::interval_at(Instant::now() + offset, EACH);
    for number in 0.. {
        if ticks.tick().await >= until {
            break;
        }
        let caller = Arc::clone(&caller);
        calls.spawn(async move { timed(&caller, "keys/new", number).await });
    }
    (Use::New, calls.join_all().await)
}

/// Calls with the same few contexts all the time.
async fn use_old_keys(caller: Arc<Caller>, offset: Duration, until: Instant) -> (Use, Outcomes) {
    let mut outcomes = Vec::new();
    let mut ticks = tokio::time::interval_at(Instant::now() + offset, Duration::from_millis(100));
    while ticks.tick().await < until {
        for number in 0..KEYS {
            outcomes.push(timed(&caller, "keys/old", number).await);
        }
    }
    (Use::Old, outcomes)
}

async fn timed(caller: &Caller, key: &str, table: usize) -> Result<Duration, Error> {
    let began = Instant::now();
    let table = table.to_string();
    let sealed = caller.encrypt(key, &[("table", &table)], PATIENCE).await;
    sealed.map(|_| began.elapsed())
}

/// New contexts at a hundred times the tenant's share of the rate. How many.
async fn make_noise(caller: Arc<Caller>, until: Instant) -> usize {
    let mut calls = JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let at_once = RATE as usize / (QUIET + 1);
    let mut asked = 0;
    while ticks.tick().await < until {
        for _ in 0..at_once {
            asked += 1;
            let caller = Arc::clone(&caller);
            calls.spawn(async move { drop(timed(&caller, "keys/new", asked).await) });
        }
        while calls.try_join_next().is_some() {}
    }
    calls.shutdown().await;
    asked
}

fn user(number: usize) -> String {
    format!("spiffe://prod.example/tenant/t{number}/sa/web")
}

fn span() -> Duration {
    Duration::from_secs(scaled(12, 120))
}

/// Requests a second, by default.
const RATE: u32 = 500;
/// An answer of KMS: 50 to 300 ms are usual.
const FASTEST: Duration = Duration::from_millis(50);
/// Tenants beside the noisy one.
const QUIET: usize = 9;
/// Between two calls of a quiet tenant that need a data key: with the successors of those in use,
/// half its share.
const EACH: Duration = Duration::from_millis(40);
/// Data keys in use of a quiet tenant.
const KEYS: usize = 5;
/// Of all callers.
const PATIENCE: Duration = Duration::from_secs(5);
