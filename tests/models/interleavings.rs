//! Every interleaving of the small parts that race: of the cache, of what stands before KMS, of
//! locked memory, of a connection. The product's own files are included by path; what they take from `crate::sync` is
//! loom's here.
//!
//! The usual run tries all interleavings of up to three preemptions, the long form
//! (`KEYBROKER_TEST_LONG=1`) also those of more, up to a number. What fails, fails again: the search
//! has an order.
#![allow(missing_docs, unreachable_pub)]

use std::task::Wake;
use std::task::Waker;
use std::time::Duration;

use jiff::Timestamp;
use keybroker::clock;
use keybroker::clock::Clock as _;
use keybroker::clock::Instant;
use keybroker::clock::Manual;
use keybroker::metrics;
use keybroker::metrics::Circuit;
use keybroker::name;
use keybroker::quota;
use keybroker::quota::Rate;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::Notify;
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering;
use loom::thread;
use loom::thread::JoinHandle;

#[path = "../../src/grpc/driver/bell.rs"]
mod bell;
#[allow(dead_code, reason = "some of it does not race")]
#[path = "../../src/kms/guarded/breaker.rs"]
mod breaker;
#[allow(dead_code, reason = "some of it does not race")]
#[path = "../../src/quota/bucket.rs"]
mod bucket;
#[path = "../../src/datakeys/budget.rs"]
mod budget;
#[path = "../../src/kms/guarded/fair.rs"]
mod fair;
#[allow(dead_code, reason = "some of it does not race")]
#[path = "../../src/kms/guarded/gate.rs"]
mod gate;
#[path = "gates.rs"]
mod gates;
#[path = "../../src/audit/queue.rs"]
mod queue;
#[path = "../../src/kms/guarded/rate.rs"]
mod rate;
#[path = "records.rs"]
mod records;
#[allow(dead_code, reason = "whoever runs what is queued is not modeled")]
#[path = "../../src/datakeys/refresh.rs"]
mod refresh;
#[path = "../support/scale.rs"]
mod scale;
#[path = "../../src/mem/slots.rs"]
mod slots;

use bell::Bell;
use breaker::Breaker;
use breaker::Change;
use breaker::Verdict;
use bucket::Bucket;
use bucket::Size;
use budget::Budget;
use budget::Left;
use refresh::Pace;
use refresh::Queue;
use scale::scaled;
use slots::Slots;

mod kms {
    pub(crate) use crate::fair::Fair;
    pub(crate) use keybroker::kms::Demand;

    pub(crate) mod guarded {
        pub(crate) use crate::fair;
        pub(crate) use crate::rate;
    }
}

mod sync {
    use std::sync::PoisonError;

    pub(crate) use loom::sync::Condvar;
    pub(crate) use loom::sync::Mutex;
    pub(crate) use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic;

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condition
            .wait(guard)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Three race for two messages.
#[test]
fn messages_are_never_overdrawn() {
    explore(|| {
        let whole = Left {
            messages: 2,
            bytes: u64::MAX,
        };
        assert_eq!(race_for(whole, 1, |left| left.messages), [0, 1]);
    });
}

/// Three race for ten bytes, four each.
#[test]
fn bytes_are_never_overdrawn() {
    explore(|| {
        let whole = Left {
            messages: u64::MAX,
            bytes: 10,
        };
        assert_eq!(race_for(whole, 4, |left| left.bytes), [2, 6]);
    });
}

/// Three race for what a bucket holds, half of it each.
#[test]
fn a_bucket_is_never_overdrawn() {
    explore(|| {
        let (rate, now) = (rate(), at(10));
        let bucket = Arc::new(Bucket::new(SIZE));
        let taken = three(&bucket, move |bucket| bucket.take(100, rate, now).is_ok());
        assert_eq!(taken.iter().filter(|taken| **taken).count(), 2);
    });
}

/// Two pay for what they did while another call begins: nothing of it is lost.
#[test]
fn no_charge_is_lost() {
    explore(|| {
        let (rate, now) = (rate(), at(10));
        let bucket = Arc::new(Bucket::new(SIZE));
        let taken = three(&bucket, move |bucket| {
            bucket.charge(150, rate, now);
            bucket.take(50, rate, now).is_ok()
        });
        let taken = taken.iter().filter(|taken| **taken).count();
        let owed = 1000 * (3 * 150 + 50 * taken - 200) / 100;
        let owed = Duration::from_millis(u64::try_from(owed).expect("a few seconds"));
        assert_eq!(bucket.owed(now), Some(owed));
    });
}

fn tenant(name: &str) -> name::TenantId {
    name.parse().expect("a tenant")
}

fn rate() -> Rate {
    Rate::new(100).expect("it is within the bounds")
}

const SIZE: Size = Size {
    burst: Duration::from_secs(2),
    debt: Duration::from_secs(10),
};

/// Three find a key past its soft limit: one has it refreshed.
#[test]
fn one_of_three_begins_a_refresh() {
    explore(|| {
        let (soft, now) = (at(10), at(11));
        let pace = Arc::new(Pace::new(soft));
        let begun = three(&pace, move |pace| pace.begin(now));
        assert_eq!(begun.iter().filter(|begun| **begun).count(), 1);
        assert_eq!(pace.next(), None, "it is under way");
    });
}

/// A refresh fails while two come along, one of them after the pause: nobody begins during the
/// pause, and after it somebody can.
#[test]
fn a_failed_refresh_is_begun_again_after_its_pause() {
    explore(|| {
        let (soft, now, later) = (at(10), at(11), at(13));
        let pace = Arc::new(Pace::new(soft));
        assert!(pace.begin(now));
        let early = begin(&pace, now);
        let late = begin(&pace, later);
        pace.failed(now, u8::MAX);
        assert!(!done(early), "the pause is a second");
        let begun = done(late);
        assert_ne!(pace.begin(later), begun, "one of both");
    });
}

/// Three find a key that lacks a wrap which is not to be had: whoever may look for a successor puts
/// it off, and for a second nobody else may.
#[test]
fn a_refresh_that_is_put_off_begins_once_a_second() {
    explore(|| {
        let now = at(10);
        let pace = Arc::new(Pace::soon(at(9), u8::MAX));
        let begun = three(&pace, move |pace| {
            let begun = pace.begin(now);
            if begun {
                pace.put_off(now);
            }
            begun
        });
        assert_eq!(begun.iter().filter(|begun| **begun).count(), 1);
        assert_eq!(pace.next(), Some(at(11).millis()));
    });
}

/// Three add a refresh, and whoever is told to runs the queue: one at a time when one may, and
/// none is left behind.
#[test]
fn one_runner_leaves_no_refresh_behind() {
    explore(|| assert_eq!(drain(1), 1));
}

/// As before, with two at a time: a tenant's share of eight.
#[test]
fn two_runners_leave_no_refresh_behind() {
    explore(|| assert!(drain(8) <= 2));
}

/// However many a tenant has to refresh: a quarter of what may run is its own, and who comes then is
/// next.
#[test]
fn a_tenant_with_many_to_refresh_holds_up_nobody_else() {
    explore(|| {
        let queue = Queue::new(8);
        let (many, few) = (tenant("many"), tenant("few"));
        let runners = (0..9).filter(|n| queue.add(&many, 1, *n) && queue.next(None).is_some());
        assert_eq!(runners.count(), 2);
        assert!(queue.add(&few, 1, 9), "there are runners for others");
        assert_eq!(queue.next(None), Some((few.clone(), 9)));
        // Whoever is through takes what may run, and the last leaves nothing behind.
        assert!(queue.add(&few, 1, 10));
        assert_eq!(queue.next(Some(&few)), Some((few.clone(), 10)));
        assert_eq!(queue.next(None), None, "its runner comes too late");
        assert_eq!(queue.next(Some(&few)), None);
        let rest = std::iter::from_fn(|| queue.next(Some(&many)));
        assert_eq!(rest.count(), 7);
    });
}

/// With one runner the tenants take turns.
#[test]
fn refreshes_of_tenants_take_turns() {
    explore(|| {
        let queue = Queue::new(1);
        for (name, n) in [("a", 0), ("a", 1), ("a", 2), ("b", 9)] {
            queue.add(&tenant(name), 1, n);
        }
        let mut last = None;
        let order = std::iter::from_fn(|| {
            let (tenant, n) = queue.next(last.as_ref())?;
            last = Some(tenant);
            Some(n)
        });
        assert_eq!(order.collect::<Vec<_>>(), [0, 9, 1, 2]);
    });
}

/// Has three threads add one each of a tenant to a queue from which `most` are taken at once, and
/// returns how many were at most.
fn drain(most: usize) -> usize {
    let shared = Arc::new((Queue::new(most), std::sync::Mutex::new(Progress::default())));
    three(&shared, |(queue, progress)| {
        // Known to std's lock alone, so that it adds no interleavings.
        let of = |step: fn(&mut Progress)| step(&mut progress.lock().expect("no panic"));
        if !queue.add(&tenant("acme"), 1, ()) {
            return;
        }
        let mut done = None;
        while let Some((tenant, ())) = queue.next(done.as_ref()) {
            of(Progress::start);
            thread::yield_now();
            of(Progress::end);
            done = Some(tenant);
        }
    });
    let progress = shared.1.lock().expect("no panic");
    assert_eq!((progress.done, progress.running), (3, 0));
    progress.peak
}

/// Three race for two messages each, of which there are five: every one gets what is left of its two
/// or nothing, and no more than five are handed out.
#[test]
fn several_messages_are_taken_as_far_as_they_go() {
    explore(|| {
        let whole = Left {
            messages: 5,
            bytes: u64::MAX,
        };
        assert_eq!(shares_of(whole, &[1, 1]), [1, 2, 2]);
    });
}

/// Three race for nine bytes, three and then two each: who comes first gets both, who comes second
/// the first alone, and the last nothing.
#[test]
fn bytes_of_several_messages_are_never_overdrawn() {
    explore(|| {
        let whole = Left {
            messages: u64::MAX,
            bytes: 9,
        };
        assert_eq!(shares_of(whole, &[3, 2]), [1, 2]);
    });
}

/// For how many of messages of these `sizes` three reservations had room, in order; those that had
/// none are left out.
fn shares_of(whole: Left, sizes: &'static [u64]) -> Vec<usize> {
    let budget = Arc::new(Budget::new(whole));
    let results = three(&budget, move |budget| budget.reserve(sizes).ok());
    let mut shares: Vec<usize> = results
        .into_iter()
        .flatten()
        .map(|(count, _)| count)
        .collect();
    shares.sort_unstable();
    shares
}

#[derive(Default)]
struct Progress {
    running: usize,
    peak: usize,
    done: usize,
}

impl Progress {
    fn start(&mut self) {
        self.running += 1;
        self.peak = self.peak.max(self.running);
    }

    fn end(&mut self) {
        self.running -= 1;
        self.done += 1;
    }
}

/// What the winners of three reservations of `bytes` were told is left, in order.
fn race_for(whole: Left, bytes: u64, of: fn(&Left) -> u64) -> Vec<u64> {
    let budget = Arc::new(Budget::new(whole));
    let results = three(&budget, move |budget| {
        budget.reserve(&[bytes]).ok().map(|(_, left)| left)
    });
    let mut told: Vec<u64> = results.iter().flatten().map(of).collect();
    told.sort_unstable();
    assert_eq!(
        told.first(),
        Some(&of(&budget.left())),
        "as the last was told"
    );
    told
}

/// Three threads take, use and give back two slots: nobody meets another in a slot, what one wrote
/// into it is seen by the next, and in the end all slots are free.
#[test]
fn no_slot_has_two_holders() {
    // All interleavings of its many steps would take hours.
    explore_to(scaled(3, 4), || {
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
        assert_eq!(slots.used(), slots.count());
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

/// Two ring a bell while its task polls, goes to rest or rests: the task sees what both did, and
/// is never left asleep, which loom would call a deadlock.
#[test]
fn who_rings_is_answered() {
    struct Bed(Notify);

    impl Wake for Bed {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.notify();
        }
    }

    explore(|| {
        let bell = Arc::new(Bell::new());
        let bed = std::sync::Arc::new(Bed(Notify::new()));
        let task = Waker::from(std::sync::Arc::clone(&bed));
        let events = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let ringers = events.clone().map(|event| {
            let bell = Arc::clone(&bell);
            thread::spawn(move || {
                // Relaxed: that the task sees it is the bell's doing.
                event.store(true, Ordering::Relaxed);
                bell.ring();
            })
        });
        loop {
            bell.begin(&task);
            let mut seen = events.iter().all(|event| event.load(Ordering::Relaxed));
            if !seen && bell.rang() {
                seen = events.iter().all(|event| event.load(Ordering::Relaxed));
            }
            if seen {
                break;
            }
            if bell.rest() {
                bed.0.wait();
            }
        }
        for ringer in ringers {
            ringer.join().expect("no panic");
        }
    });
}

/// Three want to probe a key: two of them give up, and the probe of one fails. No two probe at once,
/// and the door is not wedged: when nobody probes any more, somebody can.
#[test]
fn no_two_probe_at_once() {
    explore(|| {
        let (breaker, now) = nearly_open();
        fail(&breaker, now);
        let later = now + Duration::from_secs(1);
        let shared = Arc::new((breaker, UnsafeCell::new(())));
        let probers = [None, Some(Verdict::Failure)].map(|verdict| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || probe(&shared, later, verdict))
        });
        probe(&shared, later, None);
        for prober in probers {
            done(prober);
        }
        let (breaker, _) = &*shared;
        let after = later + Duration::from_secs(1);
        let pass = breaker.admit(after).expect("a probe");
        assert!(breaker.admit(after).is_none(), "it is under way");
        let change = pass.settle(Verdict::Success, after, 0);
        assert_eq!(change, Some(Change::Close));
    });
}

/// Makes the probe, if it may, and is alone in it: loom fails the model otherwise. Without a verdict
/// it is given up.
fn probe(
    (breaker, cell): &(Breaker, UnsafeCell<()>),
    now: tokio::time::Instant,
    verdict: Option<Verdict>,
) {
    if let Some(pass) = breaker.admit(now) {
        cell.with_mut(|_| ());
        if let Some(verdict) = verdict {
            pass.settle(verdict, now, 0);
        }
    }
}

/// While a breaker opens and a probe is under way, an earlier call succeeds and another asks to
/// pass: the probe alone decides.
#[test]
fn the_probe_alone_decides() {
    explore(|| {
        let (breaker, now) = nearly_open();
        let later = now + Duration::from_secs(1);
        let breaker = Arc::new(breaker);
        let early = {
            let breaker = Arc::clone(&breaker);
            thread::spawn(move || {
                if let Some(pass) = breaker.admit(now) {
                    assert_eq!(pass.settle(Verdict::Success, now, 0), None);
                }
            })
        };
        fail(&breaker, now);
        let pass = breaker.admit(later).expect("a probe");
        let late = {
            let breaker = Arc::clone(&breaker);
            thread::spawn(move || breaker.admit(later).is_some())
        };
        assert_eq!(pass.settle(Verdict::Failure, later, 0), None);
        done(early);
        assert!(!done(late), "one probe, and then none for a while");
        assert_eq!(breaker.circuit(), Circuit::Open);
    });
}

/// A breaker that the next failure opens, and the time.
fn nearly_open() -> (Breaker, tokio::time::Instant) {
    let now = tokio::time::Instant::now();
    let breaker = Breaker::new(now);
    for _ in 1..breaker::FEWEST {
        fail(&breaker, now);
    }
    (breaker, now)
}

fn fail(breaker: &Breaker, now: tokio::time::Instant) {
    let pass = breaker.admit(now).expect("it is closed");
    pass.settle(Verdict::Failure, now, 0);
}

/// Takes a slot, if one is free, and is alone in it: loom fails the model otherwise.
fn visit((slots, cells): &(Slots, [UnsafeCell<()>; 2]), near: usize) {
    if let Some(slot) = slots.take(near) {
        let cell = cells.get(slot).expect("there are two slots");
        cell.with_mut(|_| ());
        slots.release(slot);
    }
}

/// Runs `act` in three threads at once.
fn three<S, T>(shared: &Arc<S>, act: impl Fn(&S) -> T + Clone + Send + 'static) -> [T; 3]
where
    S: Send + Sync + 'static,
    T: Send + 'static,
{
    let racers = [(); 2].map(|()| {
        let (shared, act) = (Arc::clone(shared), act.clone());
        thread::spawn(move || act(&shared))
    });
    let mine = act(shared);
    let [first, second] = racers.map(done);
    [first, second, mine]
}

fn begin(pace: &Arc<Pace>, now: Instant) -> JoinHandle<bool> {
    let pace = Arc::clone(pace);
    thread::spawn(move || pace.begin(now))
}

fn done<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("no panic")
}

/// So many seconds on a clock's way.
fn at(seconds: u64) -> Instant {
    Manual::new(Timestamp::UNIX_EPOCH).now() + Duration::from_secs(seconds)
}

/// Tries all interleavings of up to three preemptions; in the long form also those of more, as
/// many as there are or [`MOST`].
fn explore(model: impl Fn() + Send + Sync + 'static) {
    let model = std::sync::Arc::new(model);
    let again = std::sync::Arc::clone(&model);
    explore_to(3, move || model());
    if scaled(false, true) {
        search(None, Some(MOST), move || again());
    }
}

/// Tries all interleavings of up to so many preemptions.
fn explore_to(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    search(Some(preemptions), None, model);
}

fn search(
    preemptions: Option<usize>,
    most: Option<usize>,
    model: impl Fn() + Send + Sync + 'static,
) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_permutations = most;
    builder.check(model);
}

/// Interleavings of a model whose preemptions are not bounded: some have so many that to try them
/// all would take days.
const MOST: usize = 500_000;
