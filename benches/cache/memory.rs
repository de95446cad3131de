//! What a cached data key takes of memory, among a million.
//!
//! Each measurement is a process of its own, so that none finds pages that another has left. An
//! entry is what `cache.entries` counts. Who seals for one customer has two, one that seals and
//! one that opens the same data key; who opens what another broker has sealed has one.

use std::env;
use std::fs;
use std::process::Command;
use std::time::Duration;

use keybroker::datakeys::Config;
use keybroker::datakeys::Patience;
use keybroker::datakeys::Scope;

use super::Figure;
use super::scene;
use super::scene::Plan;
use super::scene::Scene;
use super::steady::runtime_of;

const ENTRIES: usize = 1_000_000;
const TENANTS: usize = 10;
/// The simulated seconds in which the cache fills: within the time that an idle entry has.
const SECONDS: usize = 40;
const MOST: f64 = 1024.0;

pub fn measure() -> Vec<Figure> {
    let sealed = of_child("sealed", 1).max(of_child("sealed", TENANTS));
    let foreign = of_child("foreign", 1).max(of_child("foreign", TENANTS));
    vec![
        Figure::bound("bytes_per_key", sealed.max(foreign), MOST),
        Figure::shown("bytes_per_key_sealed", sealed),
        Figure::shown("bytes_per_key_foreign", foreign),
    ]
}

/// Whether this process is to measure one mix.
pub fn is_child(arguments: &[String]) -> bool {
    arguments.first().is_some_and(|first| first == CHILD)
}

/// Measures one mix and prints bytes per entry.
pub fn child(arguments: &[String]) {
    let [_, mix, tenants] = arguments else {
        panic!("{CHILD} takes a mix and a number of tenants");
    };
    let clock = scene::manual();
    let plan = Plan {
        tenants: tenants.parse().unwrap(),
        config: roomy(),
        ..Plan::default()
    };
    let scene = Scene::new(clock.clone(), &plan);
    let sealed = mix == "sealed";
    let data_keys = if sealed { ENTRIES / 2 } else { ENTRIES };
    let runtime = runtime_of(tokio::runtime::Builder::new_current_thread());
    runtime.block_on(async {
        let before = resident();
        for n in 0..data_keys {
            if sealed {
                let permit = scene.permit(n);
                scene
                    .data_keys
                    .sealing(&permit, 1, &Patience::default())
                    .await
                    .unwrap();
            } else {
                let (message, permit) = scene.foreign(n);
                scene.open(&message, &permit).await;
            }
            if n % (data_keys / SECONDS) == 0 {
                clock.advance(Duration::from_secs(1));
                scene.data_keys.sweep();
            }
        }
        scene.data_keys.sweep();
        println!("{}", (resident() - before) / ENTRIES as f64);
        // Nothing was evicted meanwhile.
        assert_eq!(scene.data_keys.purge(&Scope::All).await, data_keys);
    });
}

/// A cache for more than a million entries, be they of one tenant.
pub fn roomy() -> Config {
    Config {
        entries: 10_000_000,
        tenant_entries: 10_000_000,
        tenant_bytes: 16 << 30,
        ..Config::default()
    }
}

fn of_child(mix: &str, tenants: usize) -> f64 {
    let output = Command::new(env::current_exe().unwrap())
        .args([CHILD, mix, &tenants.to_string()])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let bytes = String::from_utf8(output.stdout).unwrap();
    let bytes = bytes.trim().parse().unwrap();
    println!("{mix}, tenants: {tenants}: {bytes:.0} bytes per entry");
    bytes
}

/// How much of this process is in memory, in bytes.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<f64>().unwrap() * 1024.0
}

const CHILD: &str = "memory-child";
