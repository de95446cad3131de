//! The pages for keys, and the slots in them.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::ptr;
use std::ptr::NonNull;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use rustix::mm::madvise;
use rustix::mm::mlock;
use rustix::mm::mmap;
use rustix::mm::mmap_anonymous;
use rustix::mm::munmap;

use crate::mem::Config;
use crate::mem::Error;
use crate::mem::Kind;
use crate::mem::slots::Slots;
use crate::mem::wiping::wipe;

/// Locked pages, cut into slots. They stay for as long as the process.
pub(super) struct Arena {
    base: NonNull<[u8; SLOT]>,
    slots: Slots,
    kind: Kind,
}

// SAFETY: `base` is the start of a mapping that is never unmapped, at the same place for all
// threads; what lies there is reached through slots alone, and a slot has one holder.
unsafe impl Send for Arena {}

// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// An arena of `wanted` bytes, a power of two of at least a page, or of as much less as can be
    /// locked. What is missing of it comes with it.
    pub(super) fn make(config: &Config, wanted: usize) -> (Option<Self>, Vec<Error>) {
        let mut missing = Vec::new();
        let sizes = std::iter::successors(Some(wanted), |size| Some(size / 2));
        let mut refusal = None;
        let mut found = None;
        for size in sizes.take_while(|size| *size >= SMALLEST) {
            match Pages::lock(config, size) {
                Ok(pages) => {
                    found = Some(pages);
                    break;
                }
                Err(error) => refusal = Some(error),
            }
        }
        if let Some(source) = refusal {
            missing.push(Error::Lock {
                locked: found.as_ref().map_or(0, |pages| pages.size),
                wanted,
                source,
            });
        }
        let arena = found.map(|pages| {
            missing.extend(pages.advise().err().map(Error::Advice));
            Self {
                base: pages.base.cast(),
                slots: Slots::new(pages.size / SLOT),
                kind: pages.kind,
            }
        });
        (arena, missing)
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Its size.
    pub(super) fn bytes(&self) -> usize {
        self.slots.count() * SLOT
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }
}

/// A slot of the arena and the right to it: zeros when taken, wiped when dropped.
pub(super) struct Slot {
    arena: &'static Arena,
    index: usize,
}

impl Slot {
    /// A free slot, if there is one.
    pub(super) fn take(arena: &'static Arena) -> Option<Self> {
        let index = NEAR.with(|near| {
            let index = arena.slots.take(near.get())?;
            near.set(index);
            Some(index)
        })?;
        Some(Self { arena, index })
    }

    pub(super) fn bytes(&self) -> &[u8; SLOT] {
        // SAFETY: the slot is ours, and who writes to it borrows it mutably.
        unsafe { self.place().as_ref() }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8; SLOT] {
        // SAFETY: the slot is ours, and borrowed mutably.
        unsafe { self.place().as_mut() }
    }

    fn place(&self) -> NonNull<[u8; SLOT]> {
        // SAFETY: the arena has more slots than `index`, one behind the other.
        unsafe { self.arena.base.add(self.index) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the slot is ours until it is released.
        unsafe { wipe(self.place().as_ptr().cast(), SLOT) };
        self.arena.slots.release(self.index);
    }
}

/// Locked pages, all of them there.
struct Pages {
    base: NonNull<u8>,
    size: usize,
    kind: Kind,
}

impl Pages {
    /// Pages that are locked; the kernel's own secret ones if `config` wants them and they exist.
    fn lock(config: &Config, size: usize) -> io::Result<Self> {
        let file = match config.memfd_secret {
            true => secret_file(size).ok(),
            false => None,
        };
        let (memory, kind) = match file {
            Some(file) => (map_secret(&file, size)?, Kind::Secret),
            None => (map_locked(size)?, Kind::Locked),
        };
        let base = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the mapping is `size` bytes long, and nobody else knows of it. Secret pages come
        // into being when they are written to: now, lest the first key finds no memory.
        unsafe { base.write_bytes(0, size) };
        Ok(Self { base, size, kind })
    }

    /// Keeps the pages out of core dumps and forked children.
    fn advise(&self) -> io::Result<()> {
        let advices: &[Advice] = match self.kind {
            // In no dump anyway, and not to be wiped, since they are a file's.
            Kind::Secret => &[Advice::LinuxDontFork],
            Kind::Locked | Kind::None => &[Advice::LinuxDontDump, Advice::LinuxWipeOnFork],
        };
        for advice in advices {
            // SAFETY: neither changes what this process finds in the pages.
            unsafe { madvise(self.base.as_ptr().cast(), self.size, *advice)? };
        }
        Ok(())
    }
}

/// A file of pages that only its own process can reach.
fn secret_file(size: usize) -> io::Result<OwnedFd> {
    let flags = libc::c_long::from(libc::O_CLOEXEC);
    // SAFETY: the call takes one number.
    let number = unsafe { libc::syscall(libc::SYS_memfd_secret, flags) };
    let number = i32::try_from(number).map_err(io::Error::other)?;
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::fs::ftruncate(&file, u64::try_from(size).map_err(io::Error::other)?)?;
    Ok(file)
}

/// Counts against the same limit as locking does.
fn map_secret(file: impl AsFd, size: usize) -> io::Result<*mut libc::c_void> {
    // SAFETY: a new mapping, at an address of the kernel's choice.
    Ok(unsafe { mmap(ptr::null_mut(), size, READ_WRITE, MapFlags::SHARED, file, 0)? })
}

fn map_locked(size: usize) -> io::Result<*mut libc::c_void> {
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let memory = unsafe { mmap_anonymous(ptr::null_mut(), size, READ_WRITE, MapFlags::PRIVATE)? };
    // SAFETY: the mapping is there.
    if let Err(refusal) = unsafe { mlock(memory, size) } {
        // SAFETY: nobody else knows of the mapping.
        unsafe { munmap(memory, size)? };
        return Err(refusal.into());
    }
    Ok(memory)
}

/// The bytes of a slot: two AES-256 keys, or the longest output of SHA-512.
pub(super) const SLOT: usize = 64;

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// A page on most machines. Where pages are larger, less than one is locked as one.
const SMALLEST: usize = 4096;

thread_local! {
    /// Where this thread found its last slot. Threads begin apart, by what a cache line has of
    /// slots, so that keys that live for a message don't make them wait for each other.
    static NEAR: Cell<usize> = {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        Cell::new(THREADS.fetch_add(1, Ordering::Relaxed).wrapping_mul(LINE_SLOTS))
    };
}

/// Slots whose bits share a cache line: 64 bytes of 8 bits.
const LINE_SLOTS: usize = 512;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn arena(memfd_secret: bool) -> &'static Arena {
        let (arena, missing) = Arena::make(&Config { memfd_secret }, SMALLEST);
        assert!(missing.is_empty(), "{missing:?}");
        Box::leak(Box::new(arena.unwrap()))
    }

    #[test]
    fn both_kinds_of_pages_hold_and_wipe() {
        for memfd_secret in [false, true] {
            let arena = arena(memfd_secret);
            let mut slot = Slot::take(arena).unwrap();
            slot.bytes_mut().fill(0xa5);
            assert_eq!(slot.bytes(), &[0xa5; SLOT]);
            let place = slot.place();
            drop(slot);
            // SAFETY: the arena stays, and nobody else in this test takes a slot of it.
            assert_eq!(unsafe { place.read() }, [0; SLOT]);
        }
    }

    #[test]
    fn a_full_arena_has_no_slot() {
        let arena = arena(false);
        let held: Vec<_> = std::iter::from_fn(|| Slot::take(arena)).collect();
        assert_eq!(held.len(), SMALLEST / SLOT);
        assert!(Slot::take(arena).is_none());
        drop(held);
        assert!(Slot::take(arena).is_some());
    }

    #[test]
    fn threads_keep_out_of_each_others_slots() {
        let arena = arena(false);
        thread::scope(|scope| {
            for mark in 1..=4 {
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        let Some(mut slot) = Slot::take(arena) else {
                            continue;
                        };
                        assert_eq!(slot.bytes(), &[0; SLOT]);
                        slot.bytes_mut().fill(mark);
                        assert_eq!(slot.bytes(), &[mark; SLOT]);
                    }
                });
            }
        });
        assert_eq!(arena.slots.used(), 0);
    }
}
