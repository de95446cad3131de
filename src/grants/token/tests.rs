use proptest::prelude::*;

use super::*;
use crate::grants::Operation;
use crate::grants::samples;
use crate::grants::samples::WORKER;
use crate::grants::samples::dawn;
use crate::grants::samples::grant;
use crate::grants::samples::resting;
use crate::grants::samples::terms;
use crate::grants::samples::wanted;

fn key(byte: u8) -> TokenKey {
    TokenKey::new(Secret::filled(|cell| cell.fill(byte)))
}

fn keys(current: u8, other: Option<u8>) -> TokenKeys {
    TokenKeys::new(key(current), other.map(key))
}

/// A token with something in each of its places.
fn claims() -> Claims {
    let operations = [Operation::Decrypt, Operation::CreateGrant];
    let constrained = Terms {
        constraint: samples::constraint(Kind::Subset, &[("order", "7"), ("page", "1")]),
        ..terms(WORKER, &operations)
    };
    let parent = grant(1, wanted(terms(WORKER, &operations)));
    Claims::new(&resting(2, wanted(constrained), Some(&parent)), 7)
}

#[test]
fn a_token_says_what_was_sealed() {
    let keys = keys(1, None);
    let token = keys.seal(&claims()).into_text();
    assert_eq!(keys.open(&token), Some(claims()));
}

#[test]
fn any_other_text_is_no_token() {
    let keys = keys(1, None);
    let token = keys.seal(&claims()).into_text();
    for place in 0..token.len() {
        let mut other = token.clone().into_bytes();
        other[place] = if other[place] == b'A' { b'B' } else { b'A' };
        let other = String::from_utf8(other).unwrap();
        assert_eq!(keys.open(&other), None, "{place}");
        assert_eq!(keys.open(&token[..place]), None, "{place}");
    }
    for bad in [
        format!("{token}A"),
        format!("{token}="),
        format!(" {token}"),
    ] {
        assert_eq!(keys.open(&bad), None);
    }
    assert_eq!(keys.open(&"A".repeat(MAX_TOKEN + 1)), None);
}

#[test]
fn while_keys_are_changed_tokens_of_both_are_believed() {
    let token = |keys: &TokenKeys| keys.seal(&claims()).into_text();
    let (old, first, second, new) = (
        keys(1, None),
        keys(1, Some(2)),
        keys(2, Some(1)),
        keys(2, None),
    );
    for (one, other, believed) in [
        (&old, &first, true),
        (&first, &old, true),
        (&first, &second, true),
        (&second, &first, true),
        (&second, &new, true),
        (&new, &second, true),
        (&old, &new, false),
        (&new, &old, false),
        (&second, &old, false),
    ] {
        assert_eq!(other.open(&token(one)).is_some(), believed);
    }
}

#[test]
fn the_longest_token_is_within_its_bound() {
    let label = "a".repeat(63);
    let value = "v".repeat(512 - 128);
    let names: Vec<String> = (0..8).map(|n| format!("{n}{}", "n".repeat(127))).collect();
    // With the lengths and the count, 4,096 bytes in all; one value less than the longest.
    let pairs: Vec<(&str, &str)> = names.iter().map(|name| (&**name, &*value)).collect();
    let pairs = EncryptionContext::new(pairs.into_iter().take(7)).unwrap();
    let spare = 4096 - pairs.serialized().len();
    assert!(spare < 520);
    let claims = Claims {
        key: KeyName {
            tenant: label.parse().unwrap(),
            key: label.parse().unwrap(),
        },
        terms: Terms {
            grantee: format!("spiffe://{}", "a/".repeat(1019) + "a")
                .parse()
                .unwrap(),
            constraint: Some(Constraint::new(Kind::Equals, pairs).unwrap()),
            ..claims().terms
        },
        ancestors: vec![
            Ancestor {
                id: samples::id(1),
                change: u64::MAX
            };
            4
        ]
        .into(),
        ..claims()
    };
    let keys = keys(1, None);
    let token = keys.seal(&claims).into_text();
    assert_eq!(token.len() + spare.div_ceil(3) * 4, MAX_TOKEN + 1);
    assert_eq!(keys.open(&token), Some(claims));
}

#[test]
fn what_the_mac_vouches_for_is_still_read_strictly() {
    let mut bytes = Vec::new();
    claims().write(&mut bytes);
    assert_eq!(Claims::read(&bytes), Some(claims()));
    for end in 0..bytes.len() {
        assert_eq!(Claims::read(&bytes[..end]), None, "{end}");
    }
    bytes.push(0);
    assert_eq!(Claims::read(&bytes), None);
}

proptest! {
    #[test]
    fn what_is_read_is_written_the_same(mut bytes: Vec<u8>, cut: usize, flip: (usize, u8)) {
        drop(Claims::read(&bytes));
        let mut good = Vec::new();
        claims().write(&mut good);
        let place = flip.0 % good.len();
        good[place] ^= flip.1;
        bytes.truncate(cut % 3);
        good.extend_from_slice(&bytes);
        if let Some(claims) = Claims::read(&good) {
            let mut again = Vec::new();
            claims.write(&mut again);
            prop_assert_eq!(again, good);
        }
    }

    #[test]
    fn reading_tokens_is_total(text: String) {
        prop_assert_eq!(keys(1, None).open(&text), None);
    }
}

#[test]
fn expiries_have_milliseconds() {
    let keys = keys(1, None);
    let expires = dawn() + std::time::Duration::from_millis(1);
    let claims = Claims {
        expires,
        ..claims()
    };
    let token = keys.seal(&claims).into_text();
    assert_eq!(keys.open(&token).unwrap().expires, expires);
}
