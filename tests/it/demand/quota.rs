//! A quota of KMS, met by the real SDK in virtual time: nobody is throttled to speak of, and nobody
//! starves.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use keybroker::kms::Demand;
use keybroker::kms::Guarded;
use keybroker::kms::KeyRef;
use keybroker::kms::Kms as _;
use keybroker::kms::aws::Config;
use keybroker::message::EncryptionContext;
use keybroker::metrics::Metrics;
use keybroker::trace::Tracer;
use tokio::time::Instant;

use crate::harness::WEB;
use crate::harness::unwired::Unwired;
use crate::support::fake_kms::Counts;
use crate::support::fake_kms::FakeKms;
use crate::support::figures;
use crate::support::scale::scaled;

const REGION: &str = "eu-west-1";
/// Of the account, in calls a second.
const QUOTA: u32 = 50;

/// D-3: ten times the quota, most of it by one tenant. Once with a limit below the quota, and once
/// with one that is wrong by half.
#[tokio::test(start_paused = true)]
async fn ten_times_the_quota_is_shared_out_and_hardly_throttled() {
    let seconds = scaled(10, 60);
    let (below, above) = tokio::join!(storm(40, seconds), storm(75, seconds));
    let (mut worst_share, mut worst_fairness) = (0.0_f64, 1.0_f64);
    for (limit, counts) in [(40, below), (75, above)] {
        let all = sum(counts.values());
        let share = all.throttled as f64 / all.calls as f64;
        let fairness = jain(counts.values().map(|counts| counts.answered));
        println!("{limit}: {all:?}, fairness {fairness}");
        worst_share = worst_share.max(share);
        worst_fairness = worst_fairness.min(fairness);
        assert!(share <= 0.01, "{limit}: {all:?}");
        assert!(fairness >= 0.9, "{limit}: {counts:?}");
        assert!(all.answered >= 30 * seconds, "{limit}: {all:?}");
    }
    figures::record(
        "upstream",
        [
            ("quota_throttled_share", worst_share),
            ("quota_jain", worst_fairness),
        ],
    );
}

/// 500 calls a second for so long, of callers who wait a second.
async fn storm(requests_per_second: u32, seconds: usize) -> BTreeMap<Option<String>, Counts> {
    let fake = FakeKms::in_virtual_time();
    let key = KeyRef::Aws(fake.key(REGION));
    fake.region(REGION).throttle_above(QUOTA);
    let config = Config {
        requests_per_second,
        ..fake.config()
    };
    let aws = Arc::new(fake.aws());
    let guarded = Arc::new(Guarded::new(aws, &config, Metrics::unread(), Tracer::off()).unwrap());
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let mut calls = Vec::new();
    for number in 0..50 * seconds {
        ticks.tick().await;
        // A tenant each in turn, and in between always the same.
        let quiet = format!("quiet-{}", number % 9);
        for tenant in ["loud"; 8].into_iter().chain([quiet.as_str(); 2]) {
            let until = Instant::now() + Duration::from_secs(1);
            let demand = Demand::new(tenant.parse().unwrap(), 1, until);
            let pair = ("keybroker:tenant".to_owned(), tenant.to_owned());
            let context = EncryptionContext::new([pair]).unwrap();
            let (guarded, key) = (Arc::clone(&guarded), key.clone());
            calls.push(tokio::spawn(async move {
                let made = guarded.generate_data_key(&key, &context, &demand).await;
                drop(made);
            }));
        }
    }
    for call in join_all(calls).await {
        call.unwrap();
    }
    fake.counts(|call| call.tenant().map(str::to_owned))
}

/// A thousand tenants whose caches are cold come at once, and wait as long as any call may.
#[tokio::test(start_paused = true)]
async fn a_thousand_cold_tenants_are_all_served() {
    let fake = FakeKms::in_virtual_time();
    let arn = fake.key(REGION);
    fake.region(REGION).throttle_above(QUOTA);
    let tenants: String = (0..TENANTS)
        .map(|number| {
            format!(
                "[[tenant]]\nid = \"t{number}\"\n[[tenant.key]]\nid = \"orders\"\n\
                 kms = \"{arn}\"\nexternal_users = [\"{WEB}\"]\n"
            )
        })
        .collect();
    let config = Config {
        requests_per_second: 48,
        ..fake.config()
    };
    let broker = Unwired::start(&fake, &config, &tenants);
    let web = broker.caller(WEB);
    let began = Instant::now();
    let calls = (0..TENANTS).map(async |number| {
        let key = format!("tenants/t{number}/keys/orders");
        web.encrypt(&key, &[], PATIENCE).await.map(drop)
    });
    let outcomes = join_all(calls).await;
    let seconds = began.elapsed().as_secs_f64();
    let errors: HashMap<String, usize> = outcomes.iter().filter_map(|one| one.as_ref().err()).fold(
        HashMap::new(),
        |mut errors, status| {
            *errors.entry(status.to_string()).or_default() += 1;
            errors
        },
    );
    let counts = fake.counts(|call| call.tenant().map(str::to_owned));
    let all = sum(counts.values());
    let fairness = jain((0..TENANTS).map(|number| {
        let tenant = Some(format!("t{number}"));
        counts.get(&tenant).map_or(0, |counts| counts.answered)
    }));
    let share = all.throttled as f64 / all.calls as f64;
    figures::record(
        "upstream",
        [("cold_tenants_errors", errors.values().sum::<usize>())],
    );
    figures::record(
        "upstream",
        [
            ("cold_tenants_seconds", seconds),
            ("cold_tenants_jain", fairness),
            ("cold_tenants_throttled_share", share),
        ],
    );
    assert!(errors.is_empty(), "{errors:?} after {seconds} s: {all:?}");
    assert!(seconds <= 30.0, "{seconds}");
    assert!(fairness >= 0.9, "{fairness}");
    assert!(share <= 0.01, "{all:?}");
    assert_eq!(all.answered, TENANTS);
}

/// Jain's index: 1 when all have the same, 1 ÷ their number when one has everything.
fn jain(shares: impl Iterator<Item = usize>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for share in shares.map(|share| share as f64) {
        count += 1.0;
        sum += share;
        squares += share * share;
    }
    sum * sum / (count * squares)
}

fn sum<'a>(counts: impl Iterator<Item = &'a Counts>) -> Counts {
    counts.fold(Counts::default(), |all, one| Counts {
        calls: all.calls + one.calls,
        abandoned: all.abandoned + one.abandoned,
        answered: all.answered + one.answered,
        broken: all.broken + one.broken,
        refused: all.refused + one.refused,
        throttled: all.throttled + one.throttled,
    })
}

const TENANTS: usize = 1000;
/// Of a call, whatever its client's deadline.
const PATIENCE: Duration = Duration::from_secs(30);
