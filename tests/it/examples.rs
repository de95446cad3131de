//! The files under `deploy` are good configurations, the defaults that they show are ours, and the
//! README leaves out no setting and no error.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use keybroker::clock::Clock as _;
use keybroker::clock::System;
use keybroker::config::Config;
use keybroker::datakeys;
use keybroker::directory;
use keybroker::grpc::Limits;
use keybroker::grpc::listener;
use keybroker::kms::aws;
use keybroker::mem;

use crate::harness::Authority;

#[test]
fn the_example_passes_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let path = lay_out(folder.path(), &example("keybroker.toml"));
    let config = Config::load(&path).unwrap();
    let state = config.state(&path, now()).unwrap();
    assert_eq!(state.tenants.unwrap().directory.tenants().len(), 2);
    assert!(state.material.is_some());
}

#[test]
fn the_example_passes_the_check_with_all_that_is_off_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = lay_out(folder.path(), &switched_on(&example("keybroker.toml")));
    let config = Config::load(&path).unwrap();
    assert!(config.listen.unix.is_some() && config.listen.health.is_some());
    assert!(config.listen.admin.is_some());
    assert!(config.kms.local.is_some() && config.audit.file.is_some());
    assert!(config.cache.warm_file.is_some());
    assert!(
        config
            .identity
            .bundle
            .iter()
            .any(|bundle| bundle.crl.is_some())
    );
    config.state(&path, now()).unwrap();
}

#[test]
fn the_example_shows_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let path = lay_out(folder.path(), &switched_on(&example("keybroker.toml")));
    let config = Config::load(&path).unwrap();
    assert_eq!(config.limits, Limits::default());
    let cache = datakeys::Config {
        warm_file: config.cache.warm_file.clone(),
        ..datakeys::Config::default()
    };
    assert_eq!(config.cache, cache);
    let listen = listener::Config::default();
    assert_eq!(config.listen.admin_exposed, listen.admin_exposed);
    assert_eq!(config.listen.reflection, listen.reflection);
    assert_eq!(config.memory, mem::Config::default());
    let aws = aws::Config {
        endpoint: config.kms.aws.endpoint.clone(),
        endpoints: config.kms.aws.endpoints.clone(),
        ..aws::Config::default()
    };
    assert_eq!(config.kms.aws, aws);
    assert_eq!(config.listen.unix.unwrap().mode, "660");
}

#[test]
fn the_readme_names_every_setting() {
    let readme = readme();
    for file in ["keybroker.toml", "tenants.toml"] {
        for line in switched_on(&example(file)).lines() {
            let Some((name, _)) = line.split_once(" = ") else {
                continue;
            };
            let name = name.trim_start();
            // Keys of inline tables aside.
            if name.contains(['{', '"', '#']) {
                continue;
            }
            let named = [format!("`{name}`"), format!(".{name}`")];
            assert!(
                named.iter().any(|form| readme.contains(form)),
                "{name} of {file} is not in README.md"
            );
        }
    }
}

#[test]
fn the_readme_knows_the_limits_of_a_data_key() {
    let limits = directory::Limits::default();
    assert_eq!(limits.max_age.as_secs(), 300);
    for figure in [limits.max_messages, limits.max_bytes] {
        let cell = format!("| {figure} (");
        assert!(readme().contains(&cell), "{figure} is not in README.md");
    }
}

#[test]
fn the_readme_explains_every_reason_of_an_error() {
    let errors = fs::read_to_string(root().join("src/error.rs")).unwrap();
    let reasons: Vec<&str> = errors
        .split('"')
        .filter(|text| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
        })
        .collect();
    assert!(reasons.len() > 20, "reasons stand elsewhere now");
    for reason in reasons {
        let cell = format!("| `{reason}` |");
        assert!(readme().contains(&cell), "{reason} is not in README.md");
    }
}

/// The example's files where `config` looks for them; the path of the configuration.
fn lay_out(folder: &Path, config: &str) -> std::path::PathBuf {
    let path = folder.join("keybroker.toml");
    fs::write(&path, config).unwrap();
    fs::write(folder.join("tenants.toml"), example("tenants.toml")).unwrap();
    let tls = folder.join("tls");
    fs::create_dir(&tls).unwrap();
    let authority = Authority::new("prod.example");
    let own = authority.server("keybroker.prod.example");
    for (name, pem) in [
        ("server.pem", own.chain_pem()),
        ("server.key", own.key_pem()),
        ("prod.example.pem", authority.pem()),
        ("prod.example.crl", authority.revoke(&[])),
        ("acme-batch-ca.pem", Authority::new("batch").pem()),
    ] {
        fs::write(tls.join(name), pem).unwrap();
    }
    path
}

/// The example with its settings that are off: lines where no blank follows the `#`.
fn switched_on(text: &str) -> String {
    let on = |line: &str| {
        let setting = line.strip_prefix('#').filter(|rest| !rest.is_empty());
        let setting = setting.filter(|rest| !rest.starts_with(' '));
        format!("{}\n", setting.unwrap_or(line))
    };
    text.lines().map(on).collect()
}

fn example(name: &str) -> String {
    fs::read_to_string(root().join("deploy").join(name)).unwrap()
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn now() -> Timestamp {
    System.wall()
}
