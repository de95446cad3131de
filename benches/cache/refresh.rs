//! Many data keys fetched in one second: do their successors come in one second too, and does
//! anybody wait for one?

use std::time::Duration;

use keybroker::datakeys::Config;
use keybroker::datakeys::Patience;
use keybroker::datakeys::Source;
use keybroker::policy::Permit;

use super::Figure;
use super::scene;
use super::scene::Plan;
use super::scene::Scene;
use super::steady::runtime_of;

const KEYS: usize = 10_000;
/// Each key is used once in so many seconds.
const PERIOD: usize = 5;
const MAX_AGE: usize = 60;
/// In these seconds of its life a key is succeeded: at 70 % to 90 % of its age.
const WINDOW: std::ops::Range<usize> = 42..54;
const SECONDS: usize = 3 * MAX_AGE;

pub fn measure() -> Vec<Figure> {
    let clock = scene::manual();
    let plan = Plan {
        key: "cache.max_age = \"60s\"",
        config: Config {
            tenant_entries: 1_000_000,
            tenant_bytes: 1 << 30,
            entries: 1_000_000,
            ..Config::default()
        },
        ..Plan::default()
    };
    let scene = Scene::new(clock.clone(), &plan);
    let permits: Vec<Permit> = (0..KEYS).map(|n| scene.permit(n)).collect();
    let runtime = runtime_of(tokio::runtime::Builder::new_current_thread());
    let (per_second, misses) = runtime.block_on(async {
        for permit in &permits {
            scene
                .data_keys
                .sealing(permit, 1, &Patience::default())
                .await
                .unwrap();
            clock.advance(Duration::from_secs(1) / KEYS as u32);
        }
        assert_eq!(scene.kms.calls(), KEYS as u64);

        let mut misses = 0;
        let mut per_second = Vec::new();
        for second in 0..SECONDS {
            let before = scene.kms.calls();
            for permit in permits.iter().skip(second % PERIOD).step_by(PERIOD) {
                let reserved = scene
                    .data_keys
                    .sealing(permit, 1, &Patience::default())
                    .await
                    .unwrap();
                match reserved.source {
                    Source::Hit | Source::Stale => {}
                    Source::Coalesced | Source::Miss(_) => misses += 1,
                }
                clock.advance(Duration::from_secs(1) / (KEYS / PERIOD) as u32);
                tokio::task::yield_now().await;
            }
            scene.data_keys.sweep();
            // A second is long: what has begun in it ends in it.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            per_second.push(scene.kms.calls() - before);
        }
        (per_second, misses)
    });
    // The first generation's successors alone: later ones are spread over twice the window.
    let first = &per_second[..MAX_AGE];
    let peak = *first.iter().max().unwrap() as f64;
    let mean = first.iter().sum::<u64>() as f64 / WINDOW.len() as f64;
    assert!(
        first.iter().sum::<u64>() >= KEYS as u64,
        "each key has a successor"
    );
    vec![
        Figure::bound("refresh_peak_to_mean", peak / mean, 3.0),
        Figure::bound("refresh_foreground_misses", f64::from(misses), 0.0),
    ]
}
