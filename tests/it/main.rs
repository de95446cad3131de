//! Behaviour tests: real parts, real clients, private folders, free ports.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub
)]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "each subject uses its part of it")]
mod harness;

mod additional_key;
mod admin;
mod aws;
mod batch;
mod bodies;
mod cache;
mod calls;
mod checksums;
mod ciphertexts;
mod cli;
mod coasting;
mod contexts;
mod deadlines;
mod demand;
mod denials;
mod embedded;
mod errors;
mod examples;
mod explaining;
mod faults;
mod grants;
mod guarded;
mod isolation;
mod keyring;
mod kms_contract;
mod node;
mod operators;
mod overload;
mod poison;
mod python;
mod quota;
mod records;
mod regions;
mod reuse;
mod round_trips;
mod secrecy;
mod sizes;
mod standing;
mod streams;
mod transport;
mod upstream;
mod vectors;
mod warm;
