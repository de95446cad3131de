//! What the cache of data keys keeps away from KMS and from callers, and what it costs: calls,
//! memory, time.
#![allow(
    missing_docs,
    clippy::as_conversions,
    clippy::disallowed_methods, // a benchmark times itself
    clippy::disallowed_types,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub
)]

#[path = "../tests/support/figures.rs"]
mod figures;
#[path = "cache/herd.rs"]
mod herd;
#[path = "cache/kms.rs"]
mod kms;
#[path = "cache/lookup.rs"]
mod lookup;
#[path = "cache/memory.rs"]
mod memory;
#[path = "cache/refresh.rs"]
mod refresh;
#[path = "cache/replace.rs"]
mod replace;
#[path = "cache/scene.rs"]
mod scene;
#[path = "cache/steady.rs"]
mod steady;
#[path = "cache/timing.rs"]
mod timing;

use std::env;
use std::process::ExitCode;
use std::time::Instant;

/// What was measured, and the most that it may be.
pub struct Figure {
    name: &'static str,
    value: f64,
    bound: Option<f64>,
}

impl Figure {
    fn bound(name: &'static str, value: f64, bound: f64) -> Self {
        let bound = Some(bound);
        Self { name, value, bound }
    }

    fn shown(name: &'static str, value: f64) -> Self {
        let bound = None;
        Self { name, value, bound }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if memory::is_child(&arguments) {
        memory::child(&arguments);
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("not measured: only `cargo bench` builds as releases are built");
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = arguments.iter().filter(|one| *one != "--bench").collect();
    let known = SCENES.map(|(name, _)| name);
    if let Some(unknown) = wanted.iter().find(|one| !known.contains(&one.as_str())) {
        eprintln!("{unknown} is none of {}", known.join(", "));
        return ExitCode::FAILURE;
    }

    let mut measured = Vec::new();
    for (name, measure) in SCENES {
        if wanted.is_empty() || wanted.iter().any(|one| *one == name) {
            let started = Instant::now();
            let figures = measure();
            println!("{name}, in {:.0} s", started.elapsed().as_secs_f64());
            figures.iter().for_each(print);
            measured.extend(figures);
        }
    }
    figures::record("cache", measured.iter().map(|one| (one.name, one.value)));
    let passed = |one: &&Figure| one.bound.is_some_and(|bound| one.value > bound);
    let passed: Vec<&str> = measured.iter().filter(passed).map(|one| one.name).collect();
    match passed.as_slice() {
        [] => ExitCode::SUCCESS,
        passed => {
            eprintln!("past their bounds: {}", passed.join(", "));
            ExitCode::FAILURE
        }
    }
}

fn print(figure: &Figure) {
    let Figure { name, value, bound } = figure;
    match bound {
        Some(bound) => println!("  {name:32} {value:10.3}   at most {bound}"),
        None => println!("  {name:32} {value:10.3}"),
    }
}

/// The middle one of `values`, or the one above the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

type Measure = fn() -> Vec<Figure>;

/// The names that may follow `cargo bench --bench cache --`.
const SCENES: [(&str, Measure); 7] = [
    ("memory", memory::measure),
    ("steady", steady::measure),
    ("herd", herd::measure),
    ("refresh", refresh::measure),
    ("lookup", lookup::measure),
    ("replace", replace::measure),
    ("timing", timing::measure),
];
