//! What a hundred thousand tenants cost: reading their file, holding them, finding their keys;
//! and what it costs to find a peer's rule.
#![allow(
    missing_docs,
    clippy::disallowed_methods, // a benchmark times itself
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub
)]

#[path = "../tests/support/figures.rs"]
mod figures;

use std::fmt::Write;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use keybroker::directory::Directory;
use keybroker::identity::Leaf;
use keybroker::identity::Peer;
use keybroker::identity::Rules;
use keybroker::identity::rules::BundleConfig;
use keybroker::identity::rules::Config;
use keybroker::identity::rules::RuleConfig;
use keybroker::name::KeyName;

const MANY: usize = 100_000;
const FEW: usize = 10;
const RULES: usize = 300;
/// A look-up among many tenants may cost this many times one among few.
const RATIO_BOUND: f64 = 1.2;

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let write = |tenants: usize| {
        let path = folder.path().join(format!("{tenants}.toml"));
        fs::write(&path, file(tenants)).unwrap();
        path
    };
    let (large, small) = (write(MANY), write(FEW));

    // Measured first, before anything else has left freed pages behind.
    let before = resident_mib();
    let started = Instant::now();
    let many = Directory::load(&large).unwrap();
    let load = started.elapsed().as_secs_f64();
    let resident = resident_mib() - before;
    let few = Directory::load(&small).unwrap();

    let ratio = ratio(&many, &few);
    let random = random(&many);
    println!("{MANY} tenants: loaded in {load:.2} s, {resident:.0} MiB resident");
    let map = map();
    println!("a peer against {RULES} identity rules: {map:.0} ns");
    println!("look-up: {ratio:.3} times that among {FEW}; {random:.0} ns at random");
    figures::record(
        "directory",
        [
            ("load_100000_seconds", load),
            ("load_100000_rss_mib", resident),
            ("lookup_100000_ratio", ratio),
            ("lookup_100000_random_ns", random),
            ("map_300_rules_ns", map),
        ],
    );
    assert!(
        ratio <= RATIO_BOUND,
        "look-ups grow with the number of tenants: {ratio:.3} > {RATIO_BOUND}"
    );
    assert_eq!(many.tenants().len(), MANY);
}

/// A file of so many tenants, each with two keys of its own, as an operator would write them.
fn file(tenants: usize) -> String {
    let mut text = String::new();
    for n in 0..tenants {
        let users = format!("spiffe://prod.example/tenant/tenant-{n:06}/sa/*");
        write!(
            text,
            r#"
[[tenant]]
id = "tenant-{n:06}"
context = {{ env = "prod" }}

[[tenant.key]]
id = "orders"
kms = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-{n:012}"
users = ["{users}"]

[[tenant.key]]
id = "invoices"
kms = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-9000-{n:012}"
users = ["{users}"]
cache.max_age = "10m"
"#
        )
        .unwrap();
    }
    text
}

fn name(tenant: usize, key: &str) -> KeyName {
    KeyName {
        tenant: format!("tenant-{tenant:06}").parse().unwrap(),
        key: key.parse().unwrap(),
    }
}

/// The median of `many`'s time for ten names over `few`'s for the same, in rounds that take turns
/// so that a busy machine slows both.
fn ratio(many: &Directory, few: &Directory) -> f64 {
    const ROUNDS: usize = 301;
    const REPEATS: usize = 1_000;
    let names: Vec<KeyName> = (0..FEW).map(|n| name(n, "orders")).collect();
    let round = |directory: &Directory| {
        let started = Instant::now();
        for _ in 0..REPEATS {
            for name in &names {
                black_box(directory.key(black_box(name))).unwrap();
            }
        }
        started.elapsed().as_secs_f64()
    };
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .map(|n| match n % 2 {
            0 => round(many) / round(few),
            _ => 1.0 / (round(few) / round(many)),
        })
        .collect();
    ratios.sort_unstable_by(f64::total_cmp);
    *ratios.get(ROUNDS / 2).unwrap()
}

/// Nanoseconds per look-up of names all over the directory, most of which no cache holds.
fn random(many: &Directory) -> f64 {
    // A step coprime to the number of tenants visits each of them once.
    const STEP: usize = 61_803;
    let names: Vec<KeyName> = (0..MANY)
        .map(|n| {
            name(
                n * STEP % MANY,
                if n % 2 == 0 { "orders" } else { "invoices" },
            )
        })
        .collect();
    let started = Instant::now();
    for name in &names {
        black_box(many.key(black_box(name))).unwrap();
    }
    nanoseconds(started.elapsed()) / f64::from(u32::try_from(MANY).unwrap())
}

fn nanoseconds(span: Duration) -> f64 {
    span.as_secs_f64() * 1e9
}

/// Nanoseconds to map a peer that the last of many rules matches, all of one shape.
fn map() -> f64 {
    const REPEATS: u32 = 10_000;
    let mut config = Config::default();
    for n in 0..RULES {
        config.rule.push(RuleConfig {
            pattern: format!("spiffe://prod.example/tenant/t{n}/sa/{{service}}"),
            tenant: format!("t{n}"),
            context: [("service".to_owned(), "{service}".to_owned())].into(),
            bundle: None,
        });
    }
    config.bundle.push(BundleConfig {
        trust_domain: "prod.example".parse().unwrap(),
        file: "prod.pem".into(),
        crl: None,
    });
    let rules = Rules::new(&config).unwrap();

    let uri = format!("spiffe://prod.example/tenant/t{}/sa/web", RULES - 1);
    let mut params = rcgen::CertificateParams::default();
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let peer = Peer::certified(Leaf::parse(certificate.der()).unwrap());

    let started = Instant::now();
    for _ in 0..REPEATS {
        black_box(rules.map(black_box(&peer))).unwrap();
    }
    nanoseconds(started.elapsed()) / f64::from(REPEATS)
}

/// How much of this process is in memory, in MiB.
fn resident_mib() -> f64 {
    let status = fs::read_to_string(Path::new("/proc/self/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|kib| kib.parse().ok())
        .unwrap();
    kib / 1024.0
}
