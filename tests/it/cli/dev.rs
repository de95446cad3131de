//! The playground, and what production says to it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tempfile::TempDir;

use super::site::Running;
use super::site::Site;
use super::site::bad;
use super::site::command;
use super::site::good;
use super::site::good_bytes;
use super::site::run;

#[test]
fn one_command_shows_all_of_it() {
    let temporary = tempfile::tempdir().unwrap();
    let mut once = command(&["dev", "--once"]);
    once.env("TMPDIR", temporary.path());
    let output = run(once, b"");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("NOT FOR PRODUCTION"), "{errors}");
    assert!(!errors.contains(" WARN "), "{errors}");
    let shown = String::from_utf8(output.stdout).unwrap();
    for part in [
        "principal   spiffe://dev.keybroker.test/tenant/acme/service/shop",
        "tenant      acme",
        "keybroker:tenant = acme",
        "service = shop  (captured from the SPIFFE id)",
        "Encrypt 14 bytes into",
        "the same bytes",
        "1000 Encrypts: 1 KMS call, 999 saved",
        "globex asks for the same message: POLICY_DENIED",
        "export KEYBROKER_ADDR=https://127.0.0.1:",
        "export KEYBROKER_PRIVATE_KEY=",
        "keybroker decrypt --context region=eu < message",
        "grpcurl -cacert ",
        "client.py localhost:",
        "what happens now stands at http://127.0.0.1:",
    ] {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
    assert_eq!(
        fs::read_dir(temporary.path()).unwrap().count(),
        0,
        "it cleans up"
    );
}

#[test]
fn the_folder_is_private() {
    let play = Playground::start();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&play.path("")), 0o700);
    for name in [
        "acme.key",
        "server.key",
        "sealing.key",
        "keyring",
        "audit.jsonl",
    ] {
        assert_eq!(mode(&play.path(name)), 0o600, "{name}");
    }
}

#[test]
fn a_folder_of_somebody_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "precious").unwrap();
    let dir = folder.path().to_str().unwrap();
    let sentence = bad(command(&["dev", "--once", "--dir", dir]), b"", 73);
    assert!(sentence.contains("name another folder"), "{sentence}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn real_keys_are_refused() {
    let play = Playground::start();
    let folder = play.stop();
    let tenants = folder.path().join("dev/tenants.toml");
    let arn = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let text = fs::read_to_string(&tenants).unwrap();
    fs::write(&tenants, text.replace("local:acme-orders", arn)).unwrap();
    let dir = folder.path().join("dev");
    let dev = command(&["dev", "--once", "--dir", dir.to_str().unwrap()]);
    let sentence = bad(dev, b"", 78);
    assert!(
        sentence.contains("tenants/acme/keys/orders is in AWS KMS"),
        "{sentence}"
    );
}

#[test]
fn a_client_encrypts_decrypts_and_lists() {
    let play = Playground::start();
    let plaintext = vec![0, 10, 13, 255];
    let encrypt = ["encrypt", "--key", "keys/orders", "--context", "region=eu"];
    let message = good_bytes(play.client("acme", &encrypt), &plaintext);
    let decrypt = ["decrypt", "--context", "region=eu"];
    assert_eq!(
        good_bytes(play.client("acme", &decrypt), &message),
        plaintext
    );

    let list = good(
        play.client("acme", &["keys", "list", "--output", "json"]),
        b"",
    );
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["keys"][0]["name"], "tenants/acme/keys/orders");
    assert_eq!(list["keys"][0]["role"], "users");
    let foreign = ["keys", "list", "--parent", "tenants/globex"];
    assert_eq!(good(play.client("acme", &foreign), b""), "");

    good(play.client("acme", &["healthcheck"]), b"");
}

#[test]
fn associated_data_and_a_file_for_the_result() {
    let play = Playground::start();
    let row = play.path("row");
    fs::write(&row, "row 17").unwrap();
    let (row, out) = (row.to_str().unwrap(), play.path("out"));
    let encrypt = [
        "encrypt",
        "--key",
        "keys/orders",
        "--associated-data-file",
        row,
    ];
    let message = good_bytes(play.client("acme", &encrypt), b"x");
    let decrypt = [
        "decrypt",
        "--associated-data-file",
        row,
        "--output",
        out.to_str().unwrap(),
    ];
    assert_eq!(good(play.client("acme", &decrypt), &message), "");
    assert_eq!(fs::read(&out).unwrap(), b"x");
    let mode = fs::metadata(&out).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    bad(play.client("acme", &["decrypt"]), &message, 65);
    let missing = ["decrypt", "--associated-data-file", "/nowhere/row"];
    bad(play.client("acme", &missing), &message, 66);
}

#[test]
fn a_refused_ciphertext_comes_with_its_cause() {
    let play = Playground::start();
    let encrypt = ["encrypt", "--key", "keys/orders", "--context", "region=eu"];
    let message = good_bytes(play.client("acme", &encrypt), b"attack at dawn");
    let decrypt = ["decrypt", "--context", "region=eu"];
    let refused = |args: &[&str], message: &[u8]| bad(play.client("acme", args), message, 65);

    let text = refused(&decrypt, BASE64_STANDARD.encode(&message).as_bytes());
    assert!(
        text.contains("the message is base64; decode it first"),
        "{text}"
    );
    let cut = refused(&decrypt, &message[..20]);
    assert!(cut.contains("truncated"), "{cut}");
    let other = refused(&["decrypt", "--context", "region=us"], &message);
    assert!(
        other.contains("another value for the pair \"region\""),
        "{other}"
    );
    let fewer = refused(&["decrypt"], &message);
    assert!(fewer.contains("plan, region, service"), "{fewer}");
    let mut altered = message;
    *altered.last_mut().unwrap() ^= 1;
    let altered = refused(&decrypt, &altered);
    assert!(altered.contains("CIPHERTEXT_INVALID"), "{altered}");
}

#[test]
fn refusals_have_their_exit_codes() {
    let play = Playground::start();
    let own = ["encrypt", "--key", "keys/orders"];
    let foreign = ["encrypt", "--key", "tenants/acme/keys/orders"];
    let sentence = bad(play.client("globex", &foreign), b"x", 77);
    assert!(sentence.contains("POLICY_DENIED"), "{sentence}");
    bad(play.client("acme", &own), b"", 65);
    let long = bad(play.client("acme", &own), &vec![0; (1 << 20) + 1], 65);
    assert!(long.contains("1048576"), "{long}");
    let reserved = [&own[..], &["--context", "keybroker:x=y"]].concat();
    let reserved = bad(play.client("acme", &reserved), b"x", 65);
    assert!(reserved.contains("CONTEXT_INVALID"), "{reserved}");

    // A stranger's CA, and a certificate that the broker knows nothing of.
    let stranger = Site::without_keyring();
    let mut untrusting = play.client("acme", &own);
    untrusting.env("KEYBROKER_CA", stranger.path("ca.pem"));
    let sentence = bad(untrusting, b"x", 69);
    assert!(sentence.contains("certificate"), "{sentence}");
    let mut unknown = play.client("acme", &own);
    unknown
        .env("KEYBROKER_CERT", stranger.path("server.pem"))
        .env("KEYBROKER_PRIVATE_KEY", stranger.path("server.key"));
    let sentence = bad(unknown, b"x", 77);
    assert!(sentence.contains("refuses our certificate"), "{sentence}");
    let mut mismatched = play.client("acme", &own);
    mismatched.env("KEYBROKER_PRIVATE_KEY", play.path("globex.key"));
    let sentence = bad(mismatched, b"x", 78);
    assert!(sentence.contains("must be one pair"), "{sentence}");
}

#[test]
fn offline_and_broker_read_each_other() {
    let play = Playground::start();
    let context = ["--context", "region=eu"];
    let encrypt = [&["encrypt", "--key", "keys/orders"][..], &context].concat();
    let message = good_bytes(play.client("acme", &encrypt), b"from the broker");
    let offline_all = ["--offline", "--dev", "--context", "region=eu"];
    let held = [
        &["decrypt"][..],
        &offline_all,
        &["--context", "service=shop"],
    ]
    .concat();
    let config = play.path("keybroker.toml");
    let site = |args: &[&str], config: &Path| {
        let mut command = command(args);
        command.env("KEYBROKER_CONFIG", config);
        command
    };
    let sentence = bad(site(&held, &config), &message, 69);
    assert!(sentence.contains("held by another process"), "{sentence}");

    let folder = play.stop();
    assert_eq!(
        good_bytes(site(&held, &config), &message),
        b"from the broker"
    );
    let captured = [&["decrypt"][..], &offline_all].concat();
    let sentence = bad(site(&captured, &config), &message, 65);
    assert!(sentence.contains("give --context service="), "{sentence}");
    let key = [
        "encrypt",
        "--key",
        "tenants/acme/keys/orders",
        "--context",
        "service=shop",
    ];
    let encrypt = [&key[..], &offline_all].concat();
    let message = good_bytes(site(&encrypt, &config), b"from the console");
    let production = ["decrypt", "--offline", "--context", "service=shop"];
    let sentence = bad(site(&production, &config), &message, 78);
    assert!(
        sentence.contains("is for dev, not for production"),
        "{sentence}"
    );

    let play = Playground::again(folder);
    let decrypt = ["decrypt", "--context", "region=eu"];
    assert_eq!(
        good_bytes(play.client("acme", &decrypt), &message),
        b"from the console"
    );
}

#[test]
fn production_refuses_what_dev_made() {
    let folder = Playground::start().stop();
    let dev = |name: &str| folder.path().join("dev").join(name);
    let serve = |config: &Path| {
        let mut serve = command(&["serve"]);
        serve.env("KEYBROKER_CONFIG", config);
        serve
    };
    let sentence = bad(serve(&dev("keybroker.toml")), b"", 78);
    assert!(
        sentence.contains("trust domain dev.keybroker.test"),
        "{sentence}"
    );

    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    for (old, new, named) in [
        ("ca.pem", text(dev("ca.pem")), "this bundle"),
        ("server.pem", text(dev("server.pem")), "this certificate"),
    ] {
        let site = Site::new();
        site.edit("keybroker.toml", old, &new);
        for command in ["serve", "check-config"] {
            let sentence = bad(site.command(&[command]), b"", 78);
            assert!(sentence.contains(&new), "{sentence}");
            assert!(sentence.contains(named), "{sentence}");
            assert!(
                sentence.contains("never serves in production"),
                "{sentence}"
            );
        }
    }
    let site = Site::new();
    site.edit(
        "keybroker.toml",
        "\"keyring\"",
        &format!("{:?}", text(dev("keyring"))),
    );
    let sealing = format!("{:?}", text(dev("sealing.key")));
    site.edit("keybroker.toml", "\"sealing.key\"", &sealing);
    let sentence = bad(site.command(&["serve"]), b"", 78);
    assert!(
        sentence.contains("is for dev, not for production"),
        "{sentence}"
    );
}

#[test]
fn sigterm_ends_it_in_order() {
    let play = Playground::start();
    assert_eq!(play.process.stop(), Some(0));
}

/// A running `keybroker dev`.
struct Playground {
    process: Running,
    address: String,
    folder: TempDir,
}

impl Playground {
    fn start() -> Self {
        Self::again(tempfile::tempdir().unwrap())
    }

    fn again(folder: TempDir) -> Self {
        let dir = folder.path().join("dev");
        let process = Running::printing(command(&["dev", "--dir", dir.to_str().unwrap()]));
        let address = process.await_line("export KEYBROKER_ADDR=");
        Self {
            process,
            address,
            folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("dev").join(name)
    }

    /// A client command of the workload of `tenant`.
    fn client(&self, tenant: &str, args: &[&str]) -> Command {
        let mut command = command(args);
        command
            .env("KEYBROKER_ADDR", &self.address)
            .env("KEYBROKER_CA", self.path("ca.pem"))
            .env("KEYBROKER_CERT", self.path(&format!("{tenant}.pem")))
            .env("KEYBROKER_PRIVATE_KEY", self.path(&format!("{tenant}.key")));
        command
    }

    fn stop(self) -> TempDir {
        assert_eq!(self.process.stop(), Some(0));
        self.folder
    }
}
