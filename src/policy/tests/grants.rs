//! What grants add to a key's policy.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::clock::Clock as _;
use crate::clock::Manual;
use crate::crypto::Secret;
use crate::grants::Book;
use crate::grants::Constraint;
use crate::grants::Contact;
use crate::grants::Grant;
use crate::grants::Id;
use crate::grants::Kind;
use crate::grants::Operations;
use crate::grants::Terms;
use crate::grants::TokenKey;
use crate::grants::TokenKeys;
use crate::grants::Wanted;

/// A replica that knows one grant, for Decrypt and DescribeKey.
fn book(key: &str, who: (u32, u32), constraint: &[(&str, &str)]) -> (Book, Arc<Manual>) {
    let clock = Arc::new(Manual::new(Timestamp::UNIX_EPOCH));
    let key_of_tokens = TokenKey::new(Secret::filled(|cell| cell.fill(1)));
    let book = Book::new(TokenKeys::new(key_of_tokens, None), clock.clone());
    let operations = [Operation::Decrypt, Operation::DescribeKey];
    let constraint = Constraint::new(Kind::Subset, header(constraint)).ok();
    let wanted = Wanted {
        key: name(key),
        terms: Terms {
            grantee: format!("unix:uid={}", who.0).parse().unwrap(),
            operations: Operations::new(operations).unwrap(),
            constraint,
        },
        retiring: None,
        name: None,
        lifetime: None,
        renewable: None,
        max_uses: None,
    };
    let creator = "unix:uid=10,gid=1".parse().unwrap();
    let ceiling = Grant::LONGEST_LIFETIME;
    let id = Id::from([7; 32]);
    let grant = Grant::make(wanted, id, &creator, None, ceiling, clock.wall());
    book.apply(&grant.unwrap());
    book.heard(Contact {
        asked: clock.now(),
        store: clock.wall(),
        applied: 1,
    });
    (book, clock)
}

fn open_with(
    book: &Book,
    who: (u32, u32),
    action: Action,
    key: &str,
    own: &[(&str, &str)],
) -> Result<&'static str, Refused> {
    let policy = policy();
    let caller = caller(&policy, who);
    let name = name(key);
    let fixed = [
        (context::TENANT, name.tenant.as_str()),
        (context::KEY, name.key.as_str()),
        ("env", "prod"),
    ];
    let message = header(&[&fixed, own].concat());
    let backing = Backing::new(book, &[]);
    outcome(policy.authorize_open(&caller, action, Some(&name), &message, &pairs(own), backing))
}

#[test]
fn a_grant_allows_what_the_key_policy_does_not_and_nothing_else() {
    for who in [STRANGER, EXTERNAL, SEALER] {
        let (book, _) = book("keys/orders", (who.0, 0), &[]);
        let by_grant = if who == EXTERNAL {
            "external_users"
        } else {
            "grant"
        };
        let opened = open_with(&book, who, Action::Decrypt, "tenants/acme/keys/orders", &[]);
        assert_eq!(opened, Ok(by_grant), "{who:?}");
        let other = open_with(&book, who, Action::Decrypt, "tenants/acme/keys/shared", &[]);
        assert_eq!(other, NO_STATEMENT, "{who:?}");
    }
    let (book, _) = book("keys/orders", STRANGER, &[]);
    for (who, action) in [(STRANGER, Action::ReEncryptFrom), (SEALER, Action::Decrypt)] {
        let refused = open_with(&book, who, action, "keys/orders", &[]);
        assert_eq!(refused, NO_STATEMENT, "{who:?} {action:?}");
    }
    // What seals does not open, whoever asks.
    let sealed = open_with(&book, STRANGER, Action::Encrypt, "keys/orders", &[]);
    assert_eq!(sealed, NO_STATEMENT);
}

#[test]
fn a_grants_constraint_is_about_what_the_request_and_its_message_say() {
    let (book, _) = book("keys/orders", STRANGER, &[("order", "7")]);
    let open =
        |own: &[(&str, &str)]| open_with(&book, STRANGER, Action::Decrypt, "keys/orders", own);
    assert_eq!(open(&[("order", "7"), ("page", "1")]), Ok("grant"));
    for other in [&[("order", "8")][..], &[]] {
        assert_eq!(open(other), Err(Refused::Denied(Denied::Condition)));
    }
}

#[test]
fn a_granted_key_can_be_seen_if_the_grant_says_so() {
    let (book, _) = book("keys/orders", STRANGER, &[("order", "7")]);
    let policy = policy();
    let describe = |who, key| {
        let caller = caller(&policy, who);
        let backing = Backing::new(&book, &[]);
        let described = policy.authorize_describe(&caller, &name(key), backing);
        described.map(|(_, rule)| rule.label())
    };
    assert_eq!(describe(STRANGER, "keys/orders"), Ok("grant"));
    assert_eq!(describe(USER, "keys/orders"), Ok("users"));
    let denied = Err(Refused::Denied(Denied::NoStatement));
    assert_eq!(describe(STRANGER, "keys/shared"), denied);
}

#[test]
fn out_of_touch_what_a_grant_allowed_is_refused_and_key_policies_go_on() {
    let (book, clock) = book("keys/orders", STRANGER, &[]);
    clock.advance(Duration::from_secs(5));
    let open = |who| open_with(&book, who, Action::Decrypt, "keys/orders", &[]);
    assert_eq!(open(STRANGER), Err(Refused::OutOfTouch));
    assert_eq!(open(USER), Ok("users"));
    assert_eq!(
        open(SEALER),
        NO_STATEMENT,
        "who has no grant learns nothing"
    );
}

#[test]
fn before_the_first_word_of_the_store_a_key_that_is_none_looks_like_any_other() {
    let clock = Arc::new(Manual::new(Timestamp::UNIX_EPOCH));
    let key = TokenKey::new(Secret::filled(|cell| cell.fill(1)));
    let book = Book::new(TokenKeys::new(key, None), clock);
    for key in ["keys/orders", "keys/none", "tenants/none/keys/orders"] {
        let refused = open_with(&book, STRANGER, Action::Decrypt, key, &[]);
        assert_eq!(refused, Err(Refused::OutOfTouch), "{key}");
        let policy = policy();
        let backing = Backing::new(&book, &[]);
        let described = policy.authorize_describe(&caller(&policy, STRANGER), &name(key), backing);
        assert_eq!(described.err(), Some(Refused::OutOfTouch), "{key}");
    }
}
