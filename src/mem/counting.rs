//! The allocator that counts.

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

/// An allocator that counts how often `A` is asked for memory, for benchmarks: the shipped binary
/// has none. Until [`start`](Counting::start) it costs next to nothing.
pub struct Counting<A = System> {
    inner: A,
    counting: AtomicBool,
    count: AtomicU64,
}

impl<A> Counting<A> {
    /// Counts nothing yet.
    pub const fn new(inner: A) -> Self {
        Self {
            inner,
            counting: AtomicBool::new(false),
            count: AtomicU64::new(0),
        }
    }

    /// Counts from now on.
    pub fn start(&self) {
        self.counting.store(true, Ordering::Relaxed);
    }

    /// Blocks handed out so far; one that was moved or resized counts again.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn note(&self) {
        if self.counting.load(Ordering::Relaxed) {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: everything is `A`'s; what is beside it neither allocates nor panics.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.note();
        // SAFETY: the caller keeps to the same contract.
        unsafe { self.inner.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.note();
        // SAFETY: the caller keeps to the same contract.
        unsafe { self.inner.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.note();
        // SAFETY: the caller keeps to the same contract.
        unsafe { self.inner.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the same contract.
        unsafe { self.inner.dealloc(memory, layout) };
    }
}
