use proptest::prelude::*;

use super::*;
use crate::grants::Constraint;
use crate::grants::Kind;
use crate::grants::Operations;
use crate::grants::Use;
use crate::grants::samples;
use crate::grants::samples::ADMINISTRATOR;
use crate::grants::samples::WORKER;
use crate::grants::samples::dawn;
use crate::grants::samples::grant;
use crate::grants::samples::principal;
use crate::grants::samples::resting;
use crate::grants::samples::seconds;
use crate::grants::samples::terms;
use crate::grants::samples::wanted;
use crate::message::EncryptionContext;

fn usual() -> Wanted {
    wanted(terms(WORKER, &[Operation::Decrypt, Operation::CreateGrant]))
}

fn make(wanted: Wanted, parent: Option<&Grant>, ceiling: u64) -> Result<Grant, Unfit> {
    let creator = principal(ADMINISTRATOR);
    Grant::make(
        wanted,
        samples::id(9),
        &creator,
        parent,
        seconds(ceiling),
        dawn(),
    )
}

#[test]
fn a_grant_lives_for_fifteen_minutes_unless_it_is_said() {
    let life = |lifetime, renewable, ceiling| {
        let wanted = Wanted {
            lifetime,
            renewable,
            ..usual()
        };
        make(wanted, None, ceiling).map(|grant| grant.expires.duration_since(dawn()).as_secs())
    };
    assert_eq!(life(None, None, 43_200), Ok(900));
    assert_eq!(life(None, None, 600), Ok(600));
    assert_eq!(life(None, Some(seconds(300)), 43_200), Ok(300));
    assert_eq!(life(Some(seconds(1)), None, 600), Ok(1));
    assert_eq!(life(Some(seconds(600)), None, 600), Ok(600));
    let refused = |span, ceiling| {
        let (span, ceiling) = (Duration::from_millis(span), seconds(ceiling));
        Err(Unfit::Lifetime { span, ceiling })
    };
    assert_eq!(life(Some(seconds(601)), None, 600), refused(601_000, 600));
    let short = Duration::from_millis(999);
    assert_eq!(life(Some(short), None, 600), refused(999, 600));
    // No key's ceiling is above that of all.
    assert_eq!(life(Some(seconds(43_200)), None, 99_999), Ok(43_200));
    let over = life(Some(seconds(43_201)), None, 99_999);
    assert_eq!(over, refused(43_201_000, 43_200));
    let renewable = life(None, Some(seconds(601)), 600);
    assert_eq!(renewable, refused(601_000, 600));
    let backwards = life(Some(seconds(60)), Some(seconds(59)), 600);
    let (renewable, lifetime) = (seconds(59), seconds(60));
    let expected = Unfit::Renewable {
        renewable,
        lifetime,
    };
    assert_eq!(backwards, Err(expected));
}

#[test]
fn a_grant_is_over_from_its_expiry_on() {
    let grant = grant(1, usual());
    let last = dawn() + Duration::from_millis(899_999);
    assert_eq!(grant.check(last), Ok(()));
    assert_eq!(grant.check(dawn() + seconds(900)), Err(Ended::Expired));
    for ending in [Ending::Retire, Ending::Revoke, Ending::Spend] {
        let ended = Grant {
            ending: Some(ending),
            ..grant.clone()
        };
        assert_eq!(ended.check(dawn()), Err(Ended::Early(ending)));
    }
}

#[test]
fn only_its_grantee_and_its_creator_renew_a_grant_and_only_within_what_it_says() {
    let fixed = grant(1, usual());
    let renewable = grant(
        1,
        Wanted {
            lifetime: Some(seconds(60)),
            renewable: Some(seconds(150)),
            ..usual()
        },
    );
    let at = |secs| dawn() + seconds(secs);
    let (worker, creator) = (principal(WORKER), principal(ADMINISTRATOR));
    let other = principal("spiffe://prod.example/tenant/acme/sa/other");
    assert_eq!(fixed.renewed(&worker, None, at(10)), None);
    assert_eq!(renewable.renewed(&other, None, at(10)), None);
    for who in [&worker, &creator] {
        assert_eq!(renewable.renewed(who, None, at(50)), Some(at(110)));
        // Never shorter, never past the end.
        let short = renewable.renewed(who, Some(seconds(5)), at(50));
        assert_eq!(short, Some(at(60)));
        assert_eq!(renewable.renewed(who, None, at(100)), Some(at(150)));
        let long = renewable.renewed(who, Some(seconds(9_999)), at(10));
        assert_eq!(long, Some(at(150)));
    }
}

#[test]
fn the_retiring_principal_and_a_grantee_that_has_the_operation_retire_a_grant() {
    let retirer = "spiffe://prod.example/tenant/acme/sa/retirer";
    let wanted = Wanted {
        retiring: Some(principal(retirer)),
        ..wanted(terms(WORKER, &[Operation::Decrypt]))
    };
    let plain = grant(1, wanted.clone());
    let retirable = grant(
        1,
        Wanted {
            terms: terms(WORKER, &[Operation::Decrypt, Operation::RetireGrant]),
            ..wanted
        },
    );
    for (who, of_plain, of_retirable) in [
        (retirer, true, true),
        (WORKER, false, true),
        (ADMINISTRATOR, false, false),
    ] {
        assert_eq!(plain.is_retirable_by(&principal(who)), of_plain, "{who}");
        let may = retirable.is_retirable_by(&principal(who));
        assert_eq!(may, of_retirable, "{who}");
    }
}

#[test]
fn a_grantee_hands_on_only_what_it_has_and_no_longer() {
    let parent = Grant {
        expires: dawn() + seconds(600),
        ..grant(
            1,
            Wanted {
                renewable: Some(seconds(1200)),
                ..wanted(Terms {
                    constraint: samples::constraint(Kind::Subset, &[("order", "7")]),
                    ..terms(
                        WORKER,
                        &[
                            Operation::Decrypt,
                            Operation::Encrypt,
                            Operation::CreateGrant,
                        ],
                    )
                })
            },
        )
    };
    let strict = || samples::constraint(Kind::Equals, &[("order", "7"), ("page", "1")]);
    let child = |operations: &[Operation], constraint, lifetime, renewable| {
        let wanted = Wanted {
            lifetime,
            renewable,
            ..wanted(Terms {
                constraint,
                ..terms("dns:other.example", operations)
            })
        };
        make(wanted, Some(&parent), 43_200)
    };
    let good = child(&[Operation::Decrypt], strict(), None, None).unwrap();
    assert_eq!(good.expires, parent.expires, "the usual life is cut");
    assert_eq!(good.ancestors.len(), 1);
    let renewable = child(
        &[Operation::Decrypt],
        strict(),
        Some(seconds(600)),
        Some(seconds(1200)),
    );
    assert!(renewable.is_ok());
    let excess = |excess: Excess| Err(Unfit::Excess(excess));
    for (operations, constraint, lifetime, renewable, expected) in [
        (
            Operation::DescribeKey,
            strict(),
            None,
            None,
            Excess::Operations,
        ),
        (Operation::Decrypt, None, None, None, Excess::Constraint),
        (
            Operation::Decrypt,
            samples::constraint(Kind::Subset, &[("page", "1")]),
            None,
            None,
            Excess::Constraint,
        ),
        (
            Operation::Decrypt,
            strict(),
            Some(seconds(601)),
            None,
            Excess::Lifetime,
        ),
        (
            Operation::Decrypt,
            strict(),
            Some(seconds(600)),
            Some(seconds(1201)),
            Excess::Lifetime,
        ),
    ] {
        let refused = child(&[operations], constraint, lifetime, renewable);
        assert_eq!(refused, excess(expected), "{operations:?}");
    }
    let barren = grant(1, wanted(terms(WORKER, &[Operation::Decrypt])));
    let refused = make(
        wanted(terms("dns:a.example", &[Operation::Decrypt])),
        Some(&barren),
        43_200,
    );
    assert_eq!(refused, excess(Excess::Delegation));
}

#[test]
fn grants_rest_on_few_others_and_counted_ones_carry_none() {
    let mut last = grant(1, usual());
    for number in 2..=5 {
        last = resting(number, usual(), Some(&last));
    }
    let ids: Vec<Id> = last.ancestors.iter().map(|one| one.id).collect();
    assert_eq!(ids, [1, 2, 3, 4].map(samples::id));
    assert_eq!(make(usual(), Some(&last), 43_200), Err(Unfit::Depth));
    let counted = Wanted {
        max_uses: NonZeroU32::new(3),
        ..usual()
    };
    assert_eq!(make(counted, None, 43_200), Err(Unfit::Counted));
}

#[test]
fn names_and_ids_are_strict() {
    let longest = "a".repeat(256);
    for good in ["a", "job:7/step_1-x", "Z9", longest.as_str()] {
        assert!(good.parse::<Name>().is_ok(), "{good}");
    }
    let long = "a".repeat(257);
    for bad in ["", "a b", "a.b", "ä", "a\n", long.as_str()] {
        assert_eq!(bad.parse::<Name>(), Err(MalformedName), "{bad}");
    }
    let id = Id::random().unwrap();
    assert_eq!(id.to_string().parse::<Id>().unwrap(), id);
    assert_ne!(id, Id::random().unwrap());
    let text = "0a".repeat(32);
    assert!(text.parse::<Id>().is_ok());
    for bad in ["", &text[1..], &text.to_uppercase(), &format!("{text}00")] {
        assert_eq!(bad.parse::<Id>(), Err(MalformedId), "{bad}");
    }
}

fn any_terms() -> impl Strategy<Value = Terms> {
    let operations = (1u16..512).prop_map(Operations::from_bits);
    let pair = (
        prop::sample::select(vec!["a", "b", "A"]),
        prop::sample::select(vec!["1", "2"]),
    );
    let constraint = (prop::bool::ANY, prop::collection::vec(pair, 0..3));
    (operations, constraint).prop_map(|(operations, (equals, pairs))| {
        let kind = if equals { Kind::Equals } else { Kind::Subset };
        let pairs = EncryptionContext::new(pairs).unwrap_or_default();
        Terms {
            grantee: WORKER.parse().unwrap(),
            operations: operations.unwrap(),
            constraint: Constraint::new(kind, pairs).ok(),
        }
    })
}

proptest! {
    // Some parents are none.
    #![proptest_config(ProptestConfig {
        max_global_rejects: u32::MAX,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_delegated_grant_never_allows_what_its_parent_does_not(
        parent in any_terms(),
        child in any_terms(),
        lives in (1u64..100, prop::option::of(1u64..100)),
        child_lives in (prop::option::of(1u64..100), prop::option::of(1u64..100)),
        operation in prop::sample::select(Operation::ALL.to_vec()),
        context in prop::collection::btree_map(
            prop::sample::select(vec!["a", "b"]),
            prop::sample::select(vec!["1", "2"]),
            0..3,
        ),
    ) {
        let parent = Wanted {
            lifetime: Some(seconds(lives.0)),
            renewable: lives.1.map(seconds),
            ..wanted(parent)
        };
        let child = Wanted {
            lifetime: child_lives.0.map(seconds),
            renewable: child_lives.1.map(seconds),
            ..wanted(child)
        };
        prop_assume!(make(parent.clone(), None, 43_200).is_ok());
        let parent = make(parent, None, 43_200).unwrap();
        if let Ok(child) = make(child, Some(&parent), 43_200) {
            let key = samples::key("orders");
            let worker = principal(WORKER);
            let wish = Use::new(&key, &worker, operation, context.into_iter());
            let (inner, outer) = (&child.wanted.terms, &parent.wanted.terms);
            prop_assert!(!inner.allow(&wish) || outer.allow(&wish));
            prop_assert!(child.expires <= parent.expires);
            prop_assert!(child.last_expiry() <= parent.last_expiry());
        }
    }
}
