//! What `deploy/observability` has for Prometheus and Grafana, held against a real Prometheus and a
//! real server.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Child;

use super::house::House;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;
use crate::support::fake_kms::FakeKms;
use crate::support::http1::send;

#[test]
fn the_rules_are_good_and_fire_when_they_should() {
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let output = Command::new("promtool")
            .args(arguments)
            .current_dir(folder())
            .output()
            .expect("promtool is there: tests/run installs it");
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn each_alert_has_a_rule_test_and_a_runbook_and_no_runbook_is_left_over() {
    let rules = read("alerts.yml");
    let alerts: BTreeSet<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 10);
    let runbooks = read("runbooks.md");
    let chapters: BTreeSet<&str> = runbooks
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    assert_eq!(alerts, chapters);
    let tests = read("alerts_test.yml");
    for alert in alerts {
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert}");
        let link = format!(
            "runbook_url: deploy/observability/runbooks.md#{}\n",
            alert.to_lowercase()
        );
        assert!(rules.contains(&link), "{link}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prometheus_scrapes_the_server_and_knows_every_metric_that_is_drawn_or_watched() {
    let kms = FakeKms::start().await;
    let house = House::new(&kms.key("eu-west-1"));
    house.use_kms(&kms);
    let admin = "[listen]\nadmin = \"127.0.0.1:0\"";
    house.site.edit("keybroker.toml", "[listen]", admin);
    let server = house.serve();
    let connection = house.connect(&server).await;
    let line = server.await_line("serving metrics and readiness in plain text");
    let (_, admin) = line.split_once("address=").unwrap();
    let mut web = connection.client();
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();

    let prometheus = Prometheus::start(admin.trim().parse().unwrap());
    let build = format!("version=\"{}\"", env!("CARGO_PKG_VERSION")).replace('=', "\":");
    soon(prometheus.told("keybroker_build_info", &build)).await;
    let rules = prometheus.get("/api/v1/rules").await;
    assert!(rules.contains("KeybrokerKmsThrottled"), "{rules}");
    assert!(!rules.contains("\"health\":\"err\""), "{rules}");

    let names = prometheus.get("/api/v1/label/__name__/values").await;
    let used = [read("alerts.yml"), read("dashboard.json")].concat();
    let mut used: BTreeSet<&str> = used
        .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| word.starts_with("keybroker_") || word.starts_with("rpc_server_"))
        .collect();
    assert!(used.len() > 20);
    used.retain(|name| !names.contains(&format!("\"{name}\"")));
    assert_eq!(used, BTreeSet::new(), "there are no such metrics");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn the_dashboard_names_no_data_source_of_its_own() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    assert_eq!(dashboard["uid"], "keybroker");
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{target}");
        }
    }
}

/// A Prometheus with our rules, in a folder of its own. Killed when dropped.
struct Prometheus {
    address: SocketAddr,
    _server: Child,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// One that scrapes `target` twice a second.
    fn start(target: SocketAddr) -> Self {
        let home = tempfile::tempdir().unwrap();
        let rules = folder().join("alerts.yml");
        let config = format!(
            "global: {{ scrape_interval: 500ms, evaluation_interval: 500ms }}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n\
             - job_name: keybroker\n  static_configs: [{{ targets: ['{target}'] }}]\n",
            rules.display()
        );
        fs::write(home.path().join("prometheus.yml"), config).unwrap();
        let address = free();
        let server = tokio::process::Command::new("prometheus")
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address={address}"))
            .current_dir(home.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus is there: tests/run installs it");
        Self {
            address,
            _server: server,
            _folder: home,
        }
    }

    /// What it answers to a GET of `path`.
    async fn get(&self, path: &str) -> String {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: prometheus\r\nconnection: close\r\n\r\n");
        send(self.address, request.as_bytes()).await.body
    }

    /// Waits until the answer to `query` contains `what`.
    async fn told(&self, query: &str, what: &str) {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        let path = format!("/api/v1/query?query={query}");
        loop {
            ticks.tick().await;
            let listens = tokio::net::TcpStream::connect(self.address).await.is_ok();
            if listens && self.get(&path).await.contains(what) {
                return;
            }
        }
    }
}

/// A port that was free a moment ago: Prometheus does not tell which one it chose.
fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/observability")
}
