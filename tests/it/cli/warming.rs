//! What a server leaves for the next one, and what that one makes of it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::site::Running;
use super::site::Site;
use super::site::good;
use super::site::good_bytes;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Operation;

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_asks_kms_for_what_was_used_before_any_caller_does() {
    let fake = FakeKms::start().await;
    let site = site(&fake);
    let server = serve(&site);
    let context = ["--context", "order=66"];
    let encrypt = [["encrypt", "--key", "keys/orders"].as_slice(), &context].concat();
    let message = good_bytes(client(&site, &encrypt), b"x");
    assert_eq!(server.stop(), Some(0));
    let asked = || USES.map(|one| fake.calls(one)).iter().sum::<usize>();
    assert_eq!(asked(), 1);
    let file = fs::metadata(site.path("warm")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);

    let server = serve(&site);
    let line = server.await_line("the cache is warm");
    assert!(line.contains("done=2"), "{line}");
    assert_eq!(asked(), 3);
    let decrypt = [["decrypt"].as_slice(), &context].concat();
    assert_eq!(good(client(&site, &decrypt), &message), "x");
    good_bytes(client(&site, &encrypt), b"y");
    assert_eq!(asked(), 3);
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_an_empty_start_and_is_replaced() {
    let fake = FakeKms::start().await;
    let site = site(&fake);
    let damaged = "{\"file\":\"keybroker warm\",\"version\":2}\n{\"tenant\":\"acme\"\n";
    site.write("warm", damaged);
    let server = serve(&site);
    let line = server.await_line("cache.warm_file is damaged");
    assert!(line.contains("warm: line 2, column"), "{line}");
    good_bytes(client(&site, &["encrypt", "--key", "keys/orders"]), b"x");
    assert_eq!(server.stop(), Some(0));
    let kept = fs::read_to_string(site.path("warm")).unwrap();
    assert_eq!(kept.lines().count(), 3, "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_something_else_is_left_alone() {
    let fake = FakeKms::start().await;
    let site = site(&fake);
    site.edit("keybroker.toml", "\"warm\"", "\"tenants.toml\"");
    let before = fs::read_to_string(site.path("tenants.toml")).unwrap();
    let server = serve(&site);
    let line = server.await_line("cache.warm_file is left alone");
    assert!(line.contains("tenants.toml: not a warm file"), "{line}");
    good_bytes(client(&site, &["encrypt", "--key", "keys/orders"]), b"x");
    assert_eq!(server.stop(), Some(0));
    let after = fs::read_to_string(site.path("tenants.toml")).unwrap();
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_written_harms_nobody() {
    let fake = FakeKms::start().await;
    let site = site(&fake);
    site.edit("keybroker.toml", "\"warm\"", "\"nowhere/warm\"");
    let server = serve(&site);
    good_bytes(client(&site, &["encrypt", "--key", "keys/orders"]), b"x");
    server.signal("TERM");
    let line = server.await_line("what the next start would begin with is not kept");
    assert!(line.contains("nowhere/warm"), "{line}");
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_answers_holds_nobody_up() {
    let fake = FakeKms::start().await;
    let site = site(&fake);
    let made = Command::new("mkfifo").arg(site.path("warm")).status();
    assert!(made.unwrap().success());
    let server = serve(&site);
    good_bytes(client(&site, &["encrypt", "--key", "keys/orders"]), b"x");
    assert_eq!(server.stop(), Some(0));
}

/// A site whose key `orders` is in `fake`, which serves the user of this process, and keeps a
/// warm file.
pub(super) fn site(fake: &FakeKms) -> Site {
    let site = Site::without_keyring();
    let uid = fs::metadata("/proc/self").unwrap().uid();
    let arn = fake.key("eu-west-1");
    site.edit("tenants.toml", "local:orders", arn.as_str());
    let users = format!("users = [\"unix:uid={uid}\", ");
    site.edit("tenants.toml", "users = [", &users);
    let local = "[kms.local]\nkeyring = \"keyring\"\nsealing_key = \"sealing.key\"\n";
    let endpoint = fake.endpoint();
    let sections = format!(
        "[[identity.rule]]\nmatch = \"unix:uid={uid}\"\ntenant = \"acme\"\n\n\
         [kms.aws]\nendpoint = \"{endpoint}\"\n\n\
         [cache]\nwarm_file = \"warm\"\nwarm_rate = 1000\n"
    );
    site.edit("keybroker.toml", local, &sections);
    site
}

/// A server that serves.
pub(super) fn serve(site: &Site) -> Running {
    let mut command = site.command(&["serve"]);
    command
        .env("AWS_ACCESS_KEY_ID", BROKER)
        .env("AWS_SECRET_ACCESS_KEY", "no secret");
    let server = Running::logging(command);
    server.await_line("serving on a Unix socket");
    server
}

pub(super) fn client(site: &Site, args: &[&str]) -> Command {
    let address = format!("unix:{}", site.path("broker.sock").display());
    let mut command = site.command(args);
    command.env("KEYBROKER_ADDR", address);
    command
}

/// What is asked of KMS for callers.
const USES: [Operation; 2] = [Operation::Decrypt, Operation::GenerateDataKey];
