//! Random schedules of what a replica knows of grants: `grants` beside this file links to the
//! product's own room, and what that takes from `crate::sync` is shuttle's here. Without the usual
//! harness, under which the room's own unit tests would run on those primitives too.
//!
//! News of the store, uses and revocations race, as in `broker::Grants`. A failing schedule is
//! printed. To run it again, with the name of its scenario:
//! `KEYBROKER_TEST_SCHEDULE=<text> cargo test --test revocations -- --exact <scenario>`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub
)]

use std::env;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use keybroker::clock;
use keybroker::clock::Clock as _;
use keybroker::clock::Manual;
use keybroker::crypto;
use keybroker::directory;
use keybroker::directory::Directory;
use keybroker::identity;
use keybroker::identity::Principal;
use keybroker::name;
use keybroker::name::KeyName;
use libtest_mimic::Arguments;
use libtest_mimic::Trial;
use shuttle::Runner;
use shuttle::scheduler::PctScheduler;
use shuttle::scheduler::RandomScheduler;
use shuttle::scheduler::ReplayScheduler;
use shuttle::sync::Mutex;
use shuttle::thread;
use shuttle::thread::JoinHandle;

#[allow(
    dead_code,
    unused_imports,
    reason = "the product uses the rest, and its unit tests"
)]
mod grants;
#[allow(dead_code, reason = "messages use the rest")]
#[path = "../../src/message/reader.rs"]
mod reader;
#[path = "../support/scale.rs"]
mod scale;

use grants::Basis;
use grants::Book;
use grants::Claims;
use grants::Contact;
use grants::Ending;
use grants::Found;
use grants::Grant;
use grants::Id;
use grants::Living;
use grants::Operation;
use grants::Operations;
use grants::Terms;
use grants::TokenKey;
use grants::TokenKeys;
use grants::Use;
use grants::Wanted;
use scale::scaled;

mod message {
    pub use keybroker::message::*;

    pub(crate) use crate::reader;
}

mod sync {
    use std::sync::PoisonError;

    pub(crate) use shuttle::sync::Mutex;
    pub(crate) use shuttle::sync::MutexGuard;
    pub(crate) use shuttle::sync::RwLock;
    pub(crate) use shuttle::sync::RwLockReadGuard;
    pub(crate) use shuttle::sync::RwLockWriteGuard;
    pub(crate) use shuttle::sync::atomic;

    pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read<T: ?Sized>(rwlock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
        rwlock.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write<T: ?Sized>(rwlock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
        rwlock.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A replica and the store that it follows.
#[derive(Clone)]
struct Replica {
    book: Arc<Book>,
    clock: Arc<Manual>,
    /// Every change of a grant, the first numbered 1: the grant as it left it.
    store: Arc<Mutex<Vec<Grant>>>,
    /// The change up to which all is known. Held while that moves.
    known: Arc<Mutex<Option<usize>>>,
}

impl Replica {
    /// In touch with a store without grants.
    fn new() -> Self {
        let replica = Self::early();
        replica.catch_up();
        replica
    }

    /// One that knows nothing yet.
    fn early() -> Self {
        let clock = Arc::new(Manual::new(Timestamp::UNIX_EPOCH));
        Self {
            book: Arc::new(Book::new(keys(), clock.clone())),
            clock,
            store: Arc::default(),
            known: Arc::default(),
        }
    }

    /// The store has `grant` now as it is given.
    fn commit(&self, grant: &Grant) {
        sync::lock(&self.store).push(grant.clone());
    }

    /// Takes up what the store says now, while others may act.
    fn catch_up(&self) {
        let mut known = sync::lock(&self.known);
        let asked = self.clock.now();
        if known.is_none() {
            self.book.begin_anew();
        }
        let changes = sync::lock(&self.store).clone();
        match *known {
            None => {
                let living = Living::new();
                for grant in living_at_last(&changes) {
                    living.insert(grant);
                }
                thread::yield_now();
                self.book.replace(living);
            }
            Some(known) => {
                for grant in &changes[known..] {
                    thread::yield_now();
                    self.book.apply(grant);
                }
            }
        }
        thread::yield_now();
        self.book.heard(Contact {
            asked,
            store: self.clock.wall(),
            applied: number(changes.len()),
        });
        *known = Some(changes.len());
    }

    /// Has the next look at the store be at all that there is, as of a store that was restored.
    fn forget(&self) {
        *sync::lock(&self.known) = None;
    }

    /// Revokes `grant` by this replica: afterwards the caller knows of it.
    fn revoke(&self, grant: &Grant) {
        self.commit(&over(grant));
        self.book.end(&grant.id);
        // Until all is known nobody goes by what is.
        if self.book.contact().is_some() {
            self.catch_up();
        }
    }

    /// What a use with `tokens` may rest on, and the book that says so: what the store says now,
    /// until all is known here.
    fn look(&self, tokens: &[String]) -> (Arc<Book>, Option<Basis>) {
        if self.book.contact().is_some() {
            return (Arc::clone(&self.book), self.find(tokens));
        }
        let mut asking = self.clone();
        asking.book = Arc::new(self.book.apart());
        let asked = self.clock.now();
        let changes = sync::lock(&self.store).clone();
        for grant in &changes {
            asking.book.apply(grant);
        }
        asking.book.heard(Contact {
            asked,
            store: self.clock.wall(),
            applied: number(changes.len()),
        });
        let basis = asking.find(tokens);
        thread::yield_now();
        match self.book.is_level_with(&asking.book) {
            true => (Arc::clone(&self.book), basis),
            false => (asking.book, basis),
        }
    }

    /// What the book says of a use with `tokens`.
    fn find(&self, tokens: &[String]) -> Option<Basis> {
        let key = key();
        let who: Principal = WORKER.parse().unwrap();
        let wanted = Use::new(&key, &who, Operation::Encrypt, [].into_iter());
        match self.book.find(&wanted, tokens) {
            Found::Allow(basis) => Some(basis),
            Found::Nothing => None,
            Found::OutOfTouch => panic!("it is in touch"),
        }
    }

    fn spawn(&self, act: impl FnOnce(Self) + Send + 'static) -> JoinHandle<()> {
        let own = self.clone();
        thread::spawn(move || act(own))
    }
}

/// Here nobody uses it any more once its revocation is acknowledged, whatever older news is taken up
/// meanwhile.
fn who_revoked_here_sees_no_use() {
    let (replica, made) = (Replica::new(), grant(1, None));
    replica.commit(&made);
    let older = replica.spawn(|replica| replica.catch_up());
    let user = replica.spawn(|replica| {
        replica.find(&[]);
    });
    replica.revoke(&made);
    assert!(replica.find(&[token(&made)]).is_none());
    finish([older, user]);
    assert!(replica.find(&[token(&made)]).is_none());
}

/// The same while all is read anew.
fn who_revoked_while_all_is_read_sees_no_use() {
    let (replica, made) = (Replica::new(), grant(1, None));
    replica.commit(&made);
    replica.catch_up();
    let anew = replica.spawn(|replica| {
        replica.forget();
        replica.catch_up();
    });
    replica.revoke(&made);
    assert!(replica.find(&[token(&made)]).is_none());
    finish([anew]);
    assert!(replica.find(&[token(&made)]).is_none());
}

/// From its creation on, its token is enough: there is no moment between being ahead of the replica
/// and being known to it.
fn a_token_works_before_while_and_after_its_grant_is_taken_up() {
    let (replica, made) = (Replica::new(), grant(1, None));
    replica.commit(&made);
    let follower = replica.spawn(|replica| {
        replica.catch_up();
        replica.forget();
        replica.catch_up();
    });
    for _ in 0..3 {
        let basis = replica.find(&[token(&made)]).expect("it lives");
        assert_eq!(replica.book.stands(&basis), Some(true));
    }
    finish([follower]);
}

/// What was found before a revocation was taken up does not stand after that.
fn what_was_found_does_not_outlive_the_news_of_its_end() {
    let (replica, made) = (Replica::new(), grant(1, None));
    replica.commit(&made);
    let heard = Arc::new(Mutex::new(false));
    let user = {
        let (heard, token) = (Arc::clone(&heard), token(&made));
        replica.spawn(move |replica| {
            let before = *sync::lock(&heard);
            let Some(basis) = replica.find(&[token]) else {
                return;
            };
            assert!(!before, "it was over");
            thread::yield_now();
            let over = *sync::lock(&heard);
            let stands = replica.book.stands(&basis);
            assert!(!over || stands == Some(false), "{stands:?}");
        })
    };
    replica.catch_up();
    replica.commit(&over(&made));
    replica.catch_up();
    *sync::lock(&heard) = true;
    finish([user]);
}

/// A grant that rests on another one is over with it, whichever comes first.
fn what_rests_on_a_revoked_grant_is_over() {
    let (replica, parent) = (Replica::new(), parent());
    let child = grant(2, Some(&parent));
    replica.commit(&parent);
    replica.commit(&child);
    let follower = replica.spawn(|replica| replica.catch_up());
    let sweeper = replica.spawn(|replica| replica.book.sweep());
    replica.revoke(&parent);
    assert!(replica.find(&[token(&child)]).is_none());
    finish([follower, sweeper]);
    assert!(replica.find(&[token(&child)]).is_none());
}

/// A grant that is there before its replica is in touch counts all the time that this takes.
fn a_grant_counts_before_while_and_after_all_is_read_first() {
    let (replica, made) = (Replica::early(), grant(1, None));
    replica.commit(&made);
    let loader = replica.spawn(|replica| replica.catch_up());
    for _ in 0..3 {
        let (book, basis) = replica.look(&[]);
        let basis = basis.expect("it lives");
        thread::yield_now();
        assert_eq!(book.stands(&basis), Some(true));
    }
    finish([loader]);
    assert!(replica.find(&[]).is_some());
}

/// Nor does anybody use it after its end here was acknowledged, whatever was read before that.
fn who_revoked_while_all_is_read_first_sees_no_use() {
    let (replica, made) = (Replica::early(), grant(1, None));
    replica.commit(&made);
    let loader = replica.spawn(|replica| replica.catch_up());
    let over = Arc::new(Mutex::new(false));
    let user = {
        let (over, token) = (Arc::clone(&over), token(&made));
        replica.spawn(move |replica| {
            let before = *sync::lock(&over);
            let (_, basis) = replica.look(&[token]);
            assert!(!before || basis.is_none(), "it was over");
        })
    };
    replica.revoke(&made);
    *sync::lock(&over) = true;
    assert!(replica.look(&[token(&made)]).1.is_none());
    finish([loader, user]);
    assert!(replica.look(&[]).1.is_none());
}

/// One grant's end takes no other's place with it, though both say the same.
fn the_end_of_one_leaves_the_other() {
    let replica = Replica::new();
    let (one, other) = (grant(1, None), grant(2, None));
    replica.commit(&one);
    replica.commit(&other);
    replica.catch_up();
    let ending = replica.spawn(move |replica| replica.revoke(&one));
    for _ in 0..3 {
        assert!(replica.find(&[]).is_some(), "one of them lives");
    }
    finish([ending]);
    let basis = replica.find(&[]).expect("the other one lives");
    assert_eq!(basis.id(), other.id);
}

fn finish(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    for task in tasks {
        task.join().unwrap();
    }
}

/// Each grant that lives after `changes`, in the order in which they were made.
fn living_at_last(changes: &[Grant]) -> impl Iterator<Item = &Grant> {
    let ended = |id: Id| {
        changes
            .iter()
            .any(|one| one.id == id && one.ending.is_some())
    };
    changes.iter().filter(move |one| !ended(one.id))
}

/// The grant that the change `change` makes, for the worker to encrypt.
fn grant(change: u8, parent: Option<&Grant>) -> Grant {
    made(change, parent, WORKER, &[Operation::Encrypt])
}

/// A grant of somebody else's, by the change 1, that can be handed on.
fn parent() -> Grant {
    let operations = [Operation::Encrypt, Operation::CreateGrant];
    made(1, None, ADMINISTRATOR, &operations)
}

fn made(change: u8, parent: Option<&Grant>, grantee: &str, operations: &[Operation]) -> Grant {
    let wanted = Wanted {
        key: key_name(),
        terms: Terms {
            grantee: grantee.parse().unwrap(),
            operations: Operations::new(operations.iter().copied()).unwrap(),
            constraint: None,
        },
        retiring: None,
        name: None,
        lifetime: None,
        renewable: None,
        max_uses: None,
    };
    let (id, creator) = (Id::from([change; 32]), ADMINISTRATOR.parse().unwrap());
    let (ceiling, now) = (Grant::LONGEST_LIFETIME, Timestamp::UNIX_EPOCH);
    let made = Grant::make(wanted, id, &creator, parent, ceiling, now).unwrap();
    Grant {
        change: change.into(),
        ..made
    }
}

/// The same, revoked.
fn over(grant: &Grant) -> Grant {
    Grant {
        ending: Some(Ending::Revoke),
        ..grant.clone()
    }
}

fn token(grant: &Grant) -> String {
    keys().seal(&Claims::new(grant, grant.change)).into_text()
}

fn keys() -> TokenKeys {
    let key = crypto::Secret::filled(|cell| cell.fill(1));
    TokenKeys::new(TokenKey::new(key), None)
}

fn key() -> Arc<directory::Key> {
    let text =
        "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\nkms = \"local:orders\"\n";
    let directory = Directory::parse(text, Path::new("tenants.toml")).unwrap();
    Arc::clone(directory.key(&key_name()).unwrap())
}

fn key_name() -> KeyName {
    KeyName::parse("keys/orders", &"acme".parse().unwrap()).unwrap()
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap()
}

fn main() {
    let arguments = Arguments::from_args();
    let trials = SCENARIOS.map(|(name, scenario)| {
        Trial::test(name, move || {
            explore(scenario);
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.into()).exit();
}

fn explore(scenario: fn()) {
    let mut config = shuttle::Config::new();
    config.stack_size = 512 << 10;
    config.silence_warnings = true;
    if let Ok(schedule) = env::var("KEYBROKER_TEST_SCHEDULE") {
        let scheduler = ReplayScheduler::new_from_encoded(&schedule);
        Runner::new(scheduler, config).run(scenario);
        return;
    }
    let each = scaled(SCHEDULES, SCHEDULES * 10);
    Runner::new(RandomScheduler::new(each), config.clone()).run(scenario);
    Runner::new(PctScheduler::new(3, each), config).run(scenario);
}

const SCENARIOS: [(&str, fn()); 8] = [
    (
        "a_grant_counts_before_while_and_after_all_is_read_first",
        a_grant_counts_before_while_and_after_all_is_read_first,
    ),
    (
        "who_revoked_while_all_is_read_first_sees_no_use",
        who_revoked_while_all_is_read_first_sees_no_use,
    ),
    ("who_revoked_here_sees_no_use", who_revoked_here_sees_no_use),
    (
        "who_revoked_while_all_is_read_sees_no_use",
        who_revoked_while_all_is_read_sees_no_use,
    ),
    (
        "a_token_works_before_while_and_after_its_grant_is_taken_up",
        a_token_works_before_while_and_after_its_grant_is_taken_up,
    ),
    (
        "what_was_found_does_not_outlive_the_news_of_its_end",
        what_was_found_does_not_outlive_the_news_of_its_end,
    ),
    (
        "what_rests_on_a_revoked_grant_is_over",
        what_rests_on_a_revoked_grant_is_over,
    ),
    (
        "the_end_of_one_leaves_the_other",
        the_end_of_one_leaves_the_other,
    ),
];
/// Of each scenario and each way to choose, in the usual run.
const SCHEDULES: usize = 1_000;
const WORKER: &str = "unix:uid=7,gid=7";
const ADMINISTRATOR: &str = "unix:uid=1,gid=1";
