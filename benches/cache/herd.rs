//! A thousand callers miss the same data key at once.

use keybroker::datakeys::Patience;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::Figure;
use super::scene;
use super::scene::Plan;
use super::scene::Random;
use super::scene::Scene;

const CALLERS: usize = 1_000;
const ROUNDS: usize = 20;
const CANCELLED_ROUNDS: usize = 100;
/// Whoever has not ended by then never will.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn measure() -> Vec<Figure> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let scene = Arc::new(Scene::new(scene::manual(), &Plan::default()));
    let mut random = Random(1);
    let mut worst = Outcome::default();
    let mut worst_cancelled = Outcome::default();
    for round in 0..ROUNDS {
        let outcome = runtime.block_on(herd(&scene, round, None));
        worst.raise(&outcome);
    }
    for round in ROUNDS..ROUNDS + CANCELLED_ROUNDS {
        let outcome = runtime.block_on(herd(&scene, round, Some(&mut random)));
        worst_cancelled.raise(&outcome);
    }
    let hung = worst.hung + worst_cancelled.hung;
    vec![
        Figure::bound("cold_herd_calls", worst.calls as f64, 1.0),
        Figure::bound(
            "cold_herd_calls_cancelled",
            worst_cancelled.calls as f64,
            2.0,
        ),
        Figure::bound("cold_herd_hung", hung as f64, 0.0),
    ]
}

#[derive(Default)]
struct Outcome {
    calls: u64,
    hung: usize,
}

impl Outcome {
    fn raise(&mut self, other: &Self) {
        self.calls = self.calls.max(other.calls);
        self.hung += other.hung;
    }
}

/// Lets a thousand callers in while KMS waits, to seal or to open by turns. With `random`, the one
/// who came first and a random part of the others are cancelled in a random order, before KMS
/// answers, while it does, and afterwards; whoever is left must be served, and so must one who
/// comes later.
async fn herd(scene: &Arc<Scene>, round: usize, random: Option<&mut Random>) -> Outcome {
    let before = scene.kms.calls();
    let held = scene.kms.hold().await;
    let arrived = Arc::new(AtomicUsize::new(0));
    let first = Arc::new(AtomicUsize::new(usize::MAX));
    let mut callers: Vec<JoinHandle<()>> = (0..CALLERS)
        .map(|n| {
            let (scene, arrived, first) = (scene.clone(), arrived.clone(), first.clone());
            let call = Call::new(&scene, round);
            tokio::spawn(async move {
                let place = arrived.fetch_add(1, Ordering::SeqCst);
                if place == 0 {
                    first.store(n, Ordering::SeqCst);
                }
                call.run(&scene).await;
            })
        })
        .collect();
    while arrived.load(Ordering::SeqCst) < CALLERS || scene.kms.calls() == before {
        tokio::task::yield_now().await;
    }

    match random {
        None => drop(held),
        Some(random) => {
            let answer_after = random.below(CALLERS);
            let share = random.below(101);
            let mut held = Some(held);
            callers[first.load(Ordering::SeqCst)].abort();
            for n in 0..CALLERS {
                if n == answer_after {
                    held = None;
                }
                if random.below(100) < share {
                    callers[random.below(CALLERS)].abort();
                }
                if random.below(16) == 0 {
                    tokio::task::yield_now().await;
                }
            }
            drop(held);
        }
    }
    let late = Call::new(scene, round);
    let scene_of_late = Arc::clone(scene);
    callers.push(tokio::spawn(async move { late.run(&scene_of_late).await }));

    let mut hung = 0;
    for caller in callers {
        match tokio::time::timeout(PATIENCE, caller).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => assert!(error.is_cancelled(), "{error}"),
            Err(_) => hung += 1,
        }
    }
    Outcome {
        calls: scene.kms.calls() - before,
        hung,
    }
}

/// The same for all callers of a round.
enum Call {
    Open(Vec<u8>, keybroker::policy::Permit),
    Seal(keybroker::policy::Permit),
}

impl Call {
    fn new(scene: &Scene, round: usize) -> Self {
        match round % 2 {
            0 => Self::Seal(scene.permit(round)),
            _ => {
                let (message, permit) = scene.foreign(round);
                Self::Open(message, permit)
            }
        }
    }

    async fn run(self, scene: &Scene) {
        match self {
            Self::Open(message, permit) => scene.open(&message, &permit).await,
            Self::Seal(permit) => {
                let reserved = scene
                    .data_keys
                    .sealing(&permit, 1, &Patience::default())
                    .await
                    .unwrap();
                reserved.seal(b"", b"x").unwrap();
            }
        }
    }
}
