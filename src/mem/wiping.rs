//! The allocator that leaves nothing behind.
//!
//! Over the C library's allocator it took about 1 to 3 % of the CPU of an Encrypt of 1 KiB and 16 %
//! of one of 16 KiB (`benches/memory.rs`). To wipe small blocks alone, or to let the allocator below
//! grow blocks in place, would leave secrets behind, for less than that.

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::ptr;
use std::slice;

/// An allocator that wipes memory before it gives it back to `A`, whose own it is otherwise.
///
/// A buffer that grows is moved, and the old one wiped: `A` could leave a copy behind.
pub struct Wiping<A = System>(
    /// Where memory comes from.
    pub A,
);

// SAFETY: memory comes from `A` and returns to it with the layout that it came with; `realloc` is
// the trait's own, in terms of `alloc` and `dealloc` here.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Wiping<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the same contract.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the same contract. The trait's own would write zeros to pages
        // that the kernel has just made of zeros.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller gives up `layout.size()` bytes at `memory`, which nobody else uses.
        unsafe { wipe(memory, layout.size()) };
        // SAFETY: the caller keeps to the same contract.
        unsafe { self.0.dealloc(memory, layout) };
    }
}

/// Writes zeros that no optimization leaves out.
///
/// # Safety
/// `memory` is valid for writes of `length` bytes, and nobody else uses them meanwhile.
pub(super) unsafe fn wipe(memory: *mut u8, length: usize) {
    // The C library's memset: at 1 KiB a third of the time of volatile writes of words, and a
    // hundredth of bytes, which is how `zeroize` writes.
    // SAFETY: as the caller promises.
    unsafe { ptr::write_bytes(memory, 0, length) };
    // SAFETY: the bytes are valid, and initialized since the line above.
    let wiped = unsafe { slice::from_raw_parts(memory, length) };
    // The compiler knows that nobody reads what is about to be freed. This does, for all it knows.
    zeroize::optimization_barrier(wiped);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    use super::*;

    /// Takes back nothing but zeros.
    struct Strict(AtomicUsize);

    // SAFETY: the system's, with a look at what comes back.
    unsafe impl GlobalAlloc for Strict {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller keeps to the same contract.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
            // SAFETY: the memory is still ours, and the test has written all of it.
            let left = unsafe { slice::from_raw_parts(memory, layout.size()) };
            assert!(left.iter().all(|byte| *byte == 0));
            self.0.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the caller keeps to the same contract.
            unsafe { System.dealloc(memory, layout) };
        }
    }

    #[test]
    fn what_is_freed_is_all_zeros() {
        let allocator = Wiping(Strict(AtomicUsize::new(0)));
        for length in [1, 7, 64, 1000, 1 << 20] {
            let layout = Layout::from_size_align(length, 8).unwrap();
            // SAFETY: the length is not zero, and the memory is freed with its layout.
            unsafe {
                let memory = allocator.alloc(layout);
                memory.write_bytes(0xa5, length);
                allocator.dealloc(memory, layout);
            }
        }
        assert_eq!(allocator.0.0.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn what_grows_or_shrinks_keeps_its_bytes_and_leaves_no_copy() {
        let allocator = Wiping(Strict(AtomicUsize::new(0)));
        let layout = Layout::from_size_align(100, 1).unwrap();
        for length in [10, 100_000] {
            // SAFETY: the lengths are not zero, the memory is moved and freed with its layout, and
            // read where it was written.
            unsafe {
                let memory = allocator.alloc(layout);
                memory.write_bytes(0xa5, layout.size());
                let moved = allocator.realloc(memory, layout, length);
                let kept = slice::from_raw_parts(moved, layout.size().min(length));
                assert!(kept.iter().all(|byte| *byte == 0xa5));
                moved.write_bytes(0xa5, length);
                allocator.dealloc(moved, Layout::from_size_align(length, 1).unwrap());
            }
        }
        assert_eq!(allocator.0.0.load(Ordering::Relaxed), 4);
    }
}
