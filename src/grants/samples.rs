//! What the tests of this room are about: a key, its grants, and wishes to use it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::directory::Directory;
use crate::directory::Key;
use crate::grants::Constraint;
use crate::grants::Grant;
use crate::grants::Id;
use crate::grants::Kind;
use crate::grants::Operation;
use crate::grants::Operations;
use crate::grants::Terms;
use crate::grants::Wanted;
use crate::identity::Principal;
use crate::message::EncryptionContext;
use crate::name::KeyName;

pub(super) const WORKER: &str = "spiffe://prod.example/tenant/acme/sa/worker";
pub(super) const ADMINISTRATOR: &str = "spiffe://prod.example/tenant/acme/sa/admin";

pub(super) fn name(text: &str) -> KeyName {
    KeyName::parse(text, &"acme".parse().unwrap()).unwrap()
}

/// The key of this name; its tenant fixes the pair `env`.
pub(super) fn key(id: &str) -> Arc<Key> {
    let text = format!(
        "[[tenant]]\nid = \"acme\"\ncontext = {{ env = \"prod\" }}\n\
         [[tenant.key]]\nid = \"{id}\"\nkms = \"local:orders\"\n"
    );
    let directory = Directory::parse(&text, Path::new("tenants.toml")).unwrap();
    Arc::clone(directory.key(&name(&format!("keys/{id}"))).unwrap())
}

pub(super) fn principal(text: &str) -> Principal {
    text.parse().unwrap()
}

pub(super) fn constraint(kind: Kind, pairs: &[(&str, &str)]) -> Option<Constraint> {
    let pairs = EncryptionContext::new(pairs.iter().copied()).unwrap();
    Some(Constraint::new(kind, pairs).unwrap())
}

pub(super) fn terms(grantee: &str, operations: &[Operation]) -> Terms {
    Terms {
        grantee: grantee.parse().unwrap(),
        operations: Operations::new(operations.iter().copied()).unwrap(),
        constraint: None,
    }
}

pub(super) fn wanted(terms: Terms) -> Wanted {
    Wanted {
        key: name("keys/orders"),
        terms,
        retiring: None,
        name: None,
        lifetime: None,
        renewable: None,
        max_uses: None,
    }
}

/// The start of time for these tests.
pub(super) fn dawn() -> Timestamp {
    "2026-11-23T03:00:00Z".parse().unwrap()
}

pub(super) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A grant numbered `number`, made at [`dawn`] by the administrator.
pub(super) fn grant(number: u8, wanted: Wanted) -> Grant {
    resting(number, wanted, None)
}

/// As [`grant`], resting on `parent`.
pub(super) fn resting(number: u8, wanted: Wanted, parent: Option<&Grant>) -> Grant {
    let creator = principal(ADMINISTRATOR);
    let ceiling = Grant::LONGEST_LIFETIME;
    let grant = Grant::make(wanted, id(number), &creator, parent, ceiling, dawn());
    Grant {
        change: number.into(),
        ..grant.unwrap()
    }
}

pub(super) fn id(number: u8) -> Id {
    Id::from([number; 32])
}
