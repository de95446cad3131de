//! A trail that a KMS key countersigns: proved by that key alone, whatever KMS does meanwhile.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use keybroker::kms::Arn;
use serde_json::Value;
use tokio::time::Instant;

use super::house::House;
use super::site::Running;
use super::site::bad;
use super::site::command;
use super::site::good;
use super::site::run;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::http1;

#[tokio::test(flavor = "multi_thread")]
async fn a_trail_is_proved_by_the_kms_key_alone_until_it_is_altered() {
    let scene = Scene::new().await;
    let server = scene.house.serve();
    scene.encrypt(&server, 3).await;
    // The first record, at once.
    soon(scene.kms.arrived(Operation::Sign, 1)).await;
    assert_eq!(server.stop(), Some(0));

    let key = scene.public_key("first.pem");
    let report = scene.verify(&[&key]);
    assert_eq!(report["verdict"], "whole", "{report}");
    let chain = &report["chains"][0];
    assert_eq!(chain["trust"], "vouched");
    let countersigned = &chain["countersigned"];
    assert_eq!(countersigned["trust"], "given");
    assert_eq!(countersigned["arn"], scene.key.as_str());
    // What carries it, and the last record.
    assert_eq!(countersigned["behind"], 2, "{report}");
    let said = good(scene.command(&[&key]), b"");
    assert!(said.contains("2 before the end"), "{said}");

    let forger = scene.kms.signing_key("eu-central-1");
    scene.use_key(&forger);
    let foreign = scene.public_key("foreign.pem");
    let refused = bad(scene.command(&[&foreign]), b"", 65);
    assert!(refused.contains("not given"), "{refused}");

    let text = fs::read_to_string(scene.audit()).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    // Taken out, moved, repeated and altered.
    for altered in [
        [&lines[..2], &lines[3..]].concat().concat(),
        [&lines[..1], &lines[2..3], &lines[1..2], &lines[3..]]
            .concat()
            .concat(),
        [&lines[..2], &lines[1..]].concat().concat(),
        text.replacen("Encrypt", "Decrypt", 1),
    ] {
        fs::write(scene.audit(), altered).unwrap();
        bad(scene.command(&[&key]), b"", 65);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_another_kms_key_is_proved_by_both() {
    let scene = Scene::new().await;
    let old = scene.public_key("old.pem");
    let server = scene.house.serve();
    scene.encrypt(&server, 1).await;
    assert_eq!(server.stop(), Some(0));
    scene.use_key(&scene.kms.signing_key("eu-central-1"));
    let new = scene.public_key("new.pem");
    let server = scene.house.serve();
    scene.encrypt(&server, 1).await;
    assert_eq!(server.stop(), Some(0));

    let both = scene.verify(&[&old, &new]);
    assert_eq!(both["verdict"], "whole", "{both}");
    for chain in [0, 1] {
        assert_eq!(both["chains"][chain]["countersigned"]["trust"], "given");
    }
    // The first record of the second process is about the end of the first.
    assert_eq!(scene.verify(&[&new])["chains"][0]["trust"], "vouched");
    let refused = bad(scene.command(&[&old]), b"", 65);
    assert!(refused.contains("record 0 of"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_hangs_holds_up_no_call_and_is_caught_up_with() {
    let scene = Scene::new().await;
    scene.kms.fail(Operation::Sign, Fault::Hang);
    let server = scene.house.serve();
    let mut client = scene.house.connect(&server).await.client();
    let admin = server.await_line("serving metrics and readiness in plain text address=");
    let admin = admin.trim().parse().unwrap();
    server.await_line("KMS does not countersign audit records");
    for _ in 0..50 {
        let answer = client.encrypt(encrypt("keys/orders", "x"));
        soon(answer).await.unwrap();
    }
    let ready = http1::get(admin, "/readyz").await;
    assert!(ready.body.contains("audit_kms"), "{}", ready.body);
    let waiting = async {
        let series = "keybroker_audit_not_countersigned 50\n";
        while !http1::get(admin, "/metrics").await.body.contains(series) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(waiting).await;
    let open = scene.verify(&[]);
    assert_eq!(open["chains"][0]["countersigned"], Value::Null);

    scene.kms.heal();
    server.await_line("KMS countersigns audit records again");
    let carried = async {
        while scene.verify(&[])["chains"][0]["countersigned"] == Value::Null {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(carried).await;
    server.crash();
    let key = scene.public_key("key.pem");
    let report = scene.verify(&[&key]);
    assert_eq!(
        (&report["verdict"], &report["chains"][0]["end"]),
        (&"open".into(), &"open".into())
    );
    assert_eq!(report["chains"][0]["trust"], "vouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_waits_for_kms_but_not_for_long() {
    let scene = Scene::new().await;
    scene.kms.fail(Operation::Sign, Fault::Hang);
    let server = scene.house.serve();
    scene.encrypt(&server, 1).await;
    let began = Instant::now();
    let (code, said) = server.finish();
    assert_eq!(code, Some(0));
    assert!(began.elapsed() < Duration::from_secs(15));
    let said = String::from_utf8_lossy(&said);
    assert!(
        said.contains("stopped before KMS had countersigned"),
        "{said}"
    );
    // By its own key it is whole; by the other nothing is proved.
    assert_eq!(scene.verify(&[])["verdict"], "whole");
    let key = scene.public_key("key.pem");
    bad(scene.command(&[&key]), b"", 65);
}

/// A server whose trail a key of the fake countersigns.
struct Scene {
    house: House,
    kms: FakeKms,
    key: Arn,
}

impl Scene {
    async fn new() -> Self {
        let kms = FakeKms::start().await;
        let house = House::new(&kms.key("eu-central-1"));
        house.use_kms(&kms);
        let admin = "[listen]\nadmin = \"127.0.0.1:0\"";
        house.site.edit("keybroker.toml", "[listen]", admin);
        let key = kms.signing_key("eu-central-1");
        let scene = Self { house, kms, key };
        let site = &scene.house.site;
        let audit = format!("[audit]\nkms_key = \"{}\"\n", scene.key);
        site.edit("keybroker.toml", "[audit]\n", &audit);
        scene
    }

    /// Has another key countersign from the next start on.
    fn use_key(&self, key: &Arn) {
        let (old, new) = (self.key.as_str(), key.as_str());
        self.house.site.edit("keybroker.toml", old, new);
    }

    async fn encrypt(&self, server: &Running, calls: usize) {
        let mut client = self.house.connect(server).await.client();
        for _ in 0..calls {
            client.encrypt(encrypt("keys/orders", "x")).await.unwrap();
        }
    }

    fn audit(&self) -> PathBuf {
        self.house.site.path("audit.jsonl")
    }

    /// The path of what `audit public-key` prints.
    fn public_key(&self, name: &str) -> String {
        let mut command = self.house.site.command(&["audit", "public-key"]);
        command
            .env("AWS_ACCESS_KEY_ID", BROKER)
            .env("AWS_SECRET_ACCESS_KEY", "no secret");
        self.house.site.write(name, &good(command, b""));
        self.house.site.path(name).display().to_string()
    }

    fn command(&self, keys: &[&str]) -> Command {
        let mut command = command(&["audit", "verify"]);
        command.arg(self.audit());
        for key in keys {
            command.args(["--public-key", key]);
        }
        command
    }

    /// What is said of the file, which is not broken.
    fn verify(&self, keys: &[&str]) -> Value {
        let mut command = self.command(keys);
        command.args(["--output", "json"]);
        let output = run(command, b"");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{report}");
        report
    }
}
