//! A broker that starts with a million grants in its store, and what it takes to make one more.

use std::fs;
use std::fs::File;
use std::fs::Permissions;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use keybroker::grants::Grant;
use keybroker::grants::Id;
use keybroker::grants::Operation;
use keybroker::grants::Operations;
use keybroker::grants::Terms;
use keybroker::grants::Wanted;
use keybroker::store::Config;
use keybroker::store::Store;
use keybroker::store::Tls;
use keybroker::store::grants::Right;
use sqlx::AssertSqlSafe;
use sqlx::ConnectOptions as _;
use sqlx::Connection as _;
use sqlx::Executor as _;
use sqlx::sqlite::SqliteConnectOptions;
use tempfile::TempDir;

use crate::name;
use crate::postgres::Postgres;
use crate::postgres::sql;

/// What was found for an engine.
pub struct Found {
    /// The median of CreateGrant's work in the store, synced, in microseconds.
    pub create_p50_us: f64,
    /// From the start of the process until it serves by key policy and by grant, in seconds.
    pub start_seconds: f64,
    /// From there until it knows all grants, in seconds.
    pub taken_up_seconds: f64,
}

/// With SQLite.
pub async fn with_sqlite() -> Found {
    let place = Place::new("");
    let config = Config {
        file: place.file("store.db"),
        ..Config::default()
    };
    let create_p50_us = create(&config, None).await;
    let text = fill(
        "lower(hex(randomblob(32)))",
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    );
    // Ids are random: with SQLite's usual cache of 2 MiB nearly every row would be many reads.
    let options = SqliteConnectOptions::new()
        .filename(&config.file)
        .pragma("cache_size", "-1500000");
    let mut connection = options.connect().await.unwrap();
    connection
        .execute(sqlx::raw_sql(AssertSqlSafe(text)))
        .await
        .unwrap();
    connection.close().await.unwrap();
    place.found(create_p50_us)
}

/// With a PostgreSQL on this machine, over TLS.
pub async fn with_postgres() -> Found {
    let server = Postgres::start_synced();
    let url = format!("postgres://keybroker@{}/postgres", server.address());
    let place = Place::new(&format!(
        "[store]\nurl = \"{url}\"\nca = \"{}\"\npassword = \"{}\"\n[grants]\ntoken_key = \"token.key\"\n",
        server.ca().display(),
        server.password().display()
    ));
    let config = Config {
        url: Some(url),
        ca: Some(server.ca()),
        tls: Tls::VerifyFull,
        ..Config::default()
    };
    let password = fs::read_to_string(server.password()).unwrap();
    let create_p50_us = create(&config, Some(&password)).await;
    let text = fill(
        "md5(i::text) || md5((-i)::text)",
        "(extract(epoch FROM clock_timestamp()) * 1000)::BIGINT",
    );
    let mut connection = server.connect().await;
    sql(&mut connection, &text).await;
    place.found(create_p50_us)
}

/// The median time to make a grant, in microseconds.
async fn create(config: &Config, password: Option<&str>) -> f64 {
    const ROUNDS: usize = 501;
    let store = Store::new(config, password).unwrap();
    let creator = "unix:uid=1,gid=1".parse().unwrap();
    let wanted = Wanted {
        key: name("orders"),
        terms: Terms {
            grantee: "unix:uid=2,gid=2".parse().unwrap(),
            operations: Operations::new([Operation::Encrypt]).unwrap(),
            constraint: None,
        },
        retiring: None,
        name: None,
        lifetime: None,
        renewable: None,
        max_uses: None,
    };
    let (right, ceiling) = (Right::Administrator, Grant::LONGEST_LIFETIME);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let id = Id::random().unwrap();
        let started = Instant::now();
        let made = store.create_grant(&wanted, id, &creator, &right, ceiling);
        made.await.unwrap().unwrap();
        times.push(started.elapsed());
    }
    times.sort_unstable();
    times.get(ROUNDS / 2).unwrap().as_secs_f64() * 1e6
}

/// Statements that add a million grants, the last of them for the user who runs this.
fn fill(id: &str, now: &str) -> String {
    let operations = Operations::new([Operation::Encrypt]).unwrap().bits();
    format!(
        "WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < 1000000)
         INSERT INTO grants (id, tenant, key_id, grantee, retiring, operations, constrained, pairs,
             name, lifetime, renewable, max_uses, uses, creator, created, expires, change,
             ancestors, ending, changed)
         SELECT {id}, 'acme', CASE i WHEN 1000000 THEN 'orders' ELSE 'key-' || (i % 1000) END,
             CASE i WHEN 1000000 THEN 'unix:uid={uid}'
                 ELSE 'spiffe://prod.example/tenant/acme/sa/worker-' || i END,
             '', {operations}, 0, '{{}}', '', 43200, 0, 0, 0, 'unix:uid=1,gid=1',
             {now}, {now} + 43200000, n + i, '', 0, n + i
         FROM numbers, change;
         UPDATE change SET n = n + 1000000;",
        uid = uid()
    )
}

/// A folder for a broker.
struct Place(TempDir);

impl Place {
    /// With `more` in its configuration.
    fn new(more: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write(
            "keybroker.toml",
            &format!("{CONFIG}{more}").replace("UID", &uid().to_string()),
        );
        place.write("tenants.toml", &TENANTS.replace("UID", &uid().to_string()));
        place.write("token.key", &"5a".repeat(32));
        place.run(&["keyring", "init"]);
        place.run(&["keyring", "add", "orders"]);
        place
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.file(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keybroker"));
        command
            .args(args)
            .env("KEYBROKER_CONFIG", self.file("keybroker.toml"))
            .env(
                "KEYBROKER_ADDR",
                format!("unix:{}", self.file("broker.sock").display()),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.file("log")).unwrap());
        command
    }

    fn run(&self, args: &[&str]) {
        assert!(self.command(args).status().unwrap().success(), "{args:?}");
    }

    /// The best of a few starts.
    fn found(&self, create_p50_us: f64) -> Found {
        let starts: Vec<_> = (0..STARTS).map(|_| self.start()).collect();
        let best =
            |times: fn(&(f64, f64)) -> f64| starts.iter().map(times).fold(f64::MAX, f64::min);
        Found {
            create_p50_us,
            start_seconds: best(|(served, _)| *served),
            taken_up_seconds: best(|(_, taken_up)| *taken_up),
        }
    }

    /// Seconds from the start of a broker until it has served by a key's policy and by a grant, and
    /// until it knows all grants.
    fn start(&self) -> (f64, f64) {
        let started = Instant::now();
        let log = self.file("serve.log");
        let mut serve = self.command(&["serve"]);
        serve.stderr(File::create(&log).unwrap());
        let server = Running(serve.spawn().unwrap());
        let until = |so: &dyn Fn() -> bool| {
            while !so() {
                assert!(started.elapsed() < PATIENCE, "{}", text(&log));
                thread::sleep(Duration::from_millis(5));
            }
            started.elapsed().as_secs_f64()
        };
        until(&|| self.encrypts("keys/invoices"));
        let served = until(&|| self.encrypts("keys/orders"));
        let taken_up = until(&|| text(&log).contains("all grants of the store are known"));
        drop(server);
        let _ = fs::remove_file(self.file("broker.sock"));
        (served, taken_up)
    }

    /// Whether whoever runs this may encrypt under `key`.
    fn encrypts(&self, key: &str) -> bool {
        let mut encrypt = self.command(&["encrypt", "--key", key]);
        encrypt.stdin(File::open(self.file("tenants.toml")).unwrap());
        encrypt.status().unwrap().success()
    }
}

/// A broker, killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap()
}

fn uid() -> u32 {
    fs::metadata(Path::new("/proc/self")).unwrap().uid()
}

const STARTS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(300);
const TENANTS: &str = "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\n\
                       kms = \"local:orders\"\n\
                       [[tenant.key]]\nid = \"invoices\"\nkms = \"local:orders\"\n\
                       users = [\"unix:uid=UID\"]\n";
const CONFIG: &str = r#"tenants_file = "tenants.toml"

[listen.unix]
path = "broker.sock"

[[identity.rule]]
match = "unix:uid=UID"
tenant = "acme"

[kms.local]
keyring = "keyring"
sealing_key = "sealing.key"

[audit]
file = "audit.jsonl"

"#;
