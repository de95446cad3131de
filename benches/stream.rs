//! What streams cost: memory of the server, and the frame writer beside the AEAD that it uses.
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
#[path = "stream/writer.rs"]
mod writer;

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    if !env::args().any(|argument| argument == "--bench") {
        println!("not measured: only `cargo bench` builds as releases are built");
        return ExitCode::SUCCESS;
    }
    let aead_ratio = writer::aead_ratio();
    println!("aead_ratio            {aead_ratio:8.2}  (bound {LEAST_AEAD_RATIO})");
    figures::record("stream", [("aead_ratio", aead_ratio)]);
    if aead_ratio < LEAST_AEAD_RATIO {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Of the AEAD's throughput, the frame writer keeps so much.
const LEAST_AEAD_RATIO: f64 = 0.6;
