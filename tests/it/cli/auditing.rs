//! The audit files of a server in a process of its own: no answer without a record, whatever
//! becomes of the file, the disk or the process; and a trail that is proved, up to where it was cut.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;
use tokio::task::JoinSet;

use super::house::House;
use super::house::KEYBROKER;
use super::site::Running;
use super::site::bad;
use super::site::command;
use super::site::good;
use super::site::run;
use crate::harness::Client;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;
use crate::support::fake_kms::FakeKms;
use crate::support::figures;
use crate::support::http1;

#[tokio::test(flavor = "multi_thread")]
async fn a_trail_is_proved_shown_and_searched() {
    let scene = Scene::new("").await;
    let server = scene.house.serve();
    let mut web = scene.house.connect(&server).await.client();
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert!(web.encrypt(encrypt("keys/absent", "x")).await.is_err());
    let open = scene.verify(&[]);
    assert_eq!(open["verdict"], "open");
    assert_eq!(open["chains"][0]["unsigned"], 2);
    assert_eq!(server.stop(), Some(0));

    let whole = scene.verify(&[]);
    assert_eq!(
        (&whole["verdict"], &whole["records"]),
        (&"whole".into(), &4.into())
    );
    assert_eq!(whole["chains"][0]["end"], "stopped");
    assert_eq!(whole["chains"][0]["trust"], "found");
    // With the key, which is public, and with what was written elsewhere.
    let started: Value = serde_json::from_str(scene.text().lines().next().unwrap()).unwrap();
    let key = started["additionalEventData"]["publicKey"]
        .as_str()
        .unwrap();
    let key = BASE64_URL_SAFE_NO_PAD.decode(key).unwrap();
    let der = [b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", &*key].concat();
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        BASE64_STANDARD.encode(der)
    );
    scene.house.site.write("audit.pub", &pem);
    let public = scene.house.site.path("audit.pub");
    let public = ["--public-key", public.to_str().unwrap()];
    assert_eq!(scene.verify(&public)["chains"][0]["trust"], "given");
    let hash = whole["chains"][0]["hash"].as_str().unwrap();
    scene.verify(&["--expect", &format!("3:{hash}")]);
    let missing = bad(
        scene.command("verify", &["--expect", &format!("4:{hash}")]),
        b"",
        65,
    );
    assert!(missing.contains("was expected"), "{missing}");

    let shown = good(scene.command("tail", &[]), b"");
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(
        shown.contains("Encrypt") && shown.contains("POLICY_DENIED"),
        "{shown}"
    );
    let found = good(
        scene.command("search", &["--outcome", "POLICY_DENIED"]),
        b"",
    );
    assert!(found.contains("tenants/acme/keys/absent"), "{found}");
    assert_eq!(found.lines().count(), 1);
    let served = ["--key", "keys/orders", "--since", "1h", "--output", "json"];
    let found = good(scene.command("search", &served), b"");
    let record: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(record["eventName"], "Encrypt");

    let text = scene.text();
    fs::write(scene.audit(), text.replacen("POLICY_DENIED", "served", 1)).unwrap();
    let sentence = bad(scene.command("verify", &[]), b"", 65);
    assert!(
        sentence.contains("audit.jsonl:3: record 2 of"),
        "{sentence}"
    );
    bad(command(&["audit", "verify", "/absent"]), b"", 66);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_answer_without_a_record_and_a_trail_up_to_the_cut() {
    let scene = Scene::new("").await;
    for _ in 0..3 {
        let server = scene.house.serve();
        let client = scene.house.connect(&server).await.client();
        let load = Load::start(&client);
        load.answers(500).await;
        server.crash();
        let answers = load.end().await;
        all_recorded(&answers, &[scene.audit()]);
        let report = scene.verify(&[]);
        assert_eq!(report["verdict"], "open", "{report}");
        let chains = report["chains"].as_array().unwrap();
        let last = chains.last().unwrap();
        assert_eq!(last["end"], "open");
        for earlier in &chains[..chains.len() - 1] {
            assert_eq!(earlier["end"], "confirmed", "by the next start");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_answers_until_there_is_room_again() {
    let scene = Scene::new("").await;
    // Enough for a new store. Ignored, the signal leaves the failing write to report itself.
    let limited = "trap '' XFSZ; ulimit -S -f 400; exec \"$0\" \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", limited, KEYBROKER]);
    let server = Running::logging(scene.house.equip(shell));
    let mut web = scene.house.connect(&server).await.client();
    let load = Load::start(&web);
    // Every task of it has been refused.
    let answers = load.refused().await;
    let refused = web.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(refused), "AUDIT_UNAVAILABLE");
    server.await_line("no audit sink takes records");

    let id = server.id().to_string();
    let more = ["--pid", &id, "--fsize=unlimited:unlimited"];
    let raised = Command::new("prlimit").args(more).status().unwrap();
    assert!(raised.success());
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(server.stop(), Some(0));
    all_recorded(&answers, &[scene.audit()]);
    let report = scene.verify(&[]);
    assert_eq!(
        (&report["verdict"], &report["torn"]),
        (&"whole".into(), &0.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_file_is_made_anew_before_the_next_answer() {
    let scene = Scene::new("").await;
    let server = scene.house.serve();
    let client = scene.house.connect(&server).await.client();
    let load = Load::start(&client);
    load.answers(200).await;
    // Kept under another name, so that what stood there can be told.
    let kept = scene.house.site.path("kept");
    fs::hard_link(scene.audit(), &kept).unwrap();
    fs::remove_file(scene.audit()).unwrap();
    load.answers(200).await;
    let answers = load.end().await;
    server.await_line("moved or deleted");
    assert_eq!(server.stop(), Some(0));
    all_recorded(&answers, &[kept.clone(), scene.audit()]);
    // Alone, the new one has no beginning.
    let sentence = bad(scene.command("verify", &[]), b"", 65);
    assert!(sentence.contains("are missing"), "{sentence}");
    scene.verify(&["--partial"]);
    let whole = scene.verify(&[kept.to_str().unwrap()]);
    assert_eq!(whole["verdict"], "whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_nobody_reads_holds_up_no_other() {
    let scene = Scene::new("stdout = true\n").await;
    let (reader, writer) = io::pipe().unwrap();
    let running = scene.house.equip(Command::new(KEYBROKER));
    let server = Running::logging_beside(running, writer);
    let client = scene.house.connect(&server).await.client();
    let load = Load::start(&client);
    // Far more than a pipe holds.
    load.answers(2000).await;
    let answers = load.end().await;
    all_recorded(&answers, &[scene.audit()]);
    assert_eq!(server.stop(), Some(0));
    assert_eq!(scene.verify(&[])["verdict"], "whole");
    drop(reader);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_rotated_by_size_and_proved_together() {
    let scene = Scene::new("rotate_size = 65536\nkeep = 1000\n").await;
    let server = scene.house.serve();
    let client = scene.house.connect(&server).await.client();
    let load = Load::start(&client);
    load.answers(1000).await;
    let answers = load.end().await;
    assert_eq!(server.stop(), Some(0));
    let mut files: Vec<PathBuf> = scene.house.site.files().into_keys().collect();
    files.retain(|path| path.display().to_string().contains("audit.jsonl."));
    assert!(files.len() > 5, "{files:?}");
    for file in &files {
        assert!(fs::metadata(file).unwrap().len() <= 65536);
    }
    let others: Vec<&str> = files.iter().map(|path| path.to_str().unwrap()).collect();
    let report = scene.verify(&others);
    assert_eq!(
        (&report["verdict"], &report["chains"][0]["repeated"]),
        (&"whole".into(), &0.into())
    );
    files.push(scene.audit());
    all_recorded(&answers, &files);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_moves_the_file_and_hangs_up_has_two_that_fit() {
    let scene = Scene::new("").await;
    let server = scene.house.serve();
    let mut web = scene.house.connect(&server).await.client();
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let moved = scene.house.site.path("moved");
    fs::rename(scene.audit(), &moved).unwrap();
    server.signal("HUP");
    server.await_line("configuration reloaded");
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(server.stop(), Some(0));
    let report = scene.verify(&[moved.to_str().unwrap()]);
    assert_eq!(
        (&report["verdict"], &report["records"]),
        (&"whole".into(), &4.into())
    );
    assert_eq!(report["chains"][0]["repeated"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn best_effort_lets_calls_go_on_and_says_so() {
    let scene = Scene::new("mode = \"best_effort\"\n").await;
    let admin = "[listen]\nadmin = \"127.0.0.1:0\"";
    scene.house.site.edit("keybroker.toml", "[listen]", admin);
    // Into a file that takes nothing.
    scene
        .house
        .site
        .edit("keybroker.toml", "\"audit.jsonl\"", "\"/dev/full\"");
    let server = scene.house.serve();
    let mut web = scene.house.connect(&server).await.client();
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let admin = server.await_line("serving metrics and readiness in plain text address=");
    let admin = admin.trim().parse().unwrap();
    let ready = http1::get(admin, "/readyz").await.body;
    assert!(ready.contains("audit_best_effort"), "{ready}");
    let lost = async {
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(50));
        let series = "keybroker_audit_records_total{outcome=\"failed\"} ";
        loop {
            let metrics = http1::get(admin, "/metrics").await.body;
            let (_, count) = metrics.split_once(series).unwrap();
            if !count.starts_with("0\n") {
                break;
            }
            ticks.tick().await;
        }
    };
    soon(lost).await;
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn an_open_key_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = super::site::Site::new();
    site.write("audit.key", "");
    let readable = fs::Permissions::from_mode(0o644);
    fs::set_permissions(site.path("audit.key"), readable).unwrap();
    let sentence = bad(site.command(&["serve"]), b"", 78);
    assert!(
        sentence.contains("others can read the signing key"),
        "{sentence}"
    );
}

/// A server whose audit file is looked at.
struct Scene {
    house: House,
    _kms: FakeKms,
}

impl Scene {
    /// With more `settings` of the audit trail.
    async fn new(settings: &str) -> Self {
        let kms = FakeKms::start().await;
        let house = House::new(&kms.key("eu-central-1"));
        house.use_kms(&kms);
        let audit = format!("[audit]\n{settings}");
        house.site.edit("keybroker.toml", "[audit]\n", &audit);
        Self { house, _kms: kms }
    }

    fn audit(&self) -> PathBuf {
        self.house.site.path("audit.jsonl")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.audit()).unwrap()
    }

    /// `keybroker audit` of the file.
    fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = command(&["audit", name]);
        command.arg(self.audit()).args(args);
        command
    }

    /// What is said of the file, and of others among `args`, which are not broken.
    fn verify(&self, args: &[&str]) -> Value {
        let output = run(
            self.command("verify", &[args, &["--output", "json"]].concat()),
            b"",
        );
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{report}");
        report
    }
}

/// Each of `answers` has a record in `files`.
fn all_recorded(answers: &HashSet<String>, files: &[PathBuf]) {
    let mut recorded = HashSet::new();
    for file in files {
        for line in fs::read_to_string(file).unwrap().lines() {
            let record: Option<Value> = serde_json::from_str(line).ok();
            let id = record.and_then(|record| Some(record["requestID"].as_str()?.to_owned()));
            recorded.extend(id);
        }
    }
    assert!(!answers.is_empty());
    let unrecorded = answers.difference(&recorded).count();
    // Of several tests: each fails by itself unless it is 0.
    assert_eq!(unrecorded, 0);
    figures::record("audit", [("unrecorded_releases", unrecorded)]);
}

/// Callers, and the ids of the requests that were answered with a ciphertext.
struct Load {
    answers: Arc<Mutex<HashSet<String>>>,
    callers: JoinSet<()>,
}

impl Load {
    fn start(client: &Client) -> Self {
        let answers = Arc::new(Mutex::new(HashSet::new()));
        let mut callers = JoinSet::new();
        for _ in 0..8 {
            let mut client = client.clone();
            let answers = Arc::clone(&answers);
            callers.spawn(async move {
                while let Ok(answer) = client.encrypt(encrypt("keys/orders", "x")).await {
                    let id = answer.metadata().get("x-request-id").unwrap();
                    let id = id.to_str().unwrap().to_owned();
                    answers.lock().unwrap().insert(id);
                }
            });
        }
        Self { answers, callers }
    }

    /// Waits until so many more are there.
    async fn answers(&self, more: usize) {
        let count = || self.answers.lock().unwrap().len();
        let goal = count() + more;
        soon(async {
            while count() < goal {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until all have been refused.
    async fn refused(mut self) -> HashSet<String> {
        soon(async { while self.callers.join_next().await.is_some() {} }).await;
        std::mem::take(&mut *self.answers.lock().unwrap())
    }

    async fn end(mut self) -> HashSet<String> {
        self.callers.shutdown().await;
        std::mem::take(&mut *self.answers.lock().unwrap())
    }
}
