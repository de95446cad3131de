use tempfile::TempDir;

use super::*;
use crate::store::Config;
use crate::store::engine::Engine;
use crate::store::sqlite;

fn open(folder: &TempDir) -> Store {
    let config = Config {
        file: folder.path().join("store.db"),
        ..Config::default()
    };
    Store::new(&config, None).unwrap()
}

fn replica(name: &str, applied: u64, staleness: Duration) -> Replica {
    Replica {
        id: Uuid::from_bytes([name.as_bytes()[0]; 16]),
        name: name.to_owned(),
        applied,
        staleness,
    }
}

#[tokio::test]
async fn a_broker_is_known_by_its_latest_word_until_it_withdraws() {
    let folder = tempfile::tempdir().unwrap();
    let (store, other) = (open(&folder), open(&folder));
    let minute = Duration::from_secs(60);
    let (one, two) = (replica("a", 3, minute), replica("b", 0, minute * 2));
    for told in [&two, &one] {
        store.report(told).await.unwrap();
    }
    let known = other.replicas().await.unwrap();
    assert_eq!(known.all, [one.clone(), two.clone()]);
    let later = replica("a", 4, minute);
    other.report(&later).await.unwrap();
    let told = store.replicas().await.unwrap();
    assert!(told.now >= known.now);
    assert_eq!(told.all, [later.clone(), two.clone()]);
    store.withdraw(two.id).await.unwrap();
    assert_eq!(other.replicas().await.unwrap().all, [later]);
}

#[tokio::test]
async fn a_broker_is_forgotten_when_it_goes_by_nothing_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let (short, long) = (Duration::from_secs(5), Duration::from_secs(3600));
    let (gone, silent) = (replica("gone", 1, short), replica("silent", 1, long));
    for told in [&gone, &silent] {
        store.report(told).await.unwrap();
    }
    // Both were heard of 66 s ago, which is longer than a broker is silent.
    let options = sqlite::options(&folder.path().join("store.db")).unwrap();
    let mut connection = Engine::Sqlite(options.into()).connect().await.unwrap();
    let earlier = "UPDATE replicas SET seen = seen - 66000";
    connection.run_all(earlier).await.unwrap();
    let own = replica("own", 1, short);
    store.report(&own).await.unwrap();
    assert_eq!(store.replicas().await.unwrap().all, [own, silent]);
}

#[tokio::test]
async fn to_be_known_is_no_change() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let own = replica("own", 0, Duration::from_secs(5));
    store.report(&own).await.unwrap();
    assert_eq!(store.latest().await.unwrap(), 0);
}
