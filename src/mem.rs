//! Memory that holds secrets: wiped when it is freed, kept from swap, dumps and other processes.
//! The one home of `unsafe`.
//!
//! [`Wiping`] is the allocator of the shipped binary: what passed through HTTP, JSON and protobuf
//! buffers lies in no freed memory afterwards. [`Cell`] holds a key in the locked arena that
//! [`init`] makes, 64 bytes to a slot, and in ordinary memory where there is no arena or no room in
//! it. [`harden`] closes the process to core dumps and debuggers. [`Counting`] is for benchmarks.
//!
//! What it doesn't do: root reads everything, the C library's own allocations are wiped by AWS-LC
//! where they hold secrets, and a buffer of a connection that is still open holds what came last.
#![allow(
    unsafe_code,
    reason = "an allocator and locked memory cannot be had without; no other file may"
)]

mod arena;
mod cell;
mod counting;
mod slots;
mod wiping;

pub use cell::Cell;
pub use counting::Counting;
pub use wiping::Wiping;

use std::fs;
use std::io;
use std::sync::OnceLock;

use rustix::process::DumpableBehavior;
use rustix::process::Resource;
use rustix::process::Rlimit;
use serde::Deserialize;

use arena::Arena;

/// How memory is locked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether keys lie in pages that the kernel itself has no address of, where it offers them.
    /// While a process has any, the machine cannot hibernate, and no debugger reads them.
    pub memfd_secret: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { memfd_secret: true }
    }
}

/// A protection that the operating system refuses. None of them is a reason not to serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arena is not kept out of core dumps or forked children.
    #[error("cannot keep keys out of core dumps and forked processes: {0}")]
    Advice(io::Error),
    /// The process may leave core files.
    #[error("cannot forbid core files: {0}")]
    Core(io::Error),
    /// Other processes of the same user may read our memory.
    #[error("cannot forbid other processes to read our memory: {0}")]
    Dumpable(io::Error),
    /// The arena is smaller than it should be, or there is none.
    #[error(
        "only {locked} KiB of the {wanted} KiB for keys can be locked ({source}), and keys beyond \
         them could be swapped out: allow {wanted} KiB with LimitMEMLOCK=8M in the systemd unit or \
         --ulimit memlock=8388608 for the container, and turn swap off",
        locked = .locked / 1024,
        wanted = .wanted / 1024
    )]
    Lock {
        /// How many bytes are locked.
        locked: usize,
        /// How many there should be.
        wanted: usize,
        /// What the system said to more.
        source: io::Error,
    },
}

/// What keeps the keys of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What the arena is made of.
    pub arena: Kind,
    /// The size of the arena, in bytes.
    pub locked_bytes: usize,
    /// Slots of the arena that hold a secret.
    pub slots_used: usize,
    /// Slots of the arena.
    pub slots_total: usize,
    /// Secrets in ordinary memory, which is wiped when freed and may be swapped out.
    pub outside: usize,
    /// Whether [`init`] got less than it asked for.
    pub degraded: bool,
    /// How much of this process is swapped out, in bytes; unknown where procfs doesn't tell.
    pub swapped_bytes: Option<u64>,
}

/// What an arena is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ordinary pages, locked, and left out of core dumps and forked children.
    Locked,
    /// There is none: every secret is in ordinary memory.
    None,
    /// `memfd_secret` pages, which are locked, and out of reach for the kernel's other parts too.
    Secret,
}

impl Kind {
    /// A word for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::None => "none",
            Self::Secret => "memfd_secret",
        }
    }
}

/// Makes the arena, once: later calls do nothing. Secrets made before stay where they are.
///
/// Returns what could not be had, each to be told once.
pub fn init(config: &Config) -> Vec<Error> {
    let mut missing = Vec::new();
    ARENA.get_or_init(|| {
        let (arena, refused) = Arena::make(config, FULL);
        missing = refused;
        State {
            arena,
            degraded: !missing.is_empty(),
        }
    });
    missing
}

/// Has this process do without huge pages, which the allocator would ask for: with them one byte in
/// use keeps 2 MiB, and a sidecar that idles 18 MiB more. No call is slower for it. To be called
/// first of all, since what is one already stays; where the system refuses, only memory is lost.
pub fn small_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Keeps this process from leaving core files, and other processes without privilege from reading
/// its memory.
///
/// Returns what could not be had, each to be told once.
pub fn harden() -> Vec<Error> {
    // A debugger or profiler of the same user is shut out as well.
    let dumpable = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let nothing = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let core = rustix::process::setrlimit(Resource::Core, nothing);
    let dumpable = dumpable.err().map(|error| Error::Dumpable(error.into()));
    let core = core.err().map(|error| Error::Core(error.into()));
    dumpable.into_iter().chain(core).collect()
}

/// How keys are kept now.
pub fn status() -> Status {
    let state = ARENA.get();
    let arena = state.and_then(|state| state.arena.as_ref());
    Status {
        arena: arena.map_or(Kind::None, Arena::kind),
        locked_bytes: arena.map_or(0, Arena::bytes),
        slots_used: arena.map_or(0, |arena| arena.slots().used()),
        slots_total: arena.map_or(0, |arena| arena.slots().count()),
        outside: cell::outside(),
        degraded: state.is_some_and(|state| state.degraded),
        swapped_bytes: swapped(),
    }
}

/// The arena of the process, if it was made.
fn arena() -> Option<&'static Arena> {
    ARENA.get()?.arena.as_ref()
}

fn swapped() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSwap:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

struct State {
    arena: Option<Arena>,
    degraded: bool,
}

static ARENA: OnceLock<State> = OnceLock::new();

/// Half of the limit that systemd and most distributions set, for 65,536 keys.
const FULL: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::slots::Slots;
    use super::*;

    #[test]
    fn what_cannot_be_locked_is_told_with_its_remedy() {
        let error = Error::Lock {
            locked: 64 << 10,
            wanted: FULL,
            source: io::ErrorKind::OutOfMemory.into(),
        };
        let text = error.to_string();
        for part in ["64 KiB", "4096 KiB", "LimitMEMLOCK", "--ulimit memlock"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn the_process_knows_how_much_of_it_is_swapped_out() {
        assert!(status().swapped_bytes.is_some());
    }

    #[test]
    fn every_slot_is_handed_out_once() {
        for count in [1, 63, 64, 65, 200] {
            let slots = Slots::new(count);
            assert_eq!(slots.used(), 0);
            let mut taken: Vec<_> = (0..count).filter_map(|near| slots.take(near)).collect();
            taken.sort_unstable();
            assert_eq!(taken, (0..count).collect::<Vec<_>>());
            assert_eq!((slots.take(0), slots.used()), (None, count));
        }
    }

    #[test]
    fn a_released_slot_is_found_from_anywhere() {
        let slots = Slots::new(200);
        while slots.take(0).is_some() {}
        for near in [0, 150, 199, 10_000] {
            slots.release(70);
            assert_eq!(slots.used(), 199);
            assert_eq!(slots.take(near), Some(70));
        }
    }

    #[test]
    fn no_slots_are_none_to_take() {
        assert_eq!(Slots::new(0).take(0), None);
    }
}
