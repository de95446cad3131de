//! Random schedules of the whole cache: `datakeys` beside this file links to the product's own
//! room, and what that takes from `crate::sync` is shuttle's here. A crate of its own for that
//! reason, and without the usual harness, under which the cache's own unit tests would run on
//! those primitives too.
//!
//! The usual run tries 100,000 schedules in all, the long form (`KEYBROKER_TEST_LONG=1`) 300,000,
//! and `KEYBROKER_TEST_SCHEDULES=10000000`, in some hours, ten million; half are random, half
//! PCT's. Each use of a data key is held against what KMS wrote
//! down (`world`); a task that never ends is a deadlock, which shuttle reports.
//!
//! A failing schedule is printed. To run it again, with the name of its scenario:
//! `KEYBROKER_TEST_SCHEDULE=<text> cargo test --test schedules -- --exact <scenario>`.
//! Moka, arc_swap, tokio's Notify and OnceLock are one step each; the order of std's hash maps is
//! not replayed, so a schedule of several tenants may need a few tries.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    missing_docs,
    unreachable_pub
)]

use std::env;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use keybroker::clock;
use keybroker::clock::Manual;
use keybroker::directory;
use keybroker::message;
use keybroker::message::Message;
use keybroker::metrics;
use keybroker::metrics::Metrics;
use keybroker::metrics::Retirement;
use keybroker::name;
use keybroker::policy;
use keybroker::policy::Policy;
use keybroker::strict;
use keybroker::trace;
use libtest_mimic::Arguments;
use libtest_mimic::Trial;
use shuttle::Runner;
use shuttle::future::JoinHandle;
use shuttle::future::block_on;
use shuttle::rand::Rng as _;
use shuttle::rand::thread_rng;
use shuttle::scheduler::PctScheduler;
use shuttle::scheduler::RandomScheduler;
use shuttle::scheduler::ReplayScheduler;

#[allow(
    dead_code,
    unused_imports,
    reason = "without the usual harness its unit tests are left out, and their helpers unused"
)]
mod datakeys;
#[allow(dead_code, reason = "some of it is for others")]
#[path = "../../src/kms/guarded/fair.rs"]
mod fair;
#[path = "../support/figures.rs"]
mod figures;
#[path = "../support/scale.rs"]
mod scale;
mod world;

use datakeys::Config;
use datakeys::DataKeys;
use datakeys::Error;
use datakeys::Patience;
use datakeys::Scope;
use scale::scaled;
use shuttle::future::yield_now;
use world::Ledger;
use world::Mood;
use world::Place;
use world::Sealed;

mod kms {
    pub use keybroker::kms::*;

    pub(crate) use crate::fair::Fair;
}

/// The library's, but for randomness that a replay repeats.
mod crypto {
    pub use keybroker::crypto::*;

    pub mod random {
        pub use keybroker::crypto::random::Error;
        use shuttle::rand::RngCore as _;

        pub fn fill(bytes: &mut [u8]) -> Result<(), Error> {
            shuttle::rand::thread_rng().fill_bytes(bytes);
            Ok(())
        }
    }
}

mod sync {
    use std::cell::Cell;
    use std::cell::RefCell;
    use std::future::Future;
    use std::future::poll_fn;
    use std::mem;
    use std::pin::pin;
    use std::sync::PoisonError;
    use std::task::Poll;
    use std::time::Duration;

    use shuttle::future::JoinHandle;
    use shuttle::future::block_on;
    use shuttle::rand::Rng as _;
    use shuttle::rand::thread_rng;
    use tokio::sync::oneshot;

    pub(crate) use shuttle::sync::Mutex;
    pub(crate) use shuttle::sync::MutexGuard;
    pub(crate) use shuttle::sync::RwLock;
    pub(crate) use shuttle::sync::RwLockReadGuard;
    pub(crate) use shuttle::sync::RwLockWriteGuard;

    /// Std's with a change of tasks before each use: shuttle's know no exception.
    pub(crate) mod atomic {
        pub(crate) use std::sync::atomic::Ordering;

        macro_rules! atomics {
            ($($name:ident($int:ty)),*) => {$(
                #[derive(Default)]
                pub(crate) struct $name(std::sync::atomic::$name);

                #[allow(dead_code, reason = "not each has every use")]
                impl $name {
                    pub(crate) fn new(value: $int) -> Self {
                        Self(value.into())
                    }

                    pub(crate) fn load(&self, order: Ordering) -> $int {
                        super::switch();
                        self.0.load(order)
                    }

                    pub(crate) fn store(&self, value: $int, order: Ordering) {
                        super::switch();
                        self.0.store(value, order);
                    }

                    pub(crate) fn fetch_add(&self, value: $int, order: Ordering) -> $int {
                        super::switch();
                        self.0.fetch_add(value, order)
                    }

                    pub(crate) fn fetch_sub(&self, value: $int, order: Ordering) -> $int {
                        super::switch();
                        self.0.fetch_sub(value, order)
                    }

                    pub(crate) fn fetch_update(
                        &self,
                        set: Ordering,
                        fetch: Ordering,
                        update: impl FnMut($int) -> Option<$int>,
                    ) -> Result<$int, $int> {
                        super::switch();
                        self.0.fetch_update(set, fetch, update)
                    }
                }
            )*};
        }
        atomics!(AtomicU32(u32), AtomicU64(u64), AtomicUsize(usize));

        /// Every order is `SeqCst` where there is one thread.
        pub(crate) fn fence(_: Ordering) {}
    }

    thread_local! {
        static STEP: Cell<bool> = const { Cell::new(false) };
        static TASKS: RefCell<Vec<JoinHandle<()>>> = const { RefCell::new(Vec::new()) };
        static IMPATIENT: Cell<bool> = const { Cell::new(false) };
    }

    pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read<T: ?Sized>(rwlock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
        rwlock.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write<T: ?Sized>(rwlock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
        rwlock.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Inside of moka's locks no other task may run: it would wait for them without end.
    pub(crate) fn step<T>(act: impl FnOnce() -> T) -> T {
        let outer = STEP.replace(true);
        let result = act();
        STEP.set(outer);
        result
    }

    fn switch() {
        // Outside of executions moka drops what it has kept back.
        if !STEP.get() && shuttle::current::try_get_current_task().is_some() {
            shuttle::sync::atomic::AtomicBool::new(false).load(atomic::Ordering::SeqCst);
        }
    }

    pub(crate) fn spawn<T: Send + 'static>(
        future: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = Result<T, oneshot::error::RecvError>> + Send + 'static {
        let (end, ended) = oneshot::channel();
        let task = shuttle::future::spawn(async move {
            // Nobody may wait for it any more.
            let _ = end.send(future.await);
        });
        TASKS.with_borrow_mut(|tasks| tasks.push(task));
        ended
    }

    /// In an impatient execution some waits end early, after any number of polls.
    pub(crate) async fn within<T>(_: Duration, future: impl Future<Output = T>) -> Option<T> {
        let mut polls = IMPATIENT.get().then(|| thread_rng().gen_range(0..6));
        let mut future = pin!(future);
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => match &mut polls {
                None => Poll::Pending,
                Some(0) => Poll::Ready(None),
                Some(left) => {
                    *left -= 1;
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
            },
        })
        .await
    }

    /// Others go on meanwhile.
    pub(crate) async fn sleep(_: Duration) {
        shuttle::future::yield_now().await;
    }

    /// Forgets what an execution that failed left behind.
    pub(crate) fn begin(impatient: bool) {
        TASKS.take();
        STEP.set(false);
        IMPATIENT.set(impatient);
    }

    /// Waits for all tasks that were spawned, and for those that they spawn.
    pub(crate) fn finish() {
        loop {
            let tasks = TASKS.with_borrow_mut(mem::take);
            if tasks.is_empty() {
                return;
            }
            for task in tasks {
                block_on(task).expect("nobody ends tasks");
            }
        }
    }
}

/// One execution: a cache, and what it stands on.
#[derive(Clone)]
struct Setup {
    clock: Arc<Manual>,
    ledger: Arc<Ledger>,
    metrics: Metrics,
    keys: Arc<DataKeys>,
    /// Whether all must go well.
    faultless: bool,
}

impl Setup {
    fn new() -> Self {
        Self::of(&Config::default())
    }

    fn of(config: &Config) -> Self {
        sync::begin(false);
        let clock = Arc::new(Manual::new(Timestamp::UNIX_EPOCH));
        let ledger = Arc::new(Ledger::new(clock.clone()));
        let metrics = Metrics::unread();
        let keys = DataKeys::new(ledger.clone(), clock.clone(), metrics.clone(), config);
        Self {
            clock,
            ledger,
            metrics,
            keys: Arc::new(keys),
            faultless: true,
        }
    }

    /// KMS may fail, and an answer may come too late.
    fn faulty(mut self) -> Self {
        self.faultless = false;
        self
    }

    fn spawn<F>(&self, task: impl FnOnce(Self) -> F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        shuttle::future::spawn(task(self.clone()))
    }

    async fn seal(&self, place: Place, bytes: u8) -> Option<Sealed> {
        self.seal_by(world::policy(), place, bytes).await
    }

    async fn seal_by(&self, policy: &Policy, place: Place, bytes: u8) -> Option<Sealed> {
        let permit = world::to_seal(policy, place);
        let attempt = self.ledger.begin();
        let reserved = match self
            .keys
            .sealing(&permit, bytes.into(), &Patience::default())
            .await
        {
            Ok(reserved) => reserved,
            Err(error) => return self.failed(error),
        };
        yield_now().await;
        let plaintext = vec![0; bytes.into()];
        let sealed = reserved.seal(b"", &plaintext).expect("randomness");
        // No task has run since before the data key was used.
        let message = Message::parse(&sealed).expect("a message");
        let serial = world::serial(&message);
        self.ledger.seals(&attempt, &permit, serial, bytes.into());
        drop(message);
        Some(Sealed {
            place,
            bytes: sealed,
        })
    }

    async fn open(&self, sealed: &Sealed) {
        let message = Message::parse(&sealed.bytes).expect("a message");
        let permit = world::to_open(world::policy(), sealed.place, &message);
        let attempt = self.ledger.begin();
        let opener = match self
            .keys
            .opening(&permit, &message, &Patience::default())
            .await
        {
            Ok(opener) => opener,
            Err(error) => return self.failed(error).unwrap_or_default(),
        };
        yield_now().await;
        let serial = world::serial(&message);
        self.ledger.opens(&attempt, &permit, serial);
        opener.open(&message, b"").expect("its own data key");
    }

    fn failed<T>(&self, error: Error) -> Option<T> {
        match error {
            Error::Kms(error) if !self.faultless => self.ledger.refused(&error),
            error => panic!("{error}"),
        }
        None
    }

    async fn purge(&self, scope: Scope) {
        let number = self.ledger.purge_begins(&scope);
        self.keys.purge(&scope).await;
        self.ledger.purge_ends(number);
    }

    fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// Ends the execution: whatever was begun comes to its end, nothing stays in memory, and the
    /// books are right.
    fn finish(self, tasks: impl IntoIterator<Item = JoinHandle<()>>) {
        for task in tasks {
            block_on(task).expect("nobody ends tasks");
        }
        sync::finish();
        self.ledger.turn(Mood::Good);
        block_on(self.purge(Scope::All));
        assert_eq!(block_on(self.keys.purge(&Scope::All)), 0);
        let stats = self.keys.stats();
        assert_eq!(stats.kms_calls, self.ledger.calls());
        let served = stats.hits + stats.misses + stats.coalesced + stats.stale;
        assert_eq!(served, self.ledger.served());
        if self.faultless {
            let retired = Retirement::ALL.map(|reason| self.metrics.retirements(reason));
            let retired = retired.iter().sum::<u64>() as usize;
            assert!(self.ledger.kept().contains(&retired), "each once");
        }
        self.keys.sweep();
        sync::finish();
    }
}

/// Six messages for data keys that seal three of a hundred bytes.
fn limits_are_kept() {
    let setup = Setup::new();
    let tasks = [30, 60, 99].map(|bytes| {
        setup.spawn(async move |setup| {
            setup.seal(ORDERS, bytes).await;
            setup.seal(ORDERS, 1).await;
        })
    });
    setup.finish(tasks);
}

/// A message beyond the limit of bytes beside small ones.
fn a_large_message_has_a_key_of_its_own() {
    let setup = Setup::new();
    let tasks = [101, 50, 50].map(|bytes| {
        setup.spawn(async move |setup| {
            if let Some(sealed) = setup.seal(LARGE, bytes).await {
                setup.open(&sealed).await;
            }
        })
    });
    setup.finish(tasks);
}

/// Time passes, in steps below and beyond the hard limit, while keys are used and swept.
fn no_key_serves_past_its_age() {
    let setup = Setup::new().faulty();
    let users = [(); 2].map(|()| {
        setup.spawn(async |setup| {
            let sealed = setup.seal(ORDERS, 1).await;
            setup.seal(ORDERS, 1).await;
            if let Some(sealed) = sealed {
                setup.open(&sealed).await;
            }
        })
    });
    let time = setup.spawn(async |setup| {
        for seconds in [59, 1, 61] {
            setup.advance(seconds);
            yield_now().await;
            setup.keys.sweep();
        }
    });
    setup.finish(users.into_iter().chain([time]));
}

/// Past the soft limit, callers and the sweep have a successor fetched, and at most two at once.
fn refreshes_race_with_uses() {
    let setup = Setup::of(&Config {
        refreshes: 1,
        ..Config::default()
    });
    for place in [ORDERS, OTHER] {
        block_on(setup.seal(place, 1));
    }
    setup.advance(54);
    let users = [ORDERS, OTHER].map(|place| {
        setup.spawn(async move |setup| {
            setup.seal(place, 1).await;
            setup.seal(place, 1).await;
        })
    });
    let sweep = setup.spawn(async |setup| setup.keys.sweep());
    setup.finish(users.into_iter().chain([sweep]));
}

/// What a purge returns after is gone: in the cache, on its way, and in somebody's hands.
fn nothing_outlives_a_purge() {
    let setup = Setup::new();
    let users = [(ORDERS, 1), (ORDERS, 1), (LARGE, 101)].map(|(place, bytes)| {
        setup.spawn(async move |setup| {
            let sealed = setup.seal(place, bytes).await.expect("no faults");
            setup.open(&sealed).await;
            setup.seal(place, 1).await;
        })
    });
    let purge = setup.spawn(async |setup| {
        let scopes = [
            Scope::All,
            Scope::Key(ORDERS.name()),
            Scope::Tenant(ORDERS.name().tenant),
        ];
        let chosen = thread_rng().gen_range(0..scopes.len());
        setup.purge(scopes[chosen].clone()).await;
    });
    setup.finish(users.into_iter().chain([purge]));
}

/// Two purges at once, with a sweep among them, of keys that are opened meanwhile.
fn purges_race_with_each_other() {
    let setup = Setup::new();
    let sealed = block_on(setup.seal(ORDERS, 1)).expect("no faults");
    let purges = [Scope::All, Scope::Key(ORDERS.name())].map(|scope| {
        setup.spawn(async move |setup| {
            setup.purge(scope).await;
            setup.keys.sweep();
            setup.seal(ORDERS, 1).await;
        })
    });
    let user = setup.spawn(async move |setup| {
        setup.open(&sealed).await;
        setup.open(&sealed).await;
    });
    setup.finish(purges.into_iter().chain([user]));
}

/// KMS denies one document, or the key, and allows it again.
fn a_denial_races_with_hits() {
    let setup = Setup::new().faulty();
    let places = [ORDERS, ORDERS, LARGE];
    let users = places.map(|place| {
        setup.spawn(async move |setup| {
            let bytes = if place == LARGE { 110 } else { 90 };
            let sealed = setup.seal(place, bytes).await;
            setup.seal(place, 1).await;
            if let Some(sealed) = sealed {
                setup.open(&sealed).await;
            }
            setup.seal(place, 90).await;
        })
    });
    let kms = setup.spawn(async |setup| {
        let moods = [
            Mood::Denying(ORDERS.document),
            Mood::Denying(LARGE.document),
            Mood::Deleting,
            Mood::Down,
        ];
        setup.ledger.turn(moods[thread_rng().gen_range(0..4)]);
        yield_now().await;
        setup.ledger.turn(Mood::Good);
        setup.advance(6);
    });
    setup.finish(users.into_iter().chain([kms]));
}

/// Two tenants with more entries than there is room for.
fn eviction_races_with_uses() {
    let setup = Setup::of(&Config {
        entries: 3,
        tenant_entries: 2,
        refreshes: 1,
        ..Config::default()
    });
    let places = [[ORDERS, OTHER], [OTHER, ORDERS], [FOREIGN, ORDERS]];
    let users = places.map(|places| {
        setup.spawn(async move |setup| {
            for place in places {
                let sealed = setup.seal(place, 1).await.expect("no faults");
                setup.open(&sealed).await;
            }
            setup.keys.sweep();
        })
    });
    setup.finish(users);
}

/// A caller goes away, having started the call to KMS or waiting for it.
fn a_caller_that_goes_away_harms_nobody() {
    let setup = Setup::new();
    let leaver = setup.spawn(async |setup| {
        let permit = world::to_seal(world::policy(), ORDERS);
        let polls = thread_rng().gen_range(1..4);
        let patience = Patience::default();
        let mut sealing = Box::pin(setup.keys.sealing(&permit, 1, &patience));
        for _ in 0..polls {
            // What it has reserved is lost with it: served, but unused.
            if sealing.as_mut().now_or_never().is_some() {
                setup.ledger.lost();
                return;
            }
            yield_now().await;
        }
    });
    let users = [(); 2].map(|()| {
        setup.spawn(async |setup| {
            setup.seal(ORDERS, 1).await;
        })
    });
    setup.finish(users.into_iter().chain([leaver]));
}

/// KMS hangs or answers late: whoever waits is told, and the next call is a new one.
fn a_call_that_takes_too_long_ends() {
    let setup = Setup::new().faulty();
    sync::begin(true);
    let users = [ORDERS, ORDERS, OTHER].map(|place| {
        setup.spawn(async move |setup| {
            let sealed = setup.seal(place, 1).await;
            if let Some(sealed) = sealed {
                setup.open(&sealed).await;
            }
            setup.seal(place, 1).await;
        })
    });
    let kms = setup.spawn(async |setup| {
        setup.ledger.turn(Mood::Hanging);
        yield_now().await;
        setup.ledger.turn(Mood::Good);
    });
    setup.finish(users.into_iter().chain([kms]));
}

/// A key gets another KMS key while callers of the old and the new state are at work.
fn a_changed_binding_races_with_uses() {
    let setup = Setup::new();
    let older = world::policy();
    let newer = {
        let text = world::TENANTS.replacen("local:one", "local:two", 1);
        world::policy_of(world::directory(&text).succeed(older.directory()))
    };
    let newer = Arc::new(newer);
    let user = setup.spawn(async |setup| {
        setup.seal(ORDERS, 1).await;
        setup.seal(ORDERS, 1).await;
    });
    let policy = Arc::clone(&newer);
    let reload = setup.spawn(async move |setup| {
        setup.seal(ORDERS, 1).await;
        setup.keys.follow(policy.directory());
        setup.seal_by(&policy, ORDERS, 1).await;
    });
    let next = setup.spawn(async move |setup| {
        setup.seal_by(&newer, ORDERS, 1).await;
        setup.seal_by(&newer, ORDERS, 1).await;
    });
    setup.finish([user, reload, next]);
}

/// Everything at once, in any order.
fn whatever_happens_happens_at_once() {
    let setup = Setup::of(&Config {
        entries: 4,
        tenant_entries: 3,
        ..Config::default()
    })
    .faulty();
    sync::begin(thread_rng().gen_ratio(1, 8));
    let tasks = [(); 4].map(|()| {
        setup.spawn(async |setup| {
            let mut sealed = None;
            for _ in 0..4 {
                let place = PLACES[thread_rng().gen_range(0..PLACES.len())];
                match thread_rng().gen_range(0..20) {
                    0 => setup.purge(Scope::All).await,
                    1 => setup.purge(Scope::Key(place.name())).await,
                    2 => setup.purge(Scope::Tenant(place.name().tenant)).await,
                    3 => setup.advance(thread_rng().gen_range(1..70)),
                    4 => setup.keys.sweep(),
                    5 => setup.ledger.turn(Mood::Denying(place.document)),
                    6 => setup.ledger.turn(Mood::Deleting),
                    7 => setup.ledger.turn(Mood::Down),
                    8 => setup.ledger.turn(Mood::Good),
                    9..13 => match &sealed {
                        Some(sealed) => setup.open(sealed).await,
                        None => yield_now().await,
                    },
                    _ => {
                        let bytes = thread_rng().gen_range(0..110);
                        let bytes = if place == LARGE { bytes } else { bytes.min(99) };
                        sealed = setup.seal(place, bytes).await.or(sealed);
                    }
                }
            }
        })
    });
    setup.finish(tasks);
}

fn main() {
    let arguments = Arguments::from_args();
    let trials = SCENARIOS.map(|(name, scenario)| {
        Trial::test(name, move || {
            explore(scenario);
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.into());
    if conclusion.num_passed == SCENARIOS.len() as u64 {
        figures::record("models", [("schedules", schedules())]);
    }
    conclusion.exit();
}

fn explore(scenario: fn()) {
    if let Ok(schedule) = env::var("KEYBROKER_TEST_SCHEDULE") {
        let scheduler = ReplayScheduler::new_from_encoded(&schedule);
        Runner::new(scheduler, config()).run(scenario);
        return;
    }
    let each = schedules().div_ceil(2 * SCENARIOS.len());
    Runner::new(RandomScheduler::new(each), config()).run(scenario);
    Runner::new(PctScheduler::new(3, each), config()).run(scenario);
}

/// How many schedules are tried in all.
fn schedules() -> usize {
    match env::var("KEYBROKER_TEST_SCHEDULES") {
        Ok(asked) => asked.parse().unwrap(),
        Err(_) => scaled(SCHEDULES, SCHEDULES * 3),
    }
}

fn config() -> shuttle::Config {
    let mut config = shuttle::Config::new();
    // Sealing takes more than shuttle's 60 KiB without optimization.
    config.stack_size = 512 << 10;
    config.silence_warnings = true;
    config
}

const SCENARIOS: [(&str, fn()); 12] = [
    ("limits_are_kept", limits_are_kept),
    (
        "a_large_message_has_a_key_of_its_own",
        a_large_message_has_a_key_of_its_own,
    ),
    ("no_key_serves_past_its_age", no_key_serves_past_its_age),
    ("refreshes_race_with_uses", refreshes_race_with_uses),
    ("nothing_outlives_a_purge", nothing_outlives_a_purge),
    ("purges_race_with_each_other", purges_race_with_each_other),
    ("a_denial_races_with_hits", a_denial_races_with_hits),
    ("eviction_races_with_uses", eviction_races_with_uses),
    (
        "a_caller_that_goes_away_harms_nobody",
        a_caller_that_goes_away_harms_nobody,
    ),
    (
        "a_call_that_takes_too_long_ends",
        a_call_that_takes_too_long_ends,
    ),
    (
        "a_changed_binding_races_with_uses",
        a_changed_binding_races_with_uses,
    ),
    (
        "whatever_happens_happens_at_once",
        whatever_happens_happens_at_once,
    ),
];

const ORDERS: Place = Place::new("acme", "orders", "a");
const OTHER: Place = Place::new("acme", "orders", "b");
const LARGE: Place = Place::new("acme", "orders", "large");
const WAGES: Place = Place::new("acme", "wages", "a");
const FOREIGN: Place = Place::new("umbrella", "orders", "a");
const PLACES: [Place; 6] = [ORDERS, ORDERS, OTHER, LARGE, WAGES, FOREIGN];

/// Of all scenarios, in the usual run.
const SCHEDULES: usize = 100_000;
