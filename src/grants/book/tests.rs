use super::*;
use crate::clock::Manual;
use crate::crypto::Secret;
use crate::directory::Key;
use crate::grants::Ending;
use crate::grants::Operation;
use crate::grants::TokenKey;
use crate::grants::Wanted;
use crate::grants::samples;
use crate::grants::samples::WORKER;
use crate::grants::samples::dawn;
use crate::grants::samples::grant;
use crate::grants::samples::principal;
use crate::grants::samples::resting;
use crate::grants::samples::seconds;
use crate::grants::samples::terms;
use crate::grants::samples::wanted;

/// A replica, and the clock that it shares with its store.
struct Replica {
    book: Book,
    clock: Arc<Manual>,
    key: Arc<Key>,
}

impl Replica {
    fn new() -> Self {
        let clock = Arc::new(Manual::new(dawn()));
        Self {
            book: Book::new(keys(), clock.clone()),
            clock,
            key: samples::key("orders"),
        }
    }

    fn hear(&self, applied: u64) -> &Self {
        self.book.heard(Contact {
            asked: self.clock.now(),
            store: self.clock.wall(),
            applied,
        });
        self
    }

    fn find(&self, who: &str, tokens: &[String]) -> Found {
        let who = principal(who);
        let wish = Use::new(&self.key, &who, Operation::Decrypt, [].into_iter());
        self.book.find(&wish, tokens)
    }

    fn outcome(&self, tokens: &[String]) -> Result<Option<Id>, ()> {
        match self.find(WORKER, tokens) {
            Found::Allow(basis) => Ok(Some(basis.id())),
            Found::Nothing => Ok(None),
            Found::OutOfTouch => Err(()),
        }
    }
}

fn keys() -> TokenKeys {
    let key = TokenKey::new(Secret::filled(|cell| cell.fill(1)));
    TokenKeys::new(key, None)
}

fn usual() -> Wanted {
    wanted(terms(WORKER, &[Operation::Decrypt, Operation::CreateGrant]))
}

fn token(grant: &Grant) -> String {
    keys().seal(&Claims::new(grant, grant.change)).into_text()
}

#[test]
fn a_token_is_believed_by_a_replica_that_is_behind_it_and_by_no_other() {
    let grant = grant(7, usual());
    let tokens = [token(&grant)];
    let replica = Replica::new();
    // Never heard of the store.
    assert_eq!(replica.outcome(&tokens), Err(()));
    assert_eq!(replica.hear(6).outcome(&tokens), Ok(Some(grant.id)));
    assert_eq!(replica.outcome(&[]), Ok(None));
    // What came with change 7 is known by now: no such grant, revoked perhaps.
    assert_eq!(replica.hear(7).outcome(&tokens), Ok(None));
    replica.book.apply(&grant);
    assert_eq!(replica.outcome(&[]), Ok(Some(grant.id)));
    let revoked = Grant {
        ending: Some(Ending::Revoke),
        ..grant
    };
    replica.book.apply(&revoked);
    assert_eq!(replica.hear(8).outcome(&tokens), Ok(None));
}

#[test]
fn a_token_serves_its_grantee_and_its_key_until_it_expires() {
    let grant = grant(7, usual());
    let tokens = [token(&grant)];
    let replica = Replica::new();
    replica.hear(1);
    let other = "spiffe://prod.example/tenant/acme/sa/other";
    assert!(matches!(replica.find(other, &tokens), Found::Nothing));
    let elsewhere = Replica {
        key: samples::key("other"),
        ..Replica::new()
    };
    assert_eq!(elsewhere.hear(1).outcome(&tokens), Ok(None));
    replica.clock.advance(seconds(899));
    assert_eq!(replica.hear(1).outcome(&tokens), Ok(Some(grant.id)));
    replica.clock.advance(seconds(1));
    assert_eq!(replica.hear(1).outcome(&tokens), Ok(None));
}

#[test]
fn at_most_ten_tokens_are_looked_at() {
    let replica = Replica::new();
    replica.hear(1);
    let good = token(&grant(7, usual()));
    let others = |count| vec!["none of ours".to_owned(); count];
    let tenth = [others(9), vec![good.clone()]].concat();
    let eleventh = [others(10), vec![good]].concat();
    assert!(replica.outcome(&tenth).unwrap().is_some());
    assert_eq!(replica.outcome(&eleventh), Ok(None));
}

#[test]
fn a_token_is_worth_no_more_than_what_its_grant_rests_on() {
    let parent = grant(5, usual());
    let child = resting(7, usual(), Some(&parent));
    let tokens = [token(&child)];
    let replica = Replica::new();
    // Both are news.
    assert_eq!(replica.hear(4).outcome(&tokens), Ok(Some(child.id)));
    // The parent should be known, and is not.
    assert_eq!(replica.hear(6).outcome(&tokens), Ok(None));
    replica.book.apply(&parent);
    let narrow = Grant {
        id: samples::id(9),
        wanted: wanted(terms("dns:a.example", &[Operation::Decrypt])),
        ..child
    };
    assert_eq!(replica.outcome(&[token(&narrow)]), Ok(Some(parent.id)));
    replica.book.end(&parent.id);
    assert_eq!(replica.outcome(&tokens), Ok(None));
}

#[test]
fn who_lost_touch_for_five_seconds_says_nothing_of_grants() {
    let replica = Replica::new();
    let grant = grant(1, usual());
    replica.book.apply(&grant);
    replica.hear(1);
    let Found::Allow(basis) = replica.find(WORKER, &[]) else {
        panic!("a living grant");
    };
    replica.clock.advance(Duration::from_millis(4_999));
    assert_eq!(replica.outcome(&[]), Ok(Some(grant.id)));
    assert_eq!(replica.book.stands(&basis), Some(true));
    replica.clock.advance(Duration::from_millis(1));
    assert_eq!(replica.outcome(&[]), Err(()));
    assert_eq!(replica.book.stands(&basis), None, "its answer is stopped");
    // Others learn nothing of the state of the store.
    let other = "spiffe://prod.example/tenant/acme/sa/other";
    assert!(matches!(replica.find(other, &[]), Found::Nothing));
    replica.hear(1);
    assert_eq!(replica.book.stands(&basis), Some(true));
    replica.book.end(&grant.id);
    assert_eq!(replica.book.stands(&basis), Some(false));
}

#[test]
fn what_is_found_before_all_is_replaced_stands_no_longer_than_what_replaces_it() {
    let replica = Replica::new();
    replica.book.apply(&grant(1, usual()));
    replica.hear(1);
    let Found::Allow(basis) = replica.find(WORKER, &[]) else {
        panic!("a living grant");
    };
    replica.book.replace(Living::new());
    assert_eq!(replica.book.stands(&basis), Some(false));
}

#[test]
fn time_is_the_stores_and_goes_on_without_it() {
    let replica = Replica::new();
    replica.book.apply(&grant(1, usual()));
    // This machine's wall is an hour late.
    replica.book.heard(Contact {
        asked: replica.clock.now(),
        store: dawn() + seconds(896),
        applied: 1,
    });
    replica.clock.advance(seconds(3));
    assert!(replica.outcome(&[]).unwrap().is_some());
    replica.clock.advance(seconds(1));
    assert_eq!(replica.outcome(&[]), Ok(None));
}

#[test]
fn clocks_that_are_apart_are_noticed_either_way() {
    let replica = Replica::new();
    assert_eq!(replica.book.skew(), None);
    for (store, skew) in [(0, 0), (3600, 3600), (-3600, 3600), (-7, 7)] {
        let span = jiff::SignedDuration::from_secs(store);
        replica.clock.advance(seconds(1));
        replica.book.heard(Contact {
            asked: replica.clock.now(),
            store: replica.clock.wall().checked_add(span).unwrap(),
            applied: 1,
        });
        replica.clock.advance(seconds(2));
        assert_eq!(replica.book.skew(), Some(seconds(skew)), "{store}");
    }
}

#[test]
fn older_news_change_nothing() {
    let replica = Replica::new();
    let old = Contact {
        asked: replica.clock.now(),
        store: dawn(),
        applied: 3,
    };
    replica.clock.advance(seconds(1));
    replica.hear(4);
    replica.book.heard(old);
    assert_eq!(replica.book.contact().unwrap().applied, 4);
}
