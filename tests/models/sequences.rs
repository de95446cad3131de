//! Random sequences of uses and events, against a model that knows what must happen: which calls
//! KMS gets and which it does not. What must never happen is `world`'s to check, at every use.
//!
//! The usual run takes 100,000 steps, the long form (`KEYBROKER_TEST_LONG=1`) two million. A
//! sequence that fails is made smaller and printed; its seed goes to a file beside this one,
//! `sequences.regressions`, from which later runs take it first.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    missing_docs,
    unreachable_pub
)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keybroker::clock::Clock as _;
use keybroker::clock::Instant;
use keybroker::clock::Manual;
use keybroker::datakeys;
use keybroker::kms;
use keybroker::message::Message;
use keybroker::metrics::Metrics;
use keybroker::policy::Policy;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::Config as Settings;
use proptest::test_runner::FileFailurePersistence;
use proptest::test_runner::TestRunner;
use tokio::task::yield_now;

#[path = "../support/figures.rs"]
mod figures;
#[path = "../support/scale.rs"]
mod scale;
#[allow(dead_code, reason = "the schedules use the rest of it")]
mod world;

use datakeys::Config;
use datakeys::DataKeys;
use datakeys::Error;
use datakeys::Patience;
use datakeys::Scope;
use datakeys::Source;
use scale::scaled;
use world::Ledger;
use world::Mood;
use world::Place;
use world::Sealed;

#[derive(Clone, Debug)]
enum Step {
    Seal(Place, u8),
    /// Messages of these sizes, in as few reservations as they take.
    SealSeveral(Place, Vec<u8>),
    /// A message from before, counted back.
    Open(usize),
    Tick(u64),
    /// The machine sleeps for hours.
    Suspend,
    /// Other contexts, more than a tight share has room for.
    Flood,
    Purge(Scope),
    Sweep,
    Kms(Mood),
    /// The key `orders` of acme gets the other KMS key.
    Reload,
}

/// What is known for certain of one data key that seals: in the model's own words, without a look
/// at the cache.
struct Known {
    born: Instant,
    messages: u64,
    bytes: u64,
}

/// How much a tenant's share holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// All that a sequence can ask for: nothing is evicted.
    Ample,
    /// Four data keys.
    Tight,
}

struct Run {
    room: Room,
    clock: Arc<Manual>,
    ledger: Arc<Ledger>,
    keys: DataKeys,
    policy: Policy,
    mood: Mood,
    sealed: Vec<Sealed>,
    /// Places whose data key must be served once more from the cache, if there is room.
    fresh: HashMap<Place, Known>,
    /// When KMS was last in order again: what it refused before is remembered for a while.
    healed: Option<Instant>,
}

impl Run {
    fn new(room: Room) -> Self {
        let clock = Arc::new(Manual::new(Timestamp::UNIX_EPOCH));
        let ledger = Arc::new(Ledger::new(clock.clone()));
        let config = Config {
            tenant_entries: match room {
                Room::Ample => 10_000,
                Room::Tight => 8,
            },
            ..Config::default()
        };
        Self {
            room,
            keys: DataKeys::new(ledger.clone(), clock.clone(), Metrics::unread(), &config),
            clock,
            ledger,
            policy: world::policy_of(world::directory(world::TENANTS)),
            mood: Mood::Good,
            sealed: Vec::new(),
            fresh: HashMap::new(),
            healed: None,
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Seal(place, bytes) => self.seal(place, bytes).await,
            Step::SealSeveral(place, sizes) => self.seal_several(place, &sizes).await,
            Step::Open(back) => self.open(back).await,
            Step::Tick(seconds) => self.clock.advance(Duration::from_secs(seconds)),
            Step::Suspend => self.clock.advance(Duration::from_secs(7200)),
            Step::Flood => {
                for document in FLOOD {
                    self.seal(Place::new("acme", "wages", document), 1).await;
                }
                self.keys.sweep();
            }
            Step::Purge(scope) => self.purge(&scope).await,
            Step::Sweep => {
                self.keys.sweep();
                settle().await;
            }
            Step::Kms(mood) => {
                settle().await;
                if self.mood != Mood::Good {
                    self.healed = Some(self.clock.now());
                }
                self.ledger.turn(mood);
                self.mood = mood;
                // A successor may be refused at any time, and then nothing is left. An outage
                // harms no data key.
                if self.refuses() {
                    self.fresh.clear();
                }
            }
            Step::Reload => self.reload(),
        }
    }

    async fn seal(&mut self, place: Place, bytes: u8) {
        let permit = world::to_seal(&self.policy, place);
        let limits = permit.key().limits();
        let size = u64::from(bytes);
        let now = self.clock.now();
        let calls = self.ledger.calls();
        let attempt = self.ledger.begin();
        let certain = self.fresh.get_mut(&place).is_some_and(|known| {
            known.messages += 1;
            known.bytes += size;
            self.room == Room::Ample
                && size <= limits.max_bytes
                && known.messages <= limits.max_messages
                && known.bytes <= limits.max_bytes
                // Before the least soft limit, so that nothing is fetched ahead.
                && now.since(known.born) < limits.max_age * 7 / 10
        });
        let reserved = match self.keys.sealing(&permit, size, &Patience::default()).await {
            Ok(reserved) => reserved,
            Err(Error::Kms(error)) => {
                assert!(!certain, "the cache had a data key: {error}");
                self.failed(&error);
                return;
            }
            Err(error) => panic!("{error}"),
        };
        if certain {
            assert_eq!(reserved.source, Source::Hit);
            assert_eq!(self.ledger.calls(), calls, "one KMS call for both");
        }
        if let Source::Miss(_) = reserved.source {
            assert!(self.ledger.calls() > calls);
            if size <= limits.max_bytes && !self.refuses() {
                let known = Known {
                    born: now,
                    messages: 1,
                    bytes: size,
                };
                self.fresh.insert(place, known);
            }
        }
        let sealed = reserved
            .seal(b"", &vec![0; bytes.into()])
            .expect("randomness");
        let message = Message::parse(&sealed).expect("a message");
        let serial = world::serial(&message);
        self.ledger.seals(&attempt, &permit, serial, size);
        drop(message);
        self.sealed.push(Sealed {
            place,
            bytes: sealed,
        });
    }

    async fn seal_several(&mut self, place: Place, sizes: &[u8]) {
        let permit = world::to_seal(&self.policy, place);
        let limits = permit.key().limits();
        let mut left: Vec<u64> = sizes.iter().copied().map(u64::from).collect();
        while let Some(first) = left.first().copied() {
            let now = self.clock.now();
            let attempt = self.ledger.begin();
            let mut reserved = match self
                .keys
                .sealing_several(&permit, &left, &Patience::default())
                .await
            {
                Ok(reserved) => reserved,
                Err(Error::Kms(error)) => {
                    self.failed(&error);
                    return;
                }
                Err(error) => panic!("{error}"),
            };
            // At most so much is gone from the data key now.
            let asked = Known {
                born: now,
                messages: left.len() as u64,
                bytes: left.iter().sum(),
            };
            match &reserved.source {
                _ if first > limits.max_bytes => assert_eq!(reserved.messages(), 1),
                Source::Miss(_) if !self.refuses() => {
                    self.fresh.insert(place, asked);
                }
                _ => {
                    if let Some(known) = self.fresh.get_mut(&place) {
                        known.messages += asked.messages;
                        known.bytes += asked.bytes;
                    }
                }
            }
            let taken: Vec<u64> = left.drain(..reserved.messages()).collect();
            assert!(!taken.is_empty(), "every reservation gets further");
            let longest = taken.iter().copied().max().unwrap_or(0);
            let plaintext = vec![0; usize::try_from(longest).unwrap()];
            let texts = taken.iter().map(|size| {
                let (plaintext, _) = plaintext.split_at(usize::try_from(*size).unwrap());
                (&b""[..], plaintext)
            });
            let mut texts: Vec<_> = texts.collect();
            texts.push((b"", b"no more than was reserved"));
            let messages = reserved.seal_each(&texts).expect("randomness");
            assert_eq!(messages.len(), taken.len());
            for (size, bytes) in taken.into_iter().zip(messages) {
                let message = Message::parse(&bytes).expect("a message");
                let serial = world::serial(&message);
                self.ledger.seals(&attempt, &permit, serial, size);
                drop(message);
                self.sealed.push(Sealed { place, bytes });
            }
        }
    }

    async fn open(&mut self, back: usize) {
        let Some(place) = self.sealed.len().checked_sub(back + 1) else {
            return;
        };
        let sealed = self.sealed[place].clone();
        let message = Message::parse(&sealed.bytes).expect("a message");
        let permit = world::to_open(&self.policy, sealed.place, &message);
        let attempt = self.ledger.begin();
        match self
            .keys
            .opening(&permit, &message, &Patience::default())
            .await
        {
            Ok(opener) => {
                self.ledger
                    .opens(&attempt, &permit, world::serial(&message));
                opener.open(&message, b"").expect("its own data key");
            }
            // Sealed before a reload.
            Err(Error::NoWrappedKey) => assert_ne!(self.policy.directory().generation(), 1),
            Err(Error::Kms(error)) => {
                self.failed(&error);
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn purge(&mut self, scope: &Scope) {
        let number = self.ledger.purge_begins(scope);
        self.keys.purge(scope).await;
        self.ledger.purge_ends(number);
        self.fresh.retain(|place, _| match scope {
            Scope::All => false,
            Scope::Key(name) => place.name() != *name,
            Scope::Tenant(tenant) => place.name().tenant != *tenant,
        });
        assert_eq!(self.keys.purge(scope).await, 0, "nothing is left of it");
    }

    fn reload(&mut self) {
        let text = match self.policy.directory().generation() % 2 {
            0 => world::TENANTS.to_owned(),
            _ => world::TENANTS.replacen("local:one", "local:two", 1),
        };
        let directory = world::directory(&text).succeed(self.policy.directory());
        self.policy = world::policy_of(directory);
        self.keys.follow(self.policy.directory());
        self.fresh.retain(|place, _| place.name() != ORDERS.name());
    }

    fn refuses(&self) -> bool {
        matches!(self.mood, Mood::Deleting | Mood::Denying(_))
    }

    /// KMS refuses, or did a few seconds ago. More than this may be cut off for it.
    fn failed(&mut self, error: &kms::Error) {
        let lately = self
            .healed
            .is_some_and(|healed| self.clock.now().since(healed) < REMEMBERED);
        assert!(self.mood != Mood::Good || lately, "{error}");
        self.ledger.refused(error);
        self.fresh.clear();
    }
}

#[test]
fn the_cache_does_what_its_model_does() {
    let runs = scaled(STEPS, STEPS * 20) / LENGTH;
    let settings = Settings {
        cases: u32::try_from(runs).unwrap(),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(file!()),
        ..Settings::default()
    };
    TestRunner::new(settings)
        .run(&(room(), vec(step(), LENGTH)), |(room, steps)| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let mut run = Run::new(room);
                for step in steps {
                    run.take(step).await;
                }
            });
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    figures::record("models", [("transitions", runs * LENGTH)]);
}

/// Has what was begun in the background come to its end.
async fn settle() {
    for _ in 0..16 {
        yield_now().await;
    }
}

fn room() -> impl Strategy<Value = Room> {
    prop_oneof![Just(Room::Ample), Just(Room::Tight)]
}

fn step() -> impl Strategy<Value = Step> {
    let place = || prop::sample::select(PLACES.to_vec());
    prop_oneof![
        24 => (place(), 0..60_u8).prop_map(|(place, bytes)| Step::Seal(place, bytes)),
        2 => (99..103_u8).prop_map(|bytes| Step::Seal(LARGE, bytes)),
        6 => (place(), vec(0..100_u8, 1..8))
            .prop_map(|(place, sizes)| Step::SealSeveral(place, sizes)),
        1 => vec(1..103_u8, 1..8).prop_map(|sizes| Step::SealSeveral(LARGE, sizes)),
        8 => (0..6_usize).prop_map(Step::Open),
        6 => (1..61_u64).prop_map(Step::Tick),
        1 => Just(Step::Suspend),
        1 => Just(Step::Flood),
        2 => prop_oneof![
            Just(Step::Purge(Scope::All)),
            place().prop_map(|place| Step::Purge(Scope::Key(place.name()))),
            place().prop_map(|place| Step::Purge(Scope::Tenant(place.name().tenant))),
        ],
        4 => Just(Step::Sweep),
        3 => prop_oneof![
            Just(Mood::Denying(ORDERS.document)),
            Just(Mood::Deleting),
            Just(Mood::Down),
        ]
        .prop_map(Step::Kms),
        3 => Just(Step::Kms(Mood::Good)),
        1 => Just(Step::Reload),
    ]
}

const ORDERS: Place = Place::new("acme", "orders", "a");
const LARGE: Place = Place::new("acme", "orders", "large");
const PLACES: [Place; 4] = [
    ORDERS,
    Place::new("acme", "orders", "b"),
    Place::new("acme", "wages", "a"),
    Place::new("umbrella", "orders", "a"),
];
const FLOOD: [&str; 8] = ["c", "d", "e", "f", "g", "h", "i", "j"];
/// So long a refusal is remembered at most.
const REMEMBERED: Duration = Duration::from_secs(5);
/// Steps in all, in the usual run; and of one sequence.
const STEPS: usize = 100_000;
const LENGTH: usize = 50;
