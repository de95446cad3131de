//! How the broker meets a network: handshakes, reloads, limits, attacks and ends.

mod alone;
mod caps;
mod certificates;
mod ends;
mod floods;
mod frames;
mod neighbors;
mod probes;
pub mod raw;
mod reloads;
mod resets;
mod stress;
mod unfinished;
mod unix;
mod unread;
