//! The command as people run it: a process, its exit code, its sentences and its files.

mod admin;
mod bad_input;
mod dev;
mod keyring;
mod memory;
mod reloading;
mod serving;
mod site;
mod usage;
mod warming;
