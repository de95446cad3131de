//! A look-up among a million entries beside one among ten.

use std::hint::black_box;
use std::time::Instant;

use futures_util::FutureExt as _;
use keybroker::datakeys::Patience;
use keybroker::policy::Permit;

use super::Figure;
use super::median;
use super::memory::roomy;
use super::scene;
use super::scene::Plan;
use super::scene::Random;
use super::scene::Scene;
use super::steady::runtime_of;

/// Entries that seal; each has one that opens beside it.
const MANY: usize = 500_000;
const FEW: usize = 10;
const ROUNDS: usize = 301;
const REPEATS: usize = 100;
/// Fewer than there are entries, because permits are large too.
const RANDOM: usize = 50_000;

pub fn measure() -> Vec<Figure> {
    let runtime = runtime_of(tokio::runtime::Builder::new_current_thread());
    let _entered = runtime.enter();
    let [many, few] = [MANY, FEW].map(|contexts| {
        let plan = Plan {
            config: roomy(),
            ..Plan::default()
        };
        let scene = Scene::new(scene::manual(), &plan);
        runtime.block_on(async {
            for n in 0..contexts {
                let permit = scene.permit(n);
                scene
                    .data_keys
                    .sealing(&permit, 1, &Patience::default())
                    .await
                    .unwrap();
            }
        });
        scene.data_keys.sweep();
        scene
    });

    let permits: Vec<Permit> = (0..FEW).map(|n| many.permit(n)).collect();
    let round = |scene: &Scene| {
        let started = Instant::now();
        for _ in 0..REPEATS {
            permits.iter().for_each(|permit| look_up(scene, permit));
        }
        started.elapsed().as_secs_f64()
    };
    let ratios = (0..ROUNDS).map(|n| match n % 2 {
        0 => round(&many) / round(&few),
        _ => 1.0 / (round(&few) / round(&many)),
    });
    let ratio = median(ratios.collect());

    let mut random = Random(1);
    let permits: Vec<Permit> = (0..RANDOM)
        .map(|_| many.permit(random.below(MANY)))
        .collect();
    let started = Instant::now();
    permits.iter().for_each(|permit| look_up(&many, permit));
    let nanoseconds = started.elapsed().as_secs_f64() * 1e9 / RANDOM as f64;
    vec![
        Figure::bound("lookup_million_ratio", ratio, 1.5),
        Figure::shown("lookup_million_random_ns", nanoseconds),
    ]
}

/// A hit: it does not wait.
fn look_up(scene: &Scene, permit: &Permit) {
    thread_local!(static PATIENCE: Patience = Patience::default());
    let hit = PATIENCE.with(|patience| {
        let permit = black_box(permit);
        scene.data_keys.sealing(permit, 1, patience).now_or_never()
    });
    black_box(hit.unwrap().unwrap());
}
