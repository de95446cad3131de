//! Every interleaving of the logic that races. The product's own files are included by path; what
//! they take from `crate::sync` is loom's here.
#![cfg(test)]

mod sync {
    pub(crate) use loom::sync::atomic;
}

#[path = "../../../src/datakeys/budget.rs"]
mod budget;
#[path = "../../../src/mem/slots.rs"]
mod slots;

use budget::Budget;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use slots::Slots;

/// Three threads race for `limit` messages: exactly `limit` are served, whatever the order.
#[test]
fn messages_are_never_overdrawn() {
    explore(|| {
        let budget = Arc::new(Budget::new(2, u64::MAX));
        assert_eq!(race(&budget, [1, 1, 1]), 2);
    });
}

/// Two of three reservations of 4 bytes fit into 10.
#[test]
fn bytes_are_never_overdrawn() {
    explore(|| {
        let budget = Arc::new(Budget::new(u64::MAX, 10));
        assert_eq!(race(&budget, [4, 4, 4]), 2);
    });
}

/// Three threads take, use and give back two slots: nobody meets another in a slot, what one wrote
/// into it is seen by the next, and in the end all slots are free.
#[test]
fn no_slot_has_two_holders() {
    explore(|| {
        let arena = Arc::new((Slots::new(2), [(); 2].map(|()| UnsafeCell::new(()))));
        let racers = [0, 1].map(|near| {
            let arena = Arc::clone(&arena);
            thread::spawn(move || visit(&arena, near))
        });
        visit(&arena, 0);
        for racer in racers {
            racer.join().expect("no panic");
        }
        assert_eq!(arena.0.used(), 0);
    });
}

/// Two threads race for the one slot that is left: one of them gets it.
#[test]
fn the_last_slot_is_handed_out_once() {
    explore(|| {
        let slots = Arc::new(Slots::new(2));
        assert_eq!(slots.take(0), Some(0));
        let other = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || slots.take(0))
        };
        let taken = [slots.take(0), other.join().expect("no panic")];
        assert!(taken == [None, Some(1)] || taken == [Some(1), None]);
        assert_eq!(slots.used(), 2);
    });
}

/// A slot that is given back while all the others are taken is found by who comes after.
#[test]
fn a_released_slot_is_not_lost() {
    explore(|| {
        let slots = Arc::new(Slots::new(2));
        assert_eq!((slots.take(0), slots.take(0)), (Some(0), Some(1)));
        let releasers = [0, 1].map(|slot| {
            let slots = Arc::clone(&slots);
            thread::spawn(move || slots.release(slot))
        });
        let early = slots.take(0);
        for releaser in releasers {
            releaser.join().expect("no panic");
        }
        assert_eq!(slots.used(), usize::from(early.is_some()));
        assert!(slots.take(0).is_some());
    });
}

/// Takes a slot, if one is free, and is alone in it: loom fails the model otherwise.
fn visit((slots, cells): &(Slots, [UnsafeCell<()>; 2]), near: usize) {
    if let Some(slot) = slots.take(near) {
        cells[slot].with_mut(|_| ());
        slots.release(slot);
    }
}

/// All interleavings in the long form, those of up to three preemptions otherwise.
fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = match std::env::var_os("KEYBROKER_TEST_LONG") {
        Some(_) => None,
        None => Some(3),
    };
    builder.check(model);
}

/// How many of three racing reservations were granted.
fn race(budget: &Arc<Budget>, amounts: [u64; 3]) -> usize {
    let [first, second, third] = amounts;
    let racers = [first, second].map(|bytes| {
        let budget = Arc::clone(budget);
        thread::spawn(move || budget.reserve(bytes))
    });
    let mine = budget.reserve(third);
    let others = racers
        .into_iter()
        .map(|racer| racer.join().expect("no panic"));
    others.chain([mine]).filter(|granted| *granted).count()
}
