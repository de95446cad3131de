//! Tenants by rows of the store.

use super::*;

/// `directory` without its place in the line of others.
fn shown(directory: &Directory) -> Vec<String> {
    let mut homes: Vec<String> = directory
        .homes
        .values()
        .map(|home| format!("{home:?}"))
        .collect();
    homes.sort();
    homes
}

fn rows(documents: &Documents) -> Vec<Row> {
    let row = |(id, document): (&TenantId, &String)| Row {
        id: id.to_string(),
        content: Content::Document(document.clone()),
        standing: Standing::Active,
        purged: 0,
    };
    documents.iter().map(row).collect()
}

fn documents(text: &str) -> Documents {
    let read = file::parse_with_documents(text, Path::new("tenants.toml"));
    read.unwrap().1
}

#[test]
fn what_a_file_says_of_each_tenant_says_the_same() {
    let replicas = format!(
        "kms = [{{ key = \"{MULTI_REGION}\", replica_regions = [\"us-east-1\"], \
         additional_key = \"{ARN}\" }}, \"{NEWER}\"]"
    );
    for text in [
        FULL,
        &file("rate = 700\nmax_staleness = \"5s\"", &replicas),
        &file("", &kms("")),
        "",
    ] {
        let whole = parse(text).unwrap();
        let documents = documents(text);
        let (directory, unusable) = Directory::default().with(rows(&documents));
        assert!(unusable.is_empty(), "{unusable:?}");
        assert_eq!(shown(&directory), shown(&whole));
        // Written once more it is the same text: nothing changes by being brought in again.
        for (id, document) in &documents {
            assert_eq!(
                file::parse_with_documents(document, Path::new(""))
                    .unwrap()
                    .1[id],
                *document
            );
        }
    }
}

#[test]
fn the_way_a_tenant_is_written_does_not_count() {
    let plain = documents(&file(
        "",
        "kms = \"local:a\"\ncache = { max_age = \"60s\" }",
    ));
    let other = "# A comment.\n[[tenant]]\nweight=1\nid='acme'\nkey = [{ kms = ['local:a'], \
                 id = \"orders\", cache.max_age = \"1m\" }]";
    assert_eq!(documents(other), plain);
}

#[test]
fn a_row_that_is_unusable_denies_its_tenant_alone() {
    let (first, _) = Directory::default().with(rows(&documents(FULL)));
    let row = |id: &str, content| Row {
        id: id.to_owned(),
        content,
        standing: Standing::Active,
        purged: 0,
    };
    let document = |text: &str| Content::Document(text.to_owned());
    let good = file("", &kms(""));
    for (id, content) in [
        ("acme", Content::Damaged),
        ("acme", document("[[tenant]]\nid = \"acme\"\nnew = 1")),
        ("acme", document("[[tenant]]\nid = \"other\"")),
        (
            "acme",
            document(&format!("{good}\n[[tenant]]\nid = \"other\"")),
        ),
        ("acme", document("")),
        ("acme", document("\0")),
    ] {
        let (second, unusable) = first.with([row(id, content)]);
        assert_eq!(unusable.len(), 1);
        assert_eq!(unusable[0].0, "acme");
        assert!(second.key(&name("keys/orders")).is_none());
        assert!(second.tenant(&"acme".parse().unwrap()).is_none());
        assert!(second.tenant(&"empty".parse().unwrap()).is_some());
        // What is sound again serves again, and not with data keys from before.
        let (third, _) = second.with(rows(&documents(FULL)));
        let generation = |directory: &Directory| {
            let key = directory.key(&name("keys/orders"));
            key.unwrap().generation()
        };
        assert_ne!(generation(&third), generation(&first));
    }
    let (second, unusable) = first.with([row("Not an id", document(&good))]);
    assert_eq!((unusable.len(), shown(&second)), (1, shown(&first)));
}

#[test]
fn rows_change_what_they_are_about_alone() {
    let (first, _) = Directory::default().with(rows(&documents(FULL)));
    let removed = Row {
        id: "empty".into(),
        content: Content::Removed,
        standing: Standing::Active,
        purged: 0,
    };
    let (second, unusable) = first.with([removed]);
    assert!(unusable.is_empty());
    assert_eq!(second.tenants().len(), 1);
    assert_eq!(second.generation(), first.generation() + 1);
    let key = |directory: &Directory| Arc::clone(directory.key(&name("keys/orders")).unwrap());
    assert!(Arc::ptr_eq(&key(&first), &key(&second)));
}

#[test]
fn a_suspended_tenant_has_its_keys_and_none_of_its_data_keys() {
    let rows = |standing| {
        let mut rows = rows(&documents(FULL));
        for row in &mut rows {
            row.standing = standing;
        }
        rows
    };
    let look = |directory: &Directory| {
        let key = directory.key(&name("keys/orders")).unwrap();
        (key.tenant().standing(), key.generation())
    };
    let (first, _) = Directory::default().with(rows(Standing::Active));
    let (second, _) = first.with(rows(Standing::Suspended));
    let (third, _) = second.with(rows(Standing::Active));
    let [first, second, third] = [first, second, third].map(|one| look(&one));
    assert_eq!(
        (first.0, second.0, third.0),
        (Standing::Active, Standing::Suspended, Standing::Active)
    );
    assert!(first.1 < second.1 && second.1 < third.1);
}

#[test]
fn a_tenant_whose_data_keys_were_dropped_has_none_of_before() {
    let look = |directory: &Directory| {
        let key = directory.key(&name("keys/orders")).unwrap();
        (key.tenant().purged(), key.generation())
    };
    let after = |directory: &Directory, purged| {
        let rows = rows(&documents(FULL)).into_iter();
        directory.with(rows.map(|row| Row { purged, ..row })).0
    };
    let first = after(&Directory::default(), 3);
    let same = after(&first, 3);
    assert_eq!(look(&same), look(&first));
    let second = after(&same, 4);
    assert_eq!(look(&second).0, 4);
    assert!(look(&second).1 > look(&first).1);
}
