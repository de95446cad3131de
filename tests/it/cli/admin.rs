//! The admin listener of a whole process.

use std::net::SocketAddr;

use super::site::Running;
use super::site::Site;
use super::site::bad;
use crate::harness::soon;
use crate::support::http1::get;
use crate::support::prometheus;

fn site(listen: &str) -> Site {
    let site = Site::new();
    let listen = format!("[listen]\n{listen}");
    site.edit("keybroker.toml", "[listen]", &listen);
    site
}

/// Where the admin listener of `server` is.
fn address(server: &Running) -> SocketAddr {
    let rest = server.await_line("serving metrics and readiness in plain text");
    let (_, address) = rest.split_once("address=").unwrap();
    address.trim().parse().unwrap()
}

#[tokio::test]
async fn a_server_shows_its_metrics_and_that_it_is_ready() {
    let site = site("admin = \"127.0.0.1:0\"");
    let server = Running::logging(site.command(&["serve"]));
    let address = address(&server);
    let scrape = get(address, "/metrics").await;
    assert_eq!(scrape.status, 200);
    let series = prometheus::parse(&scrape.body);
    let build = format!(
        "keybroker_build_info{{version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(series.get(&build), Some(&1.0));
    let ready = get(address, "/readyz").await;
    assert_eq!(ready.status, 200);
    assert!(ready.body.starts_with(r#"{"status":""#), "{}", ready.body);
    assert_eq!(get(address, "/healthz").await.status, 200);
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test]
async fn reloads_are_counted_by_how_they_ended() {
    let site = site("admin = \"127.0.0.1:0\"");
    let server = Running::logging(site.command(&["serve"]));
    let address = address(&server);
    site.edit("tenants.toml", "users", "user");
    server.await_line("configuration not reloaded: the old one stays in force");
    site.edit("tenants.toml", "user", "users");
    server.await_line("configuration reloaded");
    let told = async {
        loop {
            let scrape = get(address, "/metrics").await;
            let series = prometheus::parse(&scrape.body);
            let of = |outcome| {
                series[&format!("keybroker_config_reloads_total{{outcome=\"{outcome}\"}}")]
            };
            if of("done") >= 1.0 && of("failed") >= 1.0 {
                return series["keybroker_config_last_reload_success_timestamp_seconds"];
            }
        }
    };
    let loaded = soon(told).await;
    assert!(loaded > 1_700_000_000.0, "{loaded}");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn an_admin_listener_for_the_network_must_be_meant() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9464"] {
        let site = site(&format!("admin = \"{address}\""));
        let sentence = bad(site.command(&["check-config"]), b"", 78);
        let wanted = format!("[listen]: admin = {address} shows metrics");
        assert!(sentence.contains(&wanted), "{sentence}");
        assert!(sentence.contains("admin_exposed = true"), "{sentence}");
    }
    for listen in [
        "admin = \"0.0.0.0:0\"\nadmin_exposed = true",
        "admin = \"[::1]:0\"",
        "admin = \"127.0.0.2:0\"",
    ] {
        site(listen).good(&["check-config"]);
    }
}

#[test]
fn an_admin_address_that_is_taken_is_the_machines_matter() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let site = site(&format!("admin = \"{address}\""));
    let sentence = bad(site.command(&["serve"]), b"", 71);
    assert!(sentence.contains(&address.to_string()), "{sentence}");
}
