//! Wrong command lines, and readers that go away.

use std::process::Stdio;

use super::site::Site;
use super::site::bad;
use super::site::command;
use super::site::good;

#[test]
fn a_wrong_command_line_exits_with_64() {
    for args in [
        &[][..],
        &["sevre"],
        &["serve", "--port", "1"],
        &["encrypt"],
        &["encrypt", "--key", "keys/a", "--context", "no-pair"],
        &["encrypt", "--key", "keys/a", "--dev"],
        &["decrypt", "--addr", "broker:7443"],
        &["keyring", "add", "Not-A-Label"],
        &["keyring", "init", "--keyring", "here"],
        &["dev", "--listen", "0.0.0.0:7443"],
        &["completions", "forth"],
    ] {
        bad(command(args), b"", 64);
    }
}

#[test]
fn what_is_missing_is_named() {
    let encrypt = ["encrypt", "--key", "keys/a"];
    let nowhere = bad(command(&encrypt), b"", 64);
    assert!(nowhere.contains("KEYBROKER_ADDR"), "{nowhere}");

    let mut nobody = command(&encrypt);
    nobody.env("KEYBROKER_ADDR", "https://127.0.0.1:9");
    let nobody = bad(nobody, b"", 64);
    assert!(nobody.contains("KEYBROKER_PRIVATE_KEY"), "{nobody}");

    let mut plain = command(&encrypt);
    plain.env("KEYBROKER_ADDR", "http://127.0.0.1:9");
    let plain = bad(plain, b"", 64);
    assert!(plain.contains("https://"), "{plain}");

    let site = Site::new();
    let short = ["encrypt", "--offline", "--key", "keys/orders"];
    let short = bad(site.command(&short), b"x", 64);
    assert!(short.contains("the full name"), "{short}");
}

#[test]
fn an_unreachable_broker_is_unavailable_and_named() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let site = Site::without_keyring();
    let mut list = site.command(&["keys", "list"]);
    list.env("KEYBROKER_ADDR", format!("https://127.0.0.1:{port}"))
        .env("KEYBROKER_CA", site.path("ca.pem"))
        .env("KEYBROKER_CERT", site.path("server.pem"))
        .env("KEYBROKER_PRIVATE_KEY", site.path("server.key"));
    let sentence = bad(list, b"", 69);
    assert!(
        sentence.contains(&format!("127.0.0.1:{port}")),
        "{sentence}"
    );
    assert!(sentence.contains("refused"), "{sentence}");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let site = Site::new();
    let key = "tenants/acme/keys/orders";
    let offline = ["encrypt", "--offline", "--key", key, "--context", "a=b"];
    for (args, input, code) in [
        (&["completions", "bash"][..], &b""[..], &[0, 74][..]),
        (&["--help"], b"", &[0]),
        (&offline, b"attack at dawn", &[74]),
        (&["check-config"], b"", &[0]),
    ] {
        let mut command = site.command(args);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command
            .stdin(Stdio::piped())
            .stdout(writer)
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The command keeps its own writer alone.
        drop(command);
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!errors.contains("panic"), "{args:?}: {errors}");
        let found = output.status.code().unwrap();
        assert!(code.contains(&found), "{args:?}: {found}: {errors}");
    }
}

#[test]
fn completions_know_the_subcommands() {
    let script = good(command(&["completions", "bash"]), b"");
    for name in ["serve", "dev", "encrypt", "healthcheck", "keyring"] {
        assert!(script.contains(name), "{name}");
    }
}

#[test]
fn help_has_the_exit_codes() {
    let help = good(command(&["--help"]), b"");
    assert!(help.contains("  77  denied, or no identity"), "{help}");
}
