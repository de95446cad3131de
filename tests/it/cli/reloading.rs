//! A running server keeps in step with its files: whole or not at all.

use super::site::Running;
use super::site::Site;
use super::site::bad;

#[test]
fn a_hangup_and_a_changed_file_are_both_heard() {
    let site = Site::new();
    let server = serving(&site);
    server.signal("HUP");
    server.await_line("configuration reloaded");
    site.edit("tenants.toml", "plan =", "tier =");
    server.await_line("configuration reloaded");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_bad_file_leaves_the_old_state_in_force() {
    let site = Site::new();
    let server = serving(&site);
    site.edit("tenants.toml", "users", "user");
    let line = server.await_line("configuration not reloaded: the old one stays in force");
    assert!(line.contains("did you mean `users`?"), "{line}");
    site.good(&["healthcheck"]);
    site.edit("tenants.toml", "user ", "users ");
    server.await_line("configuration reloaded");
}

#[test]
fn what_takes_a_restart_is_named() {
    let site = Site::new();
    let server = serving(&site);
    site.edit(
        "keybroker.toml",
        "[kms.local]",
        "[cache]\nentries = 7\n\n[kms.local]",
    );
    let line = server.await_line("this section changes only with a restart");
    assert!(line.contains("cache"), "{line}");
}

#[test]
fn a_local_key_that_the_keyring_lacks_is_named() {
    let site = Site::new();
    let server = serving(&site);
    site.edit("tenants.toml", "local:orders", "local:invoices");
    let line = server.await_line("configuration not reloaded");
    assert!(line.contains("keybroker keyring add invoices"), "{line}");
    assert_eq!(server.stop(), Some(0));
    let sentence = bad(site.command(&["serve"]), b"", 78);
    assert!(sentence.contains("tenants/acme/keys/orders"), "{sentence}");
    assert!(
        sentence.contains("keybroker keyring add invoices"),
        "{sentence}"
    );
}

fn serving(site: &Site) -> Running {
    let server = Running::logging(site.command(&["serve"]));
    server.await_line("serving on a Unix socket");
    server
}

#[test]
fn files_that_a_reload_names_are_followed_from_then_on() {
    let site = Site::new();
    let server = serving(&site);
    let tenants = std::fs::read_to_string(site.path("tenants.toml")).unwrap();
    std::fs::create_dir(site.path("elsewhere")).unwrap();
    site.write("elsewhere/others.toml", &tenants);
    site.edit(
        "keybroker.toml",
        "\"tenants.toml\"",
        "\"elsewhere/others.toml\"",
    );
    server.await_line("configuration reloaded");
    // Events of the first change may still come; those of the second file come from its folder.
    site.edit("elsewhere/others.toml", "users", "user");
    let line = server.await_line("configuration not reloaded: the old one stays in force");
    assert!(line.contains("others.toml"), "{line}");
}

#[test]
fn a_rotation_period_outside_its_bounds_is_refused() {
    for period in ["1s", "87601h", "-24h"] {
        let site = Site::new();
        let period = format!("[kms.local]\nrotation_period = \"{period}\"");
        site.edit("keybroker.toml", "[kms.local]", &period);
        let sentence = bad(site.command(&["check-config"]), b"", 78);
        assert!(sentence.contains("kms.local.rotation_period"), "{sentence}");
        assert!(sentence.contains("24h to 87600h"), "{sentence}");
    }
}
