use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sqlx::Connection as _;
use sqlx::Executor as _;
use tempfile::TempDir;

use super::*;
use crate::directory::Content;
use crate::directory::Documents;
use crate::directory::Row;
use crate::directory::Standing;

/// A store in a file of `folder`.
fn open(folder: &TempDir) -> Store {
    Store::new(&config(folder.path()), None).unwrap()
}

fn config(folder: &Path) -> Config {
    Config {
        file: folder.join("store.db"),
        ..Config::default()
    }
}

fn documents<const N: usize>(tenants: [(&str, &str); N]) -> Documents {
    let document = |(id, text): (&str, &str)| (id.parse().unwrap(), text.to_owned());
    tenants.into_iter().map(document).collect()
}

fn row(id: &str, document: &str) -> Row {
    Row {
        id: id.to_owned(),
        content: Content::Document(document.to_owned()),
        standing: Standing::Active,
        purged: 0,
    }
}

fn ids(ids: &[&str]) -> Vec<crate::name::TenantId> {
    ids.iter().map(|id| id.parse().unwrap()).collect()
}

/// Runs `statement` in the file of `folder`, as nobody of ours would.
async fn meddle(folder: &TempDir, statement: &'static str) {
    let options = sqlite::options(&folder.path().join("store.db")).unwrap();
    let mut connection = Engine::Sqlite(options.into()).connect().await.unwrap();
    connection.run_all(statement).await.unwrap();
}

#[tokio::test]
async fn what_was_brought_in_is_there_for_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let file = documents([("acme", "a"), ("globex", "g")]);
    let applied = open(&folder).apply(&file, Absent::Keep).await.unwrap();
    assert_eq!(
        (applied.change, applied.added),
        (Some(1), ids(&["acme", "globex"]))
    );

    let news = open(&folder).news(None).await.unwrap().unwrap();
    let mut tenants = news.tenants;
    tenants.sort_by(|one, other| one.id.cmp(&other.id));
    assert_eq!(tenants, [row("acme", "a"), row("globex", "g")]);
    assert_eq!((news.number, news.whole), (1, true));
}

#[tokio::test]
async fn a_second_time_nothing_changes_and_no_change_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let file = documents([("acme", "a")]);
    store.apply(&file, Absent::Keep).await.unwrap();
    let again = store.apply(&file, Absent::Remove).await.unwrap();
    assert_eq!(
        again,
        Applied {
            unchanged: 1,
            ..Applied::default()
        }
    );
    assert_eq!(store.news(Some(1)).await.unwrap(), None);
}

#[tokio::test]
async fn only_what_changed_is_news() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let first = documents([("acme", "a"), ("globex", "g"), ("initech", "i")]);
    store.apply(&first, Absent::Keep).await.unwrap();
    let second = documents([("acme", "a"), ("globex", "other"), ("umbrella", "u")]);

    let kept = store.apply(&second, Absent::Keep).await.unwrap();
    assert_eq!(kept.change, Some(2));
    assert_eq!(kept.added, ids(&["umbrella"]));
    assert_eq!(kept.changed, ids(&["globex"]));
    assert_eq!((kept.removed, kept.unchanged), (Vec::new(), 1));
    let news = store.news(Some(1)).await.unwrap().unwrap();
    let rows = [row("globex", "other"), row("umbrella", "u")];
    assert_eq!(
        (news.number, news.whole, news.tenants),
        (2, false, rows.into())
    );

    let pruned = store.apply(&second, Absent::Remove).await.unwrap();
    assert_eq!(pruned.removed, ids(&["initech"]));
    let news = store.news(Some(2)).await.unwrap().unwrap();
    let removed = Row {
        id: "initech".into(),
        content: Content::Removed,
        standing: Standing::Active,
        purged: 0,
    };
    assert_eq!(news.tenants, [removed]);
    // It can come back.
    let back = store.apply(&first, Absent::Keep).await.unwrap();
    assert_eq!(back.added, ids(&["initech"]));
}

#[tokio::test]
async fn a_store_that_was_restored_is_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    store
        .apply(&documents([("acme", "a")]), Absent::Keep)
        .await
        .unwrap();
    let news = store.news(Some(7)).await.unwrap().unwrap();
    assert_eq!((news.number, news.whole, news.tenants.len()), (1, true, 1));
}

#[tokio::test]
async fn damaged_rows_are_told_apart_from_sound_ones() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let file = documents([("acme", "a"), ("globex", "g"), ("initech", "i")]);
    store.apply(&file, Absent::Keep).await.unwrap();
    meddle(
        &folder,
        "UPDATE tenants SET document = x'00ff' WHERE id = 'acme';
         UPDATE tenants SET id = x'ff' WHERE id = 'globex';",
    )
    .await;
    let news = store.news(None).await.unwrap().unwrap();
    let content = |id: &str| {
        let row = news.tenants.iter().find(|row| row.id == id);
        row.map(|row| row.content.clone())
    };
    assert_eq!(content("acme"), Some(Content::Damaged));
    assert_eq!(content("initech"), Some(Content::Document("i".into())));
    assert_eq!(news.tenants.len(), 3);
    // The file repairs what it names.
    let repaired = store.apply(&file, Absent::Keep).await.unwrap();
    assert_eq!(repaired.changed, ids(&["acme"]));
}

#[tokio::test]
async fn a_change_that_fails_has_not_happened() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    store
        .apply(&documents([("acme", "a")]), Absent::Keep)
        .await
        .unwrap();
    meddle(
        &folder,
        "CREATE TRIGGER full BEFORE INSERT ON tenants WHEN NEW.id = 'globex'
         BEGIN SELECT RAISE(ABORT, 'no room'); END;",
    )
    .await;
    let file = documents([("acme", "other"), ("globex", "g")]);
    let refused = store.apply(&file, Absent::Keep).await.unwrap_err();
    assert!(refused.is_outage(), "{refused}");
    assert_eq!(store.news(Some(1)).await.unwrap(), None);
    meddle(&folder, "DROP TRIGGER full").await;
    let applied = store.apply(&file, Absent::Keep).await.unwrap();
    assert_eq!(applied.change, Some(2));
}

#[tokio::test]
async fn stores_that_begin_and_change_at_once_do_not_get_in_each_others_way() {
    let folder = tempfile::tempdir().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8_u8 {
        let store = open(&folder);
        tasks.spawn(async move {
            let id = format!("tenant-{n}");
            let file = documents([(id.as_str(), "x")]);
            store
                .apply(&file, Absent::Keep)
                .await
                .unwrap()
                .change
                .unwrap()
        });
    }
    let mut numbers = tasks.join_all().await;
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[tokio::test]
async fn a_new_file_that_somebody_else_begins_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let options = sqlite::options(&path).unwrap();
    // Before it has a write-ahead log.
    let mut other = sqlx::SqliteConnection::connect(path.to_str().unwrap())
        .await
        .unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let connecting = async move { Engine::Sqlite(options.into()).connect().await };
    let mut connecting = tokio::spawn(connecting);
    let waiting = timeout(Duration::from_millis(50), &mut connecting).await;
    assert!(waiting.is_err(), "it waits");
    other.execute("ROLLBACK").await.unwrap();
    connecting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_file_that_cannot_be_written_to_is_an_outage_for_writes_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let file = documents([("acme", "a")]);
    store.apply(&file, Absent::Keep).await.unwrap();
    let read_only = async |statement| {
        let mut lease = store.writing.take().await.unwrap();
        lease.run(statement, &[]).await.unwrap();
        lease.give_back();
    };
    read_only("PRAGMA query_only = ON").await;
    let refused = store.apply(&documents([]), Absent::Remove).await;
    assert!(refused.unwrap_err().is_outage());
    let news = store.news(None).await.unwrap().unwrap();
    assert_eq!((news.number, news.tenants.len()), (1, 1));
}

#[tokio::test]
async fn a_use_that_is_given_up_costs_no_connection_and_leaves_nothing_begun() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    store.prepare().await.unwrap();
    let mut lease = store.writing.take().await.unwrap();
    lease.run("CREATE TEMP TABLE mark (x)", &[]).await.unwrap();
    lease.give_back();
    for given_up in 0..50 {
        let mut lease = store.writing.take().await.unwrap();
        if given_up % 2 == 0 {
            lease.begin_writing().await.unwrap();
        }
        let statement = "UPDATE change SET n = n + 1 RETURNING n";
        let mut used = Box::pin(async move { lease.row(statement, &[]).await.map(drop) });
        // Polled once, if at all: it may have got anywhere.
        let _ = futures_util::poll!(&mut used);
    }
    let mut lease = store.writing.take().await.unwrap();
    lease.begin_writing().await.unwrap();
    let row = lease.row("SELECT count(*) FROM temp.mark", &[]).await;
    assert_eq!(row.unwrap().unwrap().number(0).unwrap(), 0, "the same one");
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(&folder).prepare().await.unwrap();
    meddle(&folder, "UPDATE schema_version SET version = 99").await;
    let refused = open(&folder).prepare().await.unwrap_err();
    assert!(
        matches!(refused, Error::Newer { found: 99, .. }),
        "{refused}"
    );
}

#[tokio::test]
async fn commits_are_synced_and_the_file_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    store.prepare().await.unwrap();
    let mut lease = store.writing.take().await.unwrap();
    let row = lease.row("PRAGMA synchronous", &[]).await.unwrap().unwrap();
    assert_eq!(row.number(0).unwrap(), 2, "FULL");
    let row = lease
        .row("PRAGMA journal_mode", &[])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.text(0).unwrap().as_deref(), Some("wal"));
    for name in ["store.db", "store.db-wal", "store.db-shm"] {
        let mode = std::fs::metadata(folder.path().join(name))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_file_or_folder_that_others_can_change_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let chmod = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    let refusal = || Store::new(&config(folder.path()), None).err();
    assert!(refusal().is_none());
    chmod(&folder.path().join("store.db"), 0o644);
    assert!(matches!(
        refusal(),
        Some(Error::ExposedFile { mode: 0o644, .. })
    ));
    chmod(&folder.path().join("store.db"), 0o600);
    chmod(folder.path(), 0o777);
    assert!(matches!(
        refusal(),
        Some(Error::ExposedFolder { mode: 0o777, .. })
    ));
    chmod(folder.path(), 0o1777);
    assert!(refusal().is_none());
}

#[tokio::test]
async fn a_tenant_stays_suspended_whatever_files_say() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let acme = "acme".parse().unwrap();
    let unknown = store.stand(&acme, Standing::Suspended).await;
    assert!(
        matches!(unknown, Err(Error::UnknownTenant(_))),
        "{unknown:?}"
    );
    let file = documents([("acme", "a")]);
    store.apply(&file, Absent::Keep).await.unwrap();
    let stand = async |standing| store.stand(&acme, standing).await.unwrap();
    let marked = |change, before| Marked { change, before };
    assert_eq!(stand(Standing::Active).await, marked(1, 1));
    assert_eq!(stand(Standing::Suspended).await, marked(2, 1));
    assert_eq!(stand(Standing::Suspended).await, marked(2, 2));
    let suspended = async |known| {
        let news = store.news(Some(known)).await.unwrap().unwrap();
        news.tenants
            .iter()
            .all(|row| row.standing == Standing::Suspended)
    };
    assert!(suspended(1).await);
    store.apply(&documents([]), Absent::Remove).await.unwrap();
    store
        .apply(&documents([("acme", "b")]), Absent::Keep)
        .await
        .unwrap();
    assert!(suspended(3).await);
    assert_eq!(stand(Standing::Active).await, marked(5, 4));
    assert!(!suspended(4).await);
}

#[tokio::test]
async fn each_purge_of_a_tenant_is_news() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let acme = "acme".parse().unwrap();
    let unknown = store.purge(&acme).await;
    assert!(
        matches!(unknown, Err(Error::UnknownTenant(_))),
        "{unknown:?}"
    );
    let file = documents([("acme", "a"), ("globex", "g")]);
    store.apply(&file, Absent::Keep).await.unwrap();
    for change in [2, 3] {
        let marked = store.purge(&acme).await.unwrap();
        assert_eq!((marked.change, marked.is_new()), (change, true));
        let news = store.news(Some(change - 1)).await.unwrap().unwrap();
        let purged = Row {
            purged: change,
            ..row("acme", "a")
        };
        assert_eq!(news.tenants, std::slice::from_ref(&purged));
        let now = store.tenant(&acme, change).await.unwrap();
        assert_eq!(now, Some(purged));
        assert_eq!(store.tenant(&acme, change - 1).await.unwrap(), None);
    }
}

#[tokio::test]
async fn tables_of_an_older_version_become_those_of_this_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    store
        .apply(&documents([("acme", "a")]), Absent::Keep)
        .await
        .unwrap();
    drop(store);
    meddle(
        &folder,
        "ALTER TABLE tenants DROP COLUMN suspended; ALTER TABLE tenants DROP COLUMN purged;
         DROP TABLE grants; DROP TABLE replicas;
         DROP TABLE kms_grants; DROP TABLE kms_grants_turn;
         DROP TABLE kms_grants_origin;
         UPDATE schema_version SET version = 1",
    )
    .await;
    let news = open(&folder).news(None).await.unwrap().unwrap();
    assert_eq!(news.tenants, [row("acme", "a")]);
}
