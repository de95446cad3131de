//! What tests run against: servers of our own making and of others', each on a free loopback port.
#![allow(dead_code, reason = "tests and benches each use a part")]

pub mod collector;
pub mod dice;
pub mod fake_kms;
pub mod figures;
pub mod http1;
pub mod moto;
pub mod postgres;
pub mod prometheus;
pub mod proxy;
pub mod scale;
pub mod unprivileged;
pub mod virtual_time;
