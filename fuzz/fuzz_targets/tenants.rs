//! Reads a tenants file, and what is stored of it.
#![no_main]

use std::path::Path;

use keybroker::directory::Content;
use keybroker::directory::Directory;
use keybroker::directory::Row;
use keybroker::directory::Standing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (directory, documents) =
        match Directory::parse_with_documents(text, Path::new("tenants.toml")) {
            Ok(read) => read,
            Err(error) => return drop(error.to_string()),
        };
    let rows = documents.into_iter().map(|(id, document)| Row {
        id: id.to_string(),
        content: Content::Document(document),
        standing: Standing::Active,
        purged: 0,
    });
    let (stored, unusable) = Directory::default().with(rows);
    assert!(unusable.is_empty(), "{unusable:?}");
    for tenant in directory.tenants() {
        let (read, stored) = (directory.keys(tenant.id()), stored.keys(tenant.id()));
        assert_eq!(format!("{read:?}"), format!("{stored:?}"));
    }
});
