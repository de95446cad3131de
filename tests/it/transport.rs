//! How the broker meets a network: handshakes, reloads, limits, attacks and ends.

mod alone;
mod caps;
mod certificates;
mod ends;
mod floods;
mod frames;
mod probes;
mod raw;
mod reloads;
mod unix;
