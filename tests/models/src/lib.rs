//! Every interleaving of the logic that races. The product's own files are included by path; what
//! they take from `crate::sync` is loom's here.
#![cfg(test)]

mod sync {
    pub(crate) use loom::sync::atomic;
}

#[path = "../../../src/datakeys/budget.rs"]
mod budget;

use budget::Budget;
use loom::sync::Arc;
use loom::thread;

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
