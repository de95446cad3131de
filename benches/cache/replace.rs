//! Does anybody notice that data keys are replaced?

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;
use keybroker::clock::System;
use keybroker::datakeys::Patience;
use keybroker::datakeys::Source;
use keybroker::policy::Permit;
use tokio::runtime::Runtime;

use super::Figure;
use super::median;
use super::scene::Plan;
use super::scene::Scene;

const ROUNDS: usize = 12;
const SPAN: Duration = Duration::from_millis(1500);
const TASKS: usize = 4;
/// So many that more than one call in a thousand would wait, if those at a replacement did.
const KEYS: usize = 64;
/// So many calls, then a pause: a runtime that has no time to spare measures the machine.
const BURST: usize = 20;
const PAUSE: Duration = Duration::from_millis(1);
const SHORT_LIVED: &str = "cache = { max_age = \"1s\", max_messages = 4_294_967_296 }";
const LONG_LIVED: &str = "cache = { max_age = \"1h\", max_messages = 4_294_967_296 }";
const LATENCY: Duration = Duration::from_millis(5);

/// The same callers use keys that live for a second and keys that live for an hour, by turns.
pub fn measure() -> Vec<Figure> {
    let runtime = Runtime::new().unwrap();
    let [replaced, kept] = [SHORT_LIVED, LONG_LIVED].map(|key| {
        let plan = Plan {
            key,
            latency: LATENCY,
            ..Plan::default()
        };
        Arc::new(Scene::new(Arc::new(System), &plan))
    });
    let mut waits = 0;
    let mut measure = |scene: &Arc<Scene>| {
        let round = runtime.block_on(round(scene));
        waits += round.waits;
        round.p999()
    };
    let mut with = Vec::new();
    let mut ratios = Vec::new();
    for n in 0..ROUNDS {
        let (replaced, kept) = match n % 2 {
            0 => (measure(&replaced), measure(&kept)),
            _ => {
                let kept = measure(&kept);
                (measure(&replaced), kept)
            }
        };
        with.push(replaced);
        ratios.push(replaced / kept);
    }
    let fetched = replaced.kms.calls() as usize;
    let expected = ROUNDS * KEYS;
    assert!(fetched > expected, "{fetched} keys in {ROUNDS} rounds");
    vec![
        Figure::bound("replace_p999_ratio", median(ratios), 1.2),
        Figure::shown("replace_p999_us", median(with)),
        Figure::shown("replace_waits", f64::from(waits)),
    ]
}

/// Nanoseconds of each call, and how many waited for KMS.
#[derive(Default)]
struct Round {
    spans: Vec<u64>,
    waits: u32,
}

impl Round {
    fn p999(mut self) -> f64 {
        self.spans.sort_unstable();
        self.spans[self.spans.len() * 999 / 1000] as f64 / 1e3
    }
}

async fn round(scene: &Arc<Scene>) -> Round {
    // The keys of the last round are too old.
    let fresh = (0..KEYS).map(async |n| {
        scene
            .data_keys
            .sealing(&scene.permit(n), 1, &Patience::default())
            .await
            .unwrap();
    });
    join_all(fresh).await;
    let sweeper = tokio::spawn({
        let scene = Arc::clone(scene);
        async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            loop {
                tick.tick().await;
                scene.data_keys.sweep();
            }
        }
    });
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| tokio::spawn(seal(Arc::clone(scene))))
        .collect();
    let mut round = Round::default();
    for task in tasks {
        let one = task.await.unwrap();
        round.spans.extend(one.spans);
        round.waits += one.waits;
    }
    sweeper.abort();
    round
}

async fn seal(scene: Arc<Scene>) -> Round {
    let permits: Vec<Permit> = (0..KEYS).map(|n| scene.permit(n)).collect();
    let plaintext = [0x5a; 1024];
    let mut round = Round::default();
    let begun = Instant::now();
    let mut turns = permits.iter().cycle();
    while begun.elapsed() < SPAN {
        for permit in turns.by_ref().take(BURST) {
            let started = Instant::now();
            let reserved = scene
                .data_keys
                .sealing(permit, 1024, &Patience::default())
                .await
                .unwrap();
            let waited = matches!(reserved.source, Source::Coalesced | Source::Miss(_));
            reserved.seal(b"", &plaintext).unwrap();
            round.spans.push(started.elapsed().as_nanos() as u64);
            round.waits += u32::from(waited);
        }
        tokio::time::sleep(PAUSE).await;
    }
    round
}
