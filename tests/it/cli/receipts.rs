//! The receipt of the kill switch: which brokers have confirmed, and when the others refuse.

use std::fs;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::replica::Replica;
use super::site::Running;
use super::site::Site;
use super::site::good;
use super::site::good_bytes;
use crate::support::postgres::Postgres;
use crate::support::postgres::sql;

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_names_who_confirmed_and_when_the_others_refuse() {
    let postgres = Postgres::start();
    let replicas = [(); 3].map(|()| Replica::of(&postgres, postgres.address()).serve());
    replicas[0].apply(TENANT);
    for replica in &replicas {
        replica.becomes("tenants/acme/keys/orders").await;
    }
    let ids = replicas.each_ref().map(|replica| id(&replica.site));
    let [one, other, third] = &replicas;
    // All have confirmed, so all refuse: no waiting any more.
    let all = measure(one, "suspend");
    assert_eq!(
        (named(&all, "confirmed"), named(&all, "unconfirmed")),
        (sorted(&ids), vec![])
    );
    for replica in &replicas {
        let refused = replica.listing("tenants/acme").output().unwrap();
        let errors = String::from_utf8(refused.stderr).unwrap();
        assert!(errors.contains("TENANT_SUSPENDED"), "{errors}");
    }
    let resumed = measure(other, "resume");
    assert_eq!(named(&resumed, "confirmed"), sorted(&ids));
    for replica in &replicas {
        assert!(replica.keys().contains("tenants/acme/keys/orders"));
    }

    // One that stands still cannot confirm.
    let stopped = third.server.as_ref().unwrap();
    stopped.signal("STOP");
    let before = Timestamp::now();
    let some = measure(one, "suspend");
    assert_eq!(named(&some, "confirmed"), sorted(&ids[..2]));
    assert_eq!(named(&some, "unconfirmed"), sorted(&ids[2..]));
    // The tenant's own limit, counted from the change.
    let refuses: Timestamp = some["unconfirmed"][0]["refuse_time"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let limit = refuses.duration_since(before).as_secs_f64();
    assert!((5.0..10.0).contains(&limit), "{limit} s");
    for replica in [one, other] {
        let refused = replica.listing("tenants/acme").output().unwrap();
        let errors = String::from_utf8(refused.stderr).unwrap();
        assert!(errors.contains("TENANT_SUSPENDED"), "{errors}");
    }
    // By then it does refuse, for want of fresh word or because it has heard of it.
    let left = refuses.duration_since(Timestamp::now());
    let left = Duration::try_from(left).unwrap_or_default();
    tokio::time::sleep(left).await;
    stopped.signal("CONT");
    let refused = third.listing("tenants/acme").output().unwrap();
    assert!(!refused.status.success());
    third.refuses("TENANT_SUSPENDED").await;
    // Asked again, it has confirmed.
    let again = measure(other, "suspend");
    assert_eq!(again["changed"], false);
    assert_eq!(again["change"], some["change"]);
    assert_eq!(named(&again, "confirmed"), sorted(&ids));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_ends_in_order_is_not_waited_for_and_one_that_crashes_is() {
    let postgres = Postgres::start();
    let [one, leaving, mut crashing] =
        [(); 3].map(|()| Replica::of(&postgres, postgres.address()).serve());
    one.apply(TENANT);
    let (own, crashed) = (id(&one.site), id(&crashing.site));
    assert_eq!(leaving.server.unwrap().stop(), Some(0));
    crashing.crash();
    let receipt = measure(&one, "purge");
    assert_eq!(named(&receipt, "confirmed"), [own.as_str()]);
    assert_eq!(named(&receipt, "unconfirmed"), [crashed.as_str()]);
    // Others forget it once it would refuse everything, were it there.
    let mut watching = postgres.connect().await;
    let earlier = "UPDATE replicas SET seen = seen - 3600000";
    sql(&mut watching, earlier).await;
    let receipt = measure(&one, "purge");
    assert_eq!(named(&receipt, "confirmed"), [own.as_str()]);
    assert_eq!(named(&receipt, "unconfirmed"), [""; 0]);
}

#[test]
fn a_single_broker_confirms_itself() {
    let site = Site::with_operator();
    let server = Running::logging(site.command(&["serve"]));
    server.await_line("serving on a Unix socket");
    let said = good(site.at(&["tenant", "suspend", "acme"]), b"");
    let confirmed = format!("({})", id(&site));
    assert!(
        said.contains("\nconfirmed by ") && said.contains(&confirmed),
        "{said}"
    );
    assert!(!said.contains("not confirmed"), "{said}");
    good_bytes(site.at(&["tenant", "resume", "acme"]), b"");
    assert_eq!(server.stop(), Some(0));
}

/// The receipt for `what` is done to acme.
fn measure(replica: &Replica, what: &str) -> Value {
    let args = ["tenant", what, "acme", "--output", "json"];
    serde_json::from_str(&good(replica.at(&args), b"")).unwrap()
}

/// Who is named in `list`, in order.
fn named<'a>(receipt: &'a Value, list: &str) -> Vec<&'a str> {
    let replicas = receipt[list].as_array().unwrap().iter();
    let mut ids: Vec<_> = replicas.map(|one| one["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids
}

fn sorted(ids: &[String]) -> Vec<&str> {
    let mut ids: Vec<_> = ids.iter().map(String::as_str).collect();
    ids.sort_unstable();
    ids
}

/// The process that serves at `site`, by its first audit record.
fn id(site: &Site) -> String {
    let trail = fs::read_to_string(site.path("audit.jsonl")).unwrap();
    let first: Value = serde_json::from_str(trail.lines().next().unwrap()).unwrap();
    first["instance"].as_str().unwrap().to_owned()
}

const TENANT: &str = r#"
[[tenant]]
id = "acme"
max_staleness = "5s"
[[tenant.key]]
id = "orders"
kms = "local:orders"
users = ["unix:uid=UID"]
"#;
