//! What it costs that a grant allows something, and not the key's policy; to make one; to hold a
//! million; and to start with these in the store.
#![allow(
    missing_docs,
    clippy::disallowed_methods, // a benchmark times itself
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub
)]

#[path = "../tests/support/figures.rs"]
mod figures;
#[allow(dead_code, reason = "tests use the rest")]
#[path = "../tests/support/postgres.rs"]
mod postgres;
#[path = "grants/start.rs"]
mod start;
#[allow(dead_code, reason = "tests use the rest")]
#[path = "../tests/support/unprivileged.rs"]
mod unprivileged;

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use keybroker::clock::Clock as _;
use keybroker::clock::System;
use keybroker::crypto::Secret;
use keybroker::directory::Directory;
use keybroker::grants::Backing;
use keybroker::grants::Book;
use keybroker::grants::Constraint;
use keybroker::grants::Contact;
use keybroker::grants::Grant;
use keybroker::grants::Id;
use keybroker::grants::Kind;
use keybroker::grants::Living;
use keybroker::grants::Operation;
use keybroker::grants::Operations;
use keybroker::grants::Terms;
use keybroker::grants::TokenKey;
use keybroker::grants::TokenKeys;
use keybroker::grants::Wanted;
use keybroker::identity::Config;
use keybroker::identity::Peer;
use keybroker::identity::Rules;
use keybroker::message::EncryptionContext;
use keybroker::name::KeyName;
use keybroker::policy::Action;
use keybroker::policy::Policy;

/// As many as AWS KMS allows on a key.
const ON_A_KEY: u32 = 50_000;
const MILLION: u32 = 1_000_000;
/// The most that a decision by grant may cost over one by key policy, in nanoseconds.
const EXTRA: f64 = 1_000.0;
/// The longest start, in seconds.
const START: f64 = 2.0;

fn main() {
    // Measured first, before anything else has left freed pages behind.
    let (per_grant, inserted) = million();
    println!("{MILLION} grants: {per_grant:.0} bytes each, taken up in {inserted:.2} s");

    let policy = policy();
    let clock = Arc::new(System);
    let keys = TokenKeys::new(TokenKey::new(Secret::random().unwrap()), None);
    let book = Book::new(keys, clock.clone());
    for number in 0..ON_A_KEY {
        book.apply(&grant(number, &name("orders"), &terms(number)));
    }
    book.heard(Contact {
        asked: clock.now(),
        store: clock.wall(),
        applied: 1,
    });
    // User 1 stands in the policy of `orders`, the others have a grant each and nothing else.
    let by_policy = time(&policy, &book, &clock, [(1, 7)]);
    let extra = |who| time(&policy, &book, &clock, who) - by_policy;
    let figures = [
        ("authorize_extra_ns", extra([(2_000, 7)])),
        ("authorize_extra_equals_ns", extra([(2_001, 2_001)])),
        ("authorize_extra_subset_ns", extra([(2_002, 2_002)])),
        ("authorize_extra_group_ns", extra([(9, 3)])),
        ("bytes_per_grant", per_grant),
        ("insert_million_seconds", inserted),
    ];
    println!("by key policy: {by_policy:.0} ns");
    for (name, figure) in figures {
        println!("{name}: {figure:.0}");
    }
    figures::record("grants", figures);
    for (name, figure) in figures.iter().take(4) {
        assert!(*figure <= EXTRA, "{name}: {figure:.0} > {EXTRA}");
    }
    from_store();
}

/// What the store has its part in.
fn from_store() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let sqlite = runtime.block_on(start::with_sqlite());
    let postgres = runtime.block_on(start::with_postgres());
    let start_seconds = sqlite.start_seconds.max(postgres.start_seconds);
    let taken_up = sqlite.taken_up_seconds.max(postgres.taken_up_seconds);
    let figures = [
        ("create_sqlite_p50_us", sqlite.create_p50_us),
        ("create_postgres_p50_us", postgres.create_p50_us),
        ("start_million_sqlite_seconds", sqlite.start_seconds),
        ("start_million_postgres_seconds", postgres.start_seconds),
        ("start_million_seconds", start_seconds),
        ("taken_up_million_seconds", taken_up),
    ];
    for (name, figure) in figures {
        println!("{name}: {figure:.2}");
    }
    figures::record("grants", figures);
    assert!(start_seconds <= START, "{start_seconds:.2} > {START}");
}

/// Nanoseconds to authorize Decrypt with the key `orders` for user and group `who`, with the number
/// of an order in the context: the median of rounds.
fn time(policy: &Policy, book: &Book, clock: &System, who: [(u32, u32); 1]) -> f64 {
    const ROUNDS: usize = 101;
    const REPEATS: u32 = 2_000;
    let [(uid, gid)] = who;
    let caller = policy.rules().map(&Peer::unix(uid, gid)).unwrap();
    let name = name("orders");
    let own = [("order".to_owned(), uid.to_string())];
    let pairs = [
        ("keybroker:tenant", "acme"),
        ("keybroker:key", "orders"),
        ("env", "prod"),
        ("order", &own[0].1),
    ];
    let header = EncryptionContext::new(pairs).unwrap();
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            book.heard(Contact {
                asked: clock.now(),
                store: clock.wall(),
                applied: 1,
            });
            let started = Instant::now();
            for _ in 0..REPEATS {
                let backing = Backing::new(book, &[]);
                let action = Action::Decrypt;
                let permit =
                    policy.authorize_open(&caller, action, Some(&name), &header, &own, backing);
                black_box(permit.ok().unwrap());
            }
            nanoseconds(started.elapsed()) / f64::from(REPEATS)
        })
        .collect();
    rounds.sort_unstable_by(f64::total_cmp);
    *rounds.get(ROUNDS / 2).unwrap()
}

/// Bytes of a grant among a million, each for a workload of its own on one of a thousand keys, and
/// seconds to take them all up.
fn million() -> (f64, f64) {
    let names: Vec<KeyName> = (0..1_000).map(|n| name(&format!("key-{n}"))).collect();
    let before = resident();
    let living = Living::new();
    let started = Instant::now();
    for number in 0..MILLION {
        let name = names
            .iter()
            .cycle()
            .nth(usize::try_from(number % 1_000).unwrap());
        let grantee = format!("spiffe://prod.example/tenant/acme/sa/worker-{number}");
        let terms = Terms {
            grantee: grantee.parse().unwrap(),
            operations: Operations::new([Operation::Encrypt, Operation::Decrypt]).unwrap(),
            constraint: None,
        };
        living.insert(&grant(number, name.unwrap(), &terms));
    }
    let inserted = started.elapsed().as_secs_f64();
    assert_eq!(living.len(), usize::try_from(MILLION).unwrap());
    ((resident() - before) / f64::from(MILLION), inserted)
}

/// A third of the grants has no constraint, a third wants the whole context, a third a part of it;
/// some are for a group.
fn terms(number: u32) -> Terms {
    let order = number.to_string();
    let pairs = EncryptionContext::new([("order", order.as_str())]).unwrap();
    let constraint = match number % 3 {
        0 => None,
        1 => Constraint::new(Kind::Equals, pairs).ok(),
        _ => Constraint::new(Kind::Subset, pairs).ok(),
    };
    let (grantee, constraint) = match number {
        0..100 => (format!("unix:gid={number}"), None),
        2_000 => ("unix:uid=2000,gid=7".to_owned(), None),
        2_001 => {
            let pairs = EncryptionContext::new([("order", "2001")]).unwrap();
            let equals = Constraint::new(Kind::Equals, pairs).ok();
            ("unix:uid=2001,gid=2001".to_owned(), equals)
        }
        2_002 => {
            let pairs = EncryptionContext::new([("order", "2002")]).unwrap();
            let subset = Constraint::new(Kind::Subset, pairs).ok();
            ("unix:uid=2002,gid=2002".to_owned(), subset)
        }
        _ => (format!("unix:uid={number},gid={number}"), constraint),
    };
    Terms {
        grantee: grantee.parse().unwrap(),
        operations: Operations::new([Operation::Encrypt, Operation::Decrypt]).unwrap(),
        constraint,
    }
}

fn grant(number: u32, key: &KeyName, terms: &Terms) -> Grant {
    let mut id = [0; 32];
    // Ids are random: each of their bytes is.
    let scattered = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    id[..8].copy_from_slice(&scattered.to_be_bytes());
    let wanted = Wanted {
        key: key.clone(),
        terms: terms.clone(),
        retiring: None,
        name: None,
        lifetime: Some(Grant::LONGEST_LIFETIME),
        renewable: None,
        max_uses: None,
    };
    let creator = "unix:uid=1,gid=1".parse().unwrap();
    let ceiling = Grant::LONGEST_LIFETIME;
    let now = System.wall();
    Grant::make(wanted, Id::from(id), &creator, None, ceiling, now).unwrap()
}

fn policy() -> Policy {
    let tenants = "[[tenant]]\nid = \"acme\"\ncontext = { env = \"prod\" }\n\
                   [[tenant.key]]\nid = \"orders\"\nkms = \"local:orders\"\n\
                   users = [\"unix:uid=1\"]\n";
    let rules = "[[rule]]\nmatch = \"unix:gid=7\"\ntenant = \"acme\"\n\
                 [[rule]]\nmatch = \"unix:gid=3\"\ntenant = \"acme\"\n\
                 [[rule]]\nmatch = \"unix:gid=2001\"\ntenant = \"acme\"\n\
                 [[rule]]\nmatch = \"unix:gid=2002\"\ntenant = \"acme\"\n";
    let directory = Directory::parse(tenants, Path::new("tenants.toml")).unwrap();
    let config: Config = toml::from_str(rules).unwrap();
    let rules = Rules::new(&config).unwrap();
    Policy::new(directory.into(), rules.into()).unwrap()
}

fn name(key: &str) -> KeyName {
    KeyName::parse(&format!("keys/{key}"), &"acme".parse().unwrap()).unwrap()
}

fn nanoseconds(span: Duration) -> f64 {
    span.as_secs_f64() * 1e9
}

/// How many bytes of this process are in memory.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<f64>().ok()).unwrap() * 1024.0
}
