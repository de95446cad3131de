//! The command as people run it: a process, its exit code, its sentences and its files.

mod admin;
mod auditing;
mod bad_input;
mod canaries;
mod checking;
mod dev;
mod fleet;
mod flood;
mod granting;
mod house;
mod keyring;
mod memory;
mod observability;
mod outages;
mod reloading;
mod replicas;
mod scan;
mod serving;
mod site;
mod soak;
mod spans;
mod starts;
mod storm;
mod tenants;
mod usage;
mod warming;
