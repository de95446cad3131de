use tempfile::TempDir;

use super::*;
use crate::grants::Constraint;
use crate::grants::Kind;
use crate::grants::Operation;
use crate::grants::Operations;
use crate::grants::Terms;
use crate::message::EncryptionContext;
use crate::store::Config;

const WORKER: &str = "spiffe://prod.example/tenant/acme/sa/worker";
const ADMIN: &str = "spiffe://prod.example/tenant/acme/sa/admin";
const HOUR: Duration = Duration::from_secs(3600);

fn open(folder: &TempDir) -> Store {
    let config = Config {
        file: folder.path().join("store.db"),
        ..Config::default()
    };
    Store::new(&config, None).unwrap()
}

fn key(id: &str) -> KeyName {
    KeyName::parse(&format!("keys/{id}"), &"acme".parse().unwrap()).unwrap()
}

fn principal(text: &str) -> Principal {
    text.parse().unwrap()
}

/// Something in each of its places.
fn wanted() -> Wanted {
    let pairs = EncryptionContext::new([("order", "7"), ("page", "\"1\"")]).unwrap();
    Wanted {
        key: key("orders"),
        terms: Terms {
            grantee: WORKER.parse().unwrap(),
            operations: Operations::new([Operation::Decrypt, Operation::CreateGrant]).unwrap(),
            constraint: Constraint::new(Kind::Subset, pairs).ok(),
        },
        retiring: Some(principal("dns:retirer.example")),
        name: Some("job/7".parse().unwrap()),
        lifetime: Some(Duration::from_secs(60)),
        renewable: Some(HOUR),
        max_uses: None,
    }
}

async fn create(store: &Store, wanted: &Wanted, right: &Right) -> Result<Changed, Unmade> {
    let id = Id::random().unwrap();
    let creator = match right {
        Right::Administrator => principal(ADMIN),
        Right::Grants(_) => principal(WORKER),
    };
    let made = store.create_grant(wanted, id, &creator, right, HOUR).await;
    made.unwrap()
}

async fn news(store: &Store, known: Option<u64>) -> (u64, bool, Vec<Grant>) {
    let (mut whole, mut grants) = (false, Vec::new());
    let head = store.grant_news(known, |told| match told {
        Told::Whole => whole = true,
        Told::Grant(grant) => grants.push(*grant),
        Told::Damaged(_) => {}
    });
    let head = head.await.unwrap();
    (head.number, whole, grants)
}

/// Runs `statement` in the file, as nobody of ours would.
async fn meddle(store: &Store, statement: &'static str) {
    let mut lease = store.writing.take().await.unwrap();
    lease.run_all(statement).await.unwrap();
    lease.give_back();
}

#[tokio::test]
async fn a_grant_is_read_as_it_was_made_by_every_way() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let made = create(&store, &wanted(), &Right::Administrator)
        .await
        .unwrap();
    let child = Wanted {
        name: None,
        lifetime: None,
        renewable: None,
        retiring: None,
        ..wanted()
    };
    let right = Right::Grants(vec![Id::from([9; 32]), made.grant.id]);
    let child = create(&store, &child, &right).await.unwrap();
    assert_eq!(child.grant.ancestors[0].id, made.grant.id);
    assert_eq!(child.grant.ancestors[0].change, made.change);
    for one in [&made, &child] {
        // Another process reads the same.
        let store = open(&folder);
        let grant = store.grant(&key("orders"), &one.grant.id).await.unwrap();
        assert_eq!(grant.as_ref(), Some(&one.grant));
        let elsewhere = store.grant(&key("other"), &one.grant.id).await.unwrap();
        assert_eq!(elsewhere, None);
        let globex = KeyName::parse("tenants/globex/keys/orders", &"acme".parse().unwrap());
        let foreign = store.grant(&globex.unwrap(), &one.grant.id).await.unwrap();
        assert_eq!(foreign, None);
    }
    let (number, whole, grants) = news(&store, None).await;
    assert_eq!((number, whole), (2, true));
    assert_eq!(
        grants,
        [made.grant.clone(), child.grant.clone()],
        "parents come first"
    );
    assert_eq!(news(&store, Some(1)).await, (2, false, vec![child.grant]));
    assert_eq!(news(&store, Some(2)).await, (2, false, vec![]));
    // A store that was restored from a copy has lost changes.
    assert!(news(&store, Some(3)).await.1);
}

#[tokio::test]
async fn news_are_whole_however_many_there_are_and_parents_come_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let parent = create(&store, &wanted(), &Right::Administrator)
        .await
        .unwrap()
        .grant;
    let wish = Wanted {
        name: None,
        lifetime: None,
        renewable: None,
        ..wanted()
    };
    let right = Right::Grants(vec![parent.id]);
    let child = create(&store, &wish, &right).await.unwrap().grant;
    meddle(
        &store,
        "WITH RECURSIVE numbers(i) AS (SELECT 3 UNION ALL SELECT i + 1 FROM numbers WHERE i < 45000)
         INSERT INTO grants SELECT lower(hex(randomblob(32))), tenant, key_id, grantee, retiring,
             operations, constrained, pairs, '', lifetime, renewable, max_uses, uses, creator,
             created, expires, i, ancestors, ending, i
         FROM grants, numbers WHERE change = 1;
         UPDATE change SET n = 45000",
    )
    .await;
    let orders = key("orders");
    let admin = principal(ADMIN);
    let renewed = store.renew_grant(&orders, &parent.id, &admin, Some(HOUR / 2));
    renewed.await.unwrap().unwrap();
    for (known, count) in [(None, 45_000), (Some(1), 45_000), (Some(44_000), 1_001)] {
        let (number, _, grants) = news(&store, known).await;
        assert_eq!((number, grants.len()), (45_001, count));
        let place = |id| grants.iter().position(|grant| grant.id == id);
        let places = (place(parent.id).unwrap(), place(child.id));
        assert!(places.1.is_none_or(|child| places.0 < child), "{places:?}");
        let ids: std::collections::HashSet<Id> = grants.iter().map(|grant| grant.id).collect();
        assert_eq!(ids.len(), count, "each once");
    }
}

#[tokio::test]
async fn a_name_is_one_living_grant_of_its_creator_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let right = Right::Administrator;
    let first = create(&store, &wanted(), &right).await.unwrap();
    let again = create(&store, &wanted(), &right).await.unwrap();
    assert_eq!(
        (again.grant.id, again.change),
        (first.grant.id, first.change)
    );
    assert_eq!(news(&store, None).await.0, 1, "nothing has changed");
    let other = Wanted {
        lifetime: None,
        ..wanted()
    };
    let taken = create(&store, &other, &right).await.unwrap_err();
    assert_eq!(taken, Unmade::NameTaken);
    let elsewhere = Wanted {
        key: key("other"),
        ..other.clone()
    };
    assert!(create(&store, &elsewhere, &right).await.is_ok());
    let id = first.grant.id;
    store
        .end_grant(&key("orders"), &id, Ending::Retire)
        .await
        .unwrap();
    assert_ne!(create(&store, &other, &right).await.unwrap().grant.id, id);
}

#[tokio::test]
async fn what_is_ended_stays_ended_and_takes_with_it_what_rests_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let orders = key("orders");
    let parent = create(&store, &wanted(), &Right::Administrator)
        .await
        .unwrap()
        .grant;
    let right = Right::Grants(vec![parent.id]);
    let wish = Wanted {
        name: None,
        lifetime: None,
        renewable: None,
        ..wanted()
    };
    let child = create(&store, &wish, &right).await.unwrap().grant;
    for id in [&parent.id, &child.id] {
        assert!(store.confirm_grant(&orders, id, 1).await.unwrap());
        assert!(!store.confirm_grant(&key("other"), id, 1).await.unwrap());
    }
    store
        .end_grant(&orders, &parent.id, Ending::Revoke)
        .await
        .unwrap();
    // Again, and by another: it is what it was.
    store
        .end_grant(&orders, &parent.id, Ending::Retire)
        .await
        .unwrap();
    let ended = store.grant(&orders, &parent.id).await.unwrap().unwrap();
    assert_eq!(ended.ending, Some(Ending::Revoke));
    for id in [&parent.id, &child.id] {
        assert!(!store.confirm_grant(&orders, id, 1).await.unwrap());
        let renewed = store
            .renew_grant(&orders, id, &principal(WORKER), None)
            .await;
        assert_eq!(renewed.unwrap().unwrap_err(), Unrenewed::Denied);
    }
    let denied = create(&store, &wish, &right).await.unwrap_err();
    assert_eq!(denied, Unmade::Denied);
    let (number, _, told) = news(&store, Some(2)).await;
    assert_eq!((number, told), (3, vec![ended]));
}

#[tokio::test]
async fn a_grant_is_renewed_by_its_own_for_no_longer_than_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let orders = key("orders");
    let grant = create(&store, &wanted(), &Right::Administrator)
        .await
        .unwrap()
        .grant;
    let renew = async |who: &str, lifetime: u64| {
        let lifetime = Some(Duration::from_secs(lifetime));
        let who = principal(who);
        let renewed = store.renew_grant(&orders, &grant.id, &who, lifetime);
        renewed.await.unwrap().map(|changed| changed.grant.expires)
    };
    assert_eq!(
        renew("dns:other.example", 600).await,
        Err(Unrenewed::Denied)
    );
    let later = renew(WORKER, 600).await.unwrap();
    assert!(later > grant.expires);
    assert_eq!(renew(ADMIN, 1).await, Ok(later), "never shorter");
    let last = grant.created.saturating_add(HOUR).unwrap();
    assert_eq!(renew(ADMIN, 999_999).await, Ok(last));
    assert_eq!(news(&store, Some(1)).await.2[0].expires, last);
}

#[tokio::test]
async fn uses_are_counted_and_never_above_their_number() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (open(&folder), open(&folder));
    let counted = Wanted {
        terms: Terms {
            operations: Operations::new([Operation::Decrypt]).unwrap(),
            ..wanted().terms
        },
        max_uses: std::num::NonZeroU32::new(10),
        ..wanted()
    };
    let grant = create(&one, &counted, &Right::Administrator)
        .await
        .unwrap()
        .grant;
    let orders = key("orders");
    assert!(!one.confirm_grant(&orders, &grant.id, 11).await.unwrap());
    assert!(one.confirm_grant(&orders, &grant.id, 3).await.unwrap());
    let uses = (0..20).map(|n| {
        let store = if n % 2 == 0 { &one } else { &other };
        store.confirm_grant(&orders, &grant.id, 1)
    });
    let taken = futures_util::future::join_all(uses).await;
    assert_eq!(
        taken
            .into_iter()
            .filter(|taken| *taken.as_ref().unwrap())
            .count(),
        7
    );
}

#[tokio::test]
async fn a_damaged_row_is_no_grant_and_harms_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let orders = key("orders");
    for damage in [
        "UPDATE grants SET grantee = 'nobody'",
        "UPDATE grants SET operations = 0",
        "UPDATE grants SET operations = 70000",
        "UPDATE grants SET constrained = 3",
        "UPDATE grants SET pairs = '{'",
        "UPDATE grants SET pairs = '{}'",
        "UPDATE grants SET tenant = ''",
        "UPDATE grants SET name = 'a b'",
        "UPDATE grants SET expires = -1",
        "UPDATE grants SET expires = 'soon'",
        "UPDATE grants SET ancestors = 'x'",
        "UPDATE grants SET ending = 9",
        "UPDATE grants SET creator = x'ff'",
    ] {
        let store = open(&folder);
        let bad = create(&store, &wanted(), &Right::Administrator)
            .await
            .unwrap()
            .grant;
        meddle(&store, damage).await;
        let wish = Wanted {
            name: None,
            ..wanted()
        };
        let good = create(&store, &wish, &Right::Administrator)
            .await
            .unwrap()
            .grant;
        assert_eq!(
            store.grant(&orders, &bad.id).await.unwrap(),
            None,
            "{damage}"
        );
        assert!(!store.confirm_grant(&orders, &bad.id, 1).await.unwrap());
        assert_eq!(news(&store, Some(0)).await.2, [good], "{damage}");
        meddle(&store, "DELETE FROM grants").await;
    }
}

#[tokio::test]
async fn what_is_over_for_a_day_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let grant = create(&store, &wanted(), &Right::Administrator)
        .await
        .unwrap()
        .grant;
    store.forget_grants().await.unwrap();
    assert!(
        store
            .grant(&key("orders"), &grant.id)
            .await
            .unwrap()
            .is_some()
    );
    meddle(&store, "UPDATE grants SET expires = expires - 86500000").await;
    store.forget_grants().await.unwrap();
    assert_eq!(store.grant(&key("orders"), &grant.id).await.unwrap(), None);
}
