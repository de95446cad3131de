//! What the time of a tenant's call tells about another tenant's part of the cache: nothing, by
//! Welch's t-test on the medians of blocks of calls.

use std::time::Instant;

use keybroker::datakeys::Patience;
use keybroker::datakeys::Scope;
use keybroker::policy::Permit;
use tokio::runtime::Builder;

use super::Figure;
use super::scene;
use super::scene::Plan;
use super::scene::Random;
use super::scene::Scene;

/// The other tenant's data key comes or goes before each.
const BLOCKS: usize = 1_000;
/// Calls of a block that are timed.
const HITS: usize = 100;
const MISSES: usize = 20;
/// Beyond this, a difference is not chance (dudect).
const BOUND: f64 = 4.5;
/// The observer and the observed, with the same key name and context but for the tenant.
const OBSERVER: usize = 0;
const OBSERVED: usize = 1;

pub fn measure() -> Vec<Figure> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let plan = Plan {
        tenants: 2,
        ..Plan::default()
    };
    let scene = Scene::new(scene::manual(), &plan);
    let hits = runtime.block_on(observe(&scene, Call::Hit));
    let misses = runtime.block_on(observe(&scene, Call::Miss));
    vec![
        Figure::bound("foreign_hit_timing_t", hits, BOUND),
        Figure::bound("foreign_miss_timing_t", misses, BOUND),
    ]
}

/// What the observer times of its own.
#[derive(Clone, Copy)]
enum Call {
    Hit,
    Miss,
}

async fn observe(scene: &Scene, call: Call) -> f64 {
    let mut random = Random(7);
    let own = scene.permit(OBSERVER);
    let other = scene.permit(OBSERVED);
    let calls = match call {
        Call::Hit => HITS,
        Call::Miss => MISSES,
    };
    let mut blocks = Vec::with_capacity(BLOCKS);
    for _ in 0..BLOCKS {
        // Both ways the same work is done, in another order.
        let cached = random.below(2) == 0;
        if cached {
            forget(scene, OBSERVED).await;
            seal(scene, &other).await;
        } else {
            seal(scene, &other).await;
            forget(scene, OBSERVED).await;
        }
        let mut times = Vec::with_capacity(calls);
        // The first calls have the order of that work in the machine's own caches.
        for call_number in 0..2 * calls {
            if let Call::Miss = call {
                forget(scene, OBSERVER).await;
            }
            let begun = Instant::now();
            seal(scene, &own).await;
            let time = begun.elapsed().as_nanos() as f64;
            if call_number >= calls {
                times.push(time);
            }
        }
        blocks.push((cached, super::median(times)));
    }
    welch(&blocks)
}

async fn seal(scene: &Scene, permit: &Permit) {
    drop(
        scene
            .data_keys
            .sealing(permit, 1, &Patience::default())
            .await
            .unwrap(),
    );
}

async fn forget(scene: &Scene, tenant: usize) {
    let tenant = format!("tenant-{tenant:02}").parse().unwrap();
    scene.data_keys.purge(&Scope::Tenant(tenant)).await;
}

/// The absolute t of the two classes, without the slowest twentieth: interruptions.
fn welch(blocks: &[(bool, f64)]) -> f64 {
    let mut sorted: Vec<f64> = blocks.iter().map(|(_, time)| *time).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let crop = sorted[sorted.len() * 19 / 20];
    let class = |of: bool| {
        let class: Vec<f64> = blocks
            .iter()
            .filter(|(cached, time)| *cached == of && *time <= crop)
            .map(|(_, time)| *time)
            .collect();
        let count = class.len() as f64;
        let mean = class.iter().sum::<f64>() / count;
        let variance = class.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count)
    };
    let ((one, spread), (two, other_spread)) = (class(true), class(false));
    ((one - two) / (spread + other_spread).sqrt()).abs()
}
