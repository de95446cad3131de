//! One tenant seals without pause: how often is KMS called?

use keybroker::datakeys::Patience;
use std::time::Duration;

use super::Figure;
use super::scene;
use super::scene::Plan;
use super::scene::Scene;

const CALLS: usize = 1_000_000;

/// A thousand messages of 1 KiB a second for 1,000 seconds of a clock of its own, with the usual
/// limits.
pub fn measure() -> Vec<Figure> {
    let clock = scene::manual();
    let scene = Scene::new(clock.clone(), &Plan::default());
    let permit = scene.permit(0);
    let plaintext = [0x5a; 1024];
    let runtime = tokio::runtime::Builder::new_current_thread();
    runtime_of(runtime).block_on(async {
        for n in 1..=CALLS {
            let reserved = scene
                .data_keys
                .sealing(&permit, 1024, &Patience::default())
                .await
                .unwrap();
            reserved.seal(b"", &plaintext).unwrap();
            clock.advance(Duration::from_millis(1));
            if n % 1000 == 0 {
                scene.data_keys.sweep();
            }
            // What refreshes in the background has its turn.
            tokio::task::yield_now().await;
        }
    });
    let calls = scene.kms.calls() as f64;
    vec![Figure::bound("kms_calls_per_million", calls, 10.0)]
}

pub fn runtime_of(mut builder: tokio::runtime::Builder) -> tokio::runtime::Runtime {
    builder.enable_all().build().unwrap()
}
