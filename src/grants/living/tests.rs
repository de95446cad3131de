use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::directory::Key;
use crate::grants::Constraint;
use crate::grants::Ending;
use crate::grants::Kind;
use crate::grants::Operation;
use crate::grants::Terms;
use crate::grants::Wanted;
use crate::grants::samples;
use crate::grants::samples::WORKER;
use crate::grants::samples::constraint;
use crate::grants::samples::dawn;
use crate::grants::samples::grant;
use crate::grants::samples::key;
use crate::grants::samples::principal;
use crate::grants::samples::resting;
use crate::grants::samples::seconds;
use crate::grants::samples::terms;
use crate::grants::samples::wanted;
use crate::message::EncryptionContext;

fn found(living: &Living, key: &Key, operation: Operation, pairs: &[(&str, &str)]) -> Option<Id> {
    let worker = principal(WORKER);
    let wish = Use::new(key, &worker, operation, pairs.iter().copied());
    living.find(&wish, dawn()).map(|live| live.id())
}

#[test]
fn a_grant_is_found_by_what_it_allows_and_nothing_else() {
    let orders = key("orders");
    for (constraint, context, holds) in [
        (None, vec![], true),
        (None, vec![("order", "7")], true),
        (
            constraint(Kind::Equals, &[("order", "7")]),
            vec![("order", "7")],
            true,
        ),
        // The key's own pairs are in no constraint.
        (
            constraint(Kind::Equals, &[("order", "7")]),
            vec![("env", "prod"), ("order", "7"), ("keybroker:key", "orders")],
            true,
        ),
        (
            constraint(Kind::Equals, &[("order", "7")]),
            vec![("order", "7"), ("page", "1")],
            false,
        ),
        (
            constraint(Kind::Subset, &[("order", "7")]),
            vec![("page", "1"), ("order", "7")],
            true,
        ),
        (
            constraint(Kind::Subset, &[("order", "7")]),
            vec![("Order", "7")],
            false,
        ),
        (constraint(Kind::Subset, &[("order", "7")]), vec![], false),
    ] {
        let operations = [Operation::Decrypt, Operation::DescribeKey];
        let terms = Terms {
            constraint: constraint.clone(),
            ..terms(WORKER, &operations)
        };
        let living = Living::new();
        living.insert(&grant(1, wanted(terms)));
        let expected = holds.then(|| samples::id(1));
        let hit = found(&living, &orders, Operation::Decrypt, &context);
        assert_eq!(hit, expected, "{constraint:?} {context:?}");
        assert_eq!(found(&living, &orders, Operation::Encrypt, &context), None);
        assert_eq!(
            found(&living, &key("other"), Operation::Decrypt, &context),
            None
        );
        // No constraint binds the sight of the key.
        let sight = found(&living, &orders, Operation::DescribeKey, &[]);
        assert_eq!(sight, Some(samples::id(1)));
        let worker = principal(WORKER);
        let somewhere = Use::somewhere(&orders, &worker, Operation::Decrypt);
        assert!(living.find(&somewhere, dawn()).is_some(), "{constraint:?}");
    }
}

#[test]
fn an_uncounted_grant_is_found_before_a_counted_one() {
    let living = Living::new();
    let counted = Wanted {
        max_uses: NonZeroU32::new(1),
        ..wanted(terms(WORKER, &[Operation::Decrypt]))
    };
    living.insert(&grant(1, counted));
    let orders = key("orders");
    let hit = || found(&living, &orders, Operation::Decrypt, &[]);
    assert_eq!(hit(), Some(samples::id(1)));
    living.insert(&grant(2, wanted(terms(WORKER, &[Operation::Decrypt]))));
    assert_eq!(hit(), Some(samples::id(2)));
}

#[test]
fn what_rests_on_an_ended_grant_is_over() {
    let living = Living::new();
    let wish = || wanted(terms(WORKER, &[Operation::Decrypt, Operation::CreateGrant]));
    let first = grant(1, wish());
    let second = resting(2, wish(), Some(&first));
    let third = resting(3, wish(), Some(&second));
    // Without its parent it is none.
    living.insert(&second);
    assert!(living.is_empty());
    for one in [&first, &second, &third] {
        living.insert(one);
    }
    let worker = principal(WORKER);
    let by = || living.delegable(&samples::name("keys/orders"), &worker, dawn(), 9);
    assert_eq!(by(), [1, 2, 3].map(samples::id));
    living.end(&second.id);
    assert_eq!(by(), [samples::id(1)]);
    assert!(!living.lives(&third.id, dawn()));
    living.end(&first.id);
    for _ in 0..SHARDS {
        living.sweep(dawn());
    }
    assert!(living.is_empty());
    assert!(read(&living.keys).is_empty(), "keys without grants stay");
}

#[derive(Clone, Debug)]
enum Step {
    Make(u8, Box<Wanted>, Option<u8>),
    Renew(u8),
    End(u8),
    Wait(u8),
    Sweep,
}

fn any_wish() -> impl Strategy<Value = Wanted> {
    let grantee = prop::sample::select(vec![
        WORKER,
        "spiffe://prod.example/tenant/acme/sa/*",
        "spiffe://prod.example/*/acme/*/worker",
        "spiffe://prod.example/tenant/acme/*",
        "spiffe://prod.example/tenant/acme/sa/other",
        "unix:uid=7",
        "unix:gid=7",
        "unix:uid=7,gid=7",
    ]);
    let operations = 1u16..512;
    let pair = prop::sample::select(vec![("a", "1"), ("a", "2"), ("b", "1"), ("A", "1")]);
    let pairs = prop::collection::vec(pair, 0..3);
    let kind = prop::sample::select(vec![Kind::Equals, Kind::Subset]);
    let name = prop::sample::select(vec!["keys/orders", "keys/other"]);
    let rest = (1u64..8, prop::bool::weighted(0.2), name);
    (grantee, operations, kind, pairs, rest).prop_map(
        |(grantee, operations, kind, pairs, (life, counted, name))| {
            let pairs = EncryptionContext::new(pairs).unwrap_or_default();
            Wanted {
                key: samples::name(name),
                lifetime: Some(seconds(life)),
                renewable: Some(seconds(9)),
                max_uses: NonZeroU32::new(counted.into()),
                ..wanted(Terms {
                    grantee: grantee.parse().unwrap(),
                    operations: Operations::from_bits(operations).unwrap(),
                    constraint: Constraint::new(kind, pairs).ok(),
                })
            }
        },
    )
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..20, any_wish(), prop::option::of(0u8..20))
            .prop_map(|(number, wish, parent)| Step::Make(number, Box::new(wish), parent)),
        1 => (0u8..20).prop_map(Step::Renew),
        2 => (0u8..20).prop_map(Step::End),
        2 => (0u8..4).prop_map(Step::Wait),
        1 => Just(Step::Sweep),
    ]
}

/// All grants ever, looked through one by one.
#[derive(Default)]
struct Model(BTreeMap<u8, Grant>);

impl Model {
    fn lives(&self, grant: &Grant, now: Timestamp) -> bool {
        let ancestors = grant.ancestors.iter();
        let ancestors = ancestors.map(|one| &self.0[&one.id.as_bytes()[0]]);
        let mut all = ancestors.chain([grant]);
        all.all(|one| one.check(now).is_ok())
    }

    fn allows(&self, wish: &Use<'_>, now: Timestamp) -> Vec<Id> {
        let all = self.0.values().filter(|grant| self.lives(grant, now));
        let allow =
            |grant: &&Grant| grant.wanted.key == *wish.key.name() && grant.wanted.terms.allow(wish);
        all.filter(allow).map(|grant| grant.id).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 512 }))]
    #[test]
    fn what_is_found_is_what_a_look_at_every_grant_finds(
        steps in prop::collection::vec(any_step(), 1..40),
        context in prop::collection::btree_map(
            prop::sample::select(vec!["a", "b", "env"]),
            prop::sample::select(vec!["1", "2", "prod"]),
            0..3,
        ),
        operation in prop::sample::select(Operation::ALL.to_vec()),
        who in prop::sample::select(vec![WORKER, "unix:uid=7,gid=7", "unix:uid=7,gid=8"]),
    ) {
        let (living, mut model) = (Living::new(), Model::default());
        let mut now = dawn();
        for step in steps {
            match step {
                Step::Make(number, wish, parent) => {
                    let parent = parent.and_then(|one| model.0.get(&one));
                    let parent = parent.filter(|one| model.lives(one, now)).cloned();
                    let made = Grant::make(
                        *wish,
                        samples::id(number),
                        &principal(WORKER),
                        parent.as_ref(),
                        Grant::LONGEST_LIFETIME,
                        now,
                    );
                    if let Ok(made) = made && !model.0.contains_key(&number) {
                        living.insert(&made);
                        model.0.insert(number, made);
                    }
                }
                Step::Renew(number) => {
                    let known = model.0.get(&number).filter(|one| model.lives(one, now));
                    if let Some(mut grant) = known.cloned() {
                        let by = grant.creator.clone();
                        grant.expires = grant.renewed(&by, None, now).unwrap_or(grant.expires);
                        living.insert(&grant);
                        model.0.insert(number, grant);
                    }
                }
                Step::End(number) => {
                    living.end(&samples::id(number));
                    if let Some(grant) = model.0.get_mut(&number) {
                        grant.ending = Some(Ending::Revoke);
                    }
                }
                Step::Wait(count) => now += Duration::from_secs(count.into()),
                Step::Sweep => (0..SHARDS).for_each(|_| living.sweep(now)),
            }
            let who = principal(who);
            for id in ["orders", "other"] {
                let key = key(id);
                let pairs = context.iter().map(|(name, value)| (*name, *value));
                for wish in [
                    Use::new(&key, &who, operation, pairs.clone()),
                    Use::somewhere(&key, &who, operation),
                ] {
                    let expected = model.allows(&wish, now);
                    // The making of grants and their end have ways of their own.
                    let found = match operation {
                        Operation::CreateGrant => {
                            let mut found = living.delegable(key.name(), &who, now, 99);
                            found.sort_unstable_by_key(|id| *id.as_bytes());
                            prop_assert_eq!(&found, &expected);
                            continue;
                        }
                        Operation::RetireGrant => None,
                        _ => living.find(&wish, now),
                    };
                    let expected = expected.iter().filter(|_| operation != Operation::RetireGrant);
                    let expected: Vec<&Id> = expected.collect();
                    match found {
                        Some(live) => {
                            prop_assert!(expected.contains(&&live.id()));
                            let counted = |id: &&Id| {
                                model.0[&id.as_bytes()[0]].wanted.max_uses.is_some()
                            };
                            prop_assert!(!live.is_counted() || expected.iter().all(counted));
                        }
                        None => prop_assert!(expected.is_empty()),
                    }
                }
            }
        }
        for grant in model.0.values() {
            let known = living.lives(&grant.id, now);
            prop_assert_eq!(known, model.lives(grant, now));
        }
        let later = now + Duration::from_secs(100);
        (0..SHARDS).for_each(|_| living.sweep(later));
        prop_assert!(living.is_empty() && read(&living.keys).is_empty());
    }
}
