//! What a server's memory holds, who may read it, and what it leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use keybroker::crypto::random;
use keybroker::grpc::pb;

use super::house::House;
use super::house::KEYBROKER;
use super::scan::Mapping;
use super::scan::Secrets;
use super::scan::mappings;
use super::site::Running;
use super::site::Site;
use crate::harness::Client;
use crate::harness::WEB;
use crate::support::fake_kms::FakeKms;
use crate::support::unprivileged;

#[tokio::test(flavor = "multi_thread")]
async fn no_key_and_no_plaintext_is_left_in_memory() {
    if !unprivileged::is_root() {
        return did_not_run("only root may look at the memory");
    }
    let kms = FakeKms::start().await;
    let house = House::new(&kms.key("eu-central-1"));
    house.use_kms(&kms);
    house.set_memory("memfd_secret = false");
    let writer = house.writer(&kms).await;
    let mut author = writer.caller(WEB).await;
    let mut plaintexts = Plaintexts::default();
    // Messages whose data keys the server has to have unwrapped.
    let mut written = Vec::new();
    for n in 0..2 * CANARIES {
        let request = seal(plaintexts.fresh(), ("written", n));
        let sealed = author.encrypt(request).await.unwrap().into_inner();
        written.push(sealed.ciphertext);
    }

    let server = house.serve();
    let connection = house.connect(&server).await;
    let mut client = connection.client();
    for n in 0..CANARIES {
        plaintexts
            .call_all(&mut client, &mut author, &written, n)
            .await;
    }
    let known = kms.plaintexts();
    let last = seal(plaintexts.fresh(), ("last", 0));
    client.encrypt(last).await.unwrap();

    // Standing still, it can neither wipe nor move what is looked for.
    server.signal("STOP");
    let mut secrets = Secrets::new();
    for key in kms.plaintexts().iter().filter(|key| !known.contains(key)) {
        secrets.add(key);
    }
    // Successors of others may have come meanwhile; they lie where it does.
    assert!(secrets.count() > 0);
    let live = secrets.find_in(server.id());
    server.signal("CONT");
    let raw: Vec<_> = live.iter().filter(|found| found.form == "raw").collect();
    assert!(!raw.is_empty(), "{live:#?}");
    let arena = arena(&server).range;
    assert!(
        raw.iter().all(|found| arena.contains(&found.address)),
        "{raw:#x?}"
    );

    for secret in known.iter().chain(&plaintexts.0) {
        secrets.add(secret);
    }
    assert!(secrets.count() > 10 * CANARIES);
    // What an open connection received last lies in its buffers.
    drop(client);
    connection.cut();
    // Keys go when they expire, at the latest when nobody has asked for them for a minute.
    let mut left = Vec::new();
    let gone = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        loop {
            ticks.tick().await;
            server.signal("STOP");
            left = secrets.find_in(server.id());
            server.signal("CONT");
            if left.is_empty() {
                break;
            }
        }
    };
    if tokio::time::timeout(PATIENCE, gone).await.is_err() {
        let some: Vec<_> = left.iter().take(20).collect();
        panic!("{} pieces of secrets are left: {some:#x?}", left.len());
    }
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_crash_leaves_no_core_file() {
    let unlimited = |then: &str, folder: &Path| {
        let mut command = Command::new("sh");
        let line = format!("ulimit -c unlimited && {then}");
        command.args(["-c", &line]).current_dir(folder);
        command
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let control = unlimited("kill -SEGV $$", elsewhere.path()).status();
    if !control.unwrap().core_dumped() {
        return did_not_run("no crash leaves a core file on this machine");
    }

    let site = Site::new();
    let mut command = unlimited("exec \"$0\" \"$@\"", &site.path(""));
    command
        .args([KEYBROKER, "serve", "--config"])
        .arg(site.path("keybroker.toml"));
    let server = Running::logging(command);
    server.await_line("serving with TLS");
    let status = server.end_by("SEGV");
    assert_eq!(
        (status.signal(), status.core_dumped()),
        (Some(SIGSEGV), false)
    );
    let files: Vec<_> = site.files().into_keys().collect();
    assert!(
        !files.iter().any(|path| path.ends_with("core")),
        "{files:?}"
    );
}

#[test]
fn another_process_of_the_same_user_cannot_read_the_memory() {
    let name = "cli::memory::another_process_of_the_same_user_cannot_read_the_memory";
    unprivileged::run_prepared(name, bring_keybroker, |folder| {
        let house = House::new(
            &"arn:aws:kms:eu-central-1:111122223333:key/none"
                .parse()
                .unwrap(),
        );
        let mut command = Command::new(folder.join("keybroker"));
        command
            .args(["serve", "--config"])
            .arg(house.site.path("keybroker.toml"));
        let server = Running::logging(command);
        server.await_line("serving with TLS");
        let control = Command::new("sleep").arg("60").spawn();
        let control = Guard(control.unwrap());
        for file in ["mem", "maps", "environ"] {
            let open = |id: u32| File::open(format!("/proc/{id}/{file}"));
            open(control.0.id()).unwrap();
            let refused = open(server.id()).map(drop).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{file}");
        }
    });
}

#[test]
fn keys_lie_in_locked_memory_that_no_dump_has() {
    if !unprivileged::is_root() {
        return did_not_run("only root may look at the memory");
    }
    let house = House::new(
        &"arn:aws:kms:eu-central-1:111122223333:key/none"
            .parse()
            .unwrap(),
    );
    for (setting, forked) in [
        ("memfd_secret = false", "wf"),
        ("memfd_secret = true", "dc"),
    ] {
        house.set_memory(setting);
        let server = house.serve();
        let kind = server.await_line("memory for keys arena=\"");
        server.await_line("serving with TLS");
        let arena = arena(&server);
        let forked = if kind.starts_with("locked") {
            "wf"
        } else {
            forked
        };
        for flag in ["lo", "dd", forked] {
            assert!(arena.has(flag), "{flag} of {kind}");
        }
        assert_eq!(arena.bytes("Size"), 4 << 20);
        let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
        let swapped = status.lines().find(|line| line.starts_with("VmSwap:"));
        let swapped: Vec<_> = swapped.unwrap().split_whitespace().collect();
        assert_eq!(swapped, ["VmSwap:", "0", "kB"]);
    }
}

#[test]
fn a_server_that_may_lock_little_says_so_and_serves() {
    let name = "cli::memory::a_server_that_may_lock_little_says_so_and_serves";
    unprivileged::run_prepared(name, bring_keybroker, |folder| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        for (limit, setting) in [
            ("64", "memfd_secret = false"),
            ("64", "memfd_secret = true"),
            ("0", "memfd_secret = false"),
            ("0", "memfd_secret = true"),
        ] {
            runtime.block_on(async {
                let kms = FakeKms::start().await;
                let house = House::new(&kms.key("eu-central-1"));
                house.use_kms(&kms);
                house.set_memory(setting);
                let limited = format!("ulimit -l {limit} && exec \"$0\" \"$@\"");
                let mut command = Command::new("sh");
                command.args(["-c", &limited]).arg(folder.join("keybroker"));
                let server = Running::logging(house.equip(command));
                let warning = format!("only {limit} KiB of the 4096 KiB for keys");
                let remedy = server.await_line(&warning);
                assert!(remedy.contains("LimitMEMLOCK") && remedy.contains("--ulimit"));
                let connection = house.connect(&server).await;
                let mut client = connection.client();
                // More keys than 64 KiB hold.
                for n in 0..1100 {
                    let request = seal(Bytes::from_static(b"text"), ("few", n));
                    client.encrypt(request).await.unwrap();
                }
                assert_eq!(server.stop(), Some(0));
            });
        }
    });
}

/// Says why, to those who run all tests.
fn did_not_run(why: &str) {
    // Not `eprintln`, whose output the harness keeps to itself when a test passes.
    writeln!(io::stderr(), "{why}, so a test of it did not run").expect("standard error");
}

/// The one locked mapping of a server.
fn arena(server: &Running) -> Mapping {
    let mut locked = mappings(server.id());
    locked.retain(|mapping| mapping.has("lo"));
    assert_eq!(locked.len(), 1);
    locked.remove(0)
}

/// Puts the command where everybody may run it.
fn bring_keybroker(folder: &Path) {
    fs::copy(KEYBROKER, folder.join("keybroker")).unwrap();
}

/// A process that ends with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All that callers have seen in plaintext.
#[derive(Default)]
struct Plaintexts(Vec<Vec<u8>>);

impl Plaintexts {
    fn fresh(&mut self) -> Bytes {
        let mut bytes = vec![0; 48];
        random::fill(&mut bytes).unwrap();
        self.add(&bytes);
        bytes.into()
    }

    fn add(&mut self, plaintext: &[u8]) {
        self.0.push(plaintext.to_vec());
    }

    /// Makes every call that brings a key or a plaintext, each with data keys that are new to the
    /// server.
    async fn call_all(
        &mut self,
        client: &mut Client,
        author: &mut Client,
        written: &[Bytes],
        n: usize,
    ) {
        let request = seal(self.fresh(), ("encrypt", n));
        client.encrypt(request).await.unwrap();
        client
            .decrypt(open(&written[n], ("written", n)))
            .await
            .unwrap();
        let request = pb::ReEncryptRequest {
            ciphertext: written[CANARIES + n].clone(),
            source_encryption_context: context(("written", CANARIES + n)),
            destination_name: "keys/orders".into(),
            destination_encryption_context: context(("rewritten", n)),
            ..Default::default()
        };
        client.re_encrypt(request).await.unwrap();
        let request = pb::GenerateDataKeyRequest {
            name: "keys/orders".into(),
            encryption_context: context(("generate", n)),
            ..Default::default()
        };
        let generated = client.generate_data_key(request).await.unwrap();
        self.add(&generated.into_inner().plaintext);
        let request = pb::GenerateDataKeyWithoutPlaintextRequest {
            name: "keys/orders".into(),
            encryption_context: context(("withhold", n)),
            ..Default::default()
        };
        let withheld = client.generate_data_key_without_plaintext(request).await;
        let withheld = withheld.unwrap().into_inner().ciphertext;
        let withheld = author.decrypt(open(&withheld, ("withhold", n))).await;
        self.add(&withheld.unwrap().into_inner().plaintext);
        let request = pb::GenerateRandomRequest {
            number_of_bytes: 32,
        };
        let random = client.generate_random(request).await.unwrap();
        self.add(&random.into_inner().plaintext);
    }
}

fn context((name, n): (&str, usize)) -> BTreeMap<String, String> {
    [(name.to_owned(), n.to_string())].into()
}

fn seal(plaintext: Bytes, pair: (&str, usize)) -> pb::EncryptRequest {
    pb::EncryptRequest {
        name: "keys/orders".into(),
        plaintext,
        encryption_context: context(pair),
        ..Default::default()
    }
}

fn open(ciphertext: &Bytes, pair: (&str, usize)) -> pb::DecryptRequest {
    pb::DecryptRequest {
        name: "keys/orders".into(),
        ciphertext: ciphertext.clone(),
        encryption_context: context(pair),
        ..Default::default()
    }
}

/// Keys for each RPC.
const CANARIES: usize = 500;
/// For what goes after a minute without use.
const PATIENCE: Duration = Duration::from_secs(120);
const SIGSEGV: i32 = 11;
