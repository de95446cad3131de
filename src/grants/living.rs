//! The living grants that a replica knows, found in a time that does not grow with their number.
//!
//! A grant stands under what it wants of a use: its grantee's pattern and its constraint, as bytes.
//! For a use there is one such text for each shape that grants of the key have, and of shapes there
//! are few. One grant allows as much as the next with the same text, so any that lives will do.
//!
//! One writer at a time, who changes a grant in place; a reader waits for no more than one change.

mod shape;

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::HashSet;
use std::hash::Hash;
use std::hash::Hasher;
use std::sync::Arc;

use jiff::Timestamp;

use crate::grants::Grant;
use crate::grants::Id;
use crate::grants::Operations;
use crate::grants::Use;
use crate::identity::Principal;
use crate::name::KeyName;
use crate::sync::Mutex;
use crate::sync::RwLock;
use crate::sync::atomic::AtomicBool;
use crate::sync::atomic::AtomicI64;
use crate::sync::atomic::AtomicUsize;
use crate::sync::atomic::Ordering;
use crate::sync::lock;
use crate::sync::read;
use crate::sync::write;

use shape::Shape;

/// The grants.
pub struct Living {
    writing: Mutex<()>,
    keys: RwLock<HashMap<KeyName, Arc<OfKey>>>,
    /// By the first byte of the id.
    ids: Box<[RwLock<HashSet<ById>>]>,
    /// Which of them is swept next.
    turn: AtomicUsize,
}

/// A grant, as far as deciding needs it.
pub struct Live {
    id: Id,
    operations: Operations,
    counted: bool,
    expires: AtomicI64,
    ended: AtomicBool,
    parent: Option<Arc<Self>>,
    key: Arc<OfKey>,
    links: Box<[Arc<Link>]>,
}

impl Live {
    /// Which grant.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Whether its uses are counted.
    pub fn is_counted(&self) -> bool {
        self.counted
    }

    /// Whether it lives at `now`, and all that it rests on.
    pub fn lives(&self, now: Timestamp) -> bool {
        let now = now.as_millisecond();
        let mut next = Some(self);
        while let Some(one) = next {
            // Acquire: with the end of a grant comes what its end was waited for.
            if one.ended.load(Ordering::Acquire) || now >= one.expires.load(Ordering::Relaxed) {
                return false;
            }
            next = one.parent.as_deref();
        }
        true
    }
}

impl Living {
    /// None yet.
    pub fn new() -> Self {
        Self {
            writing: Mutex::default(),
            keys: RwLock::default(),
            ids: (0..SHARDS).map(|_| RwLock::default()).collect(),
            turn: AtomicUsize::new(0),
        }
    }

    /// A living grant that allows `wanted` at `now`, one whose uses are not counted if there is one.
    pub fn find(&self, wanted: &Use<'_>, now: Timestamp) -> Option<Arc<Live>> {
        let key = Arc::clone(read(&self.keys).get(wanted.key.name())?);
        let groups = read(&key.groups);
        let mut terms = Vec::with_capacity(TERMS);
        let mut counted = None;
        for (shape, _) in &groups.shapes {
            terms.clear();
            if !shape.write(wanted, &mut terms) {
                continue;
            }
            let lives = groups.by_terms.get(terms.as_slice());
            let allows =
                |live: &&Arc<Live>| live.operations.contain(wanted.operation) && live.lives(now);
            for live in lives.into_iter().flatten().filter(allows) {
                match live.counted {
                    false => return Some(Arc::clone(live)),
                    true => {
                        counted.get_or_insert(live);
                    }
                }
            }
        }
        counted.map(Arc::clone)
    }

    /// The living grants by which `principal` may make others for the key `name`: at most `most`.
    pub fn delegable(
        &self,
        name: &KeyName,
        principal: &Principal,
        now: Timestamp,
        most: usize,
    ) -> Vec<Id> {
        let Some(key) = read(&self.keys).get(name).map(Arc::clone) else {
            return Vec::new();
        };
        let groups = read(&key.groups);
        let mut terms = Vec::with_capacity(TERMS);
        let mut found = Vec::new();
        for (shape, _) in &groups.shapes {
            terms.clear();
            if !shape.write_creating(principal, &mut terms) {
                continue;
            }
            let lives = groups.by_terms.get(terms.as_slice()).into_iter().flatten();
            let lives = lives.filter(|live| live.lives(now)).map(|live| live.id);
            found.extend(lives.take(most.saturating_sub(found.len())));
        }
        found
    }

    /// Whether the grant `id` is known and lives at `now`.
    pub fn lives(&self, id: &Id, now: Timestamp) -> bool {
        read(self.shard(id))
            .get(id)
            .is_some_and(|live| live.0.lives(now))
    }

    /// Adds `grant`, or has it expire when it now says. What it rests on must be known already: one
    /// whose parent is not is over, and not added.
    pub fn insert(&self, grant: &Grant) {
        let _writing = lock(&self.writing);
        if let Some(known) = read(self.shard(&grant.id)).get(&grant.id) {
            let expires = grant.expires.as_millisecond();
            known.0.expires.store(expires, Ordering::Relaxed);
            return;
        }
        let parent = match grant.ancestors.last() {
            None => None,
            Some(parent) => match read(self.shard(&parent.id)).get(&parent.id) {
                Some(parent) => Some(Arc::clone(&parent.0)),
                None => return,
            },
        };
        let terms = &grant.wanted.terms;
        let key = Arc::clone(
            write(&self.keys)
                .entry(grant.wanted.key.clone())
                .or_insert_with(|| Arc::new(OfKey::new(grant.wanted.key.clone()))),
        );
        let mut groups = write(&key.groups);
        let links = shape::links(terms).map(|(shape, terms)| groups.link(shape, terms));
        let links: Box<[Arc<Link>]> = links.collect();
        let live = Arc::new(Live {
            id: grant.id,
            operations: terms.operations,
            counted: grant.wanted.max_uses.is_some(),
            expires: AtomicI64::new(grant.expires.as_millisecond()),
            ended: AtomicBool::new(false),
            parent,
            key: Arc::clone(&key),
            links,
        });
        // Whoever finds it by its terms must then find it by its id.
        write(self.shard(&grant.id)).insert(ById(Arc::clone(&live)));
        for link in &live.links {
            let group = groups.by_terms.entry(ByTerms(Arc::clone(link)));
            group.or_default().push(Arc::clone(&live));
        }
        groups.grants += 1;
    }

    /// Takes up what the store says of one grant. A grant comes after those that it rests on.
    pub fn apply(&self, grant: &Grant) {
        match grant.ending {
            None => self.insert(grant),
            Some(_) => self.end(&grant.id),
        }
    }

    /// Ends the grant `id`, and with it all that rest on it.
    pub fn end(&self, id: &Id) {
        let _writing = lock(&self.writing);
        let live = write(self.shard(id)).take(id);
        if let Some(ById(live)) = live {
            live.ended.store(true, Ordering::Release);
            self.unlink(&live);
        }
    }

    /// Forgets a part of the grants that are over at `now`: all of them in 256 calls.
    pub fn sweep(&self, now: Timestamp) {
        let _writing = lock(&self.writing);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let Some(shard) = self.ids.get(turn) else {
            return;
        };
        let over: Vec<ById> = write(shard).extract_if(|live| !live.0.lives(now)).collect();
        for ById(live) in over {
            self.unlink(&live);
        }
    }

    /// How many grants are known.
    pub fn len(&self) -> usize {
        self.ids.iter().map(|shard| read(shard).len()).sum()
    }

    /// How many grants are known of the key `name`, over or not.
    pub fn of_key(&self, name: &KeyName) -> usize {
        let key = read(&self.keys).get(name).map(Arc::clone);
        key.map_or(0, |key| read(&key.groups).grants)
    }

    /// Whether no grant is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn unlink(&self, live: &Arc<Live>) {
        let mut groups = write(&live.key.groups);
        for link in &live.links {
            groups.unlink(link, live);
        }
        groups.grants -= 1;
        if groups.grants == 0 {
            write(&self.keys).remove(&live.key.name);
        }
    }

    fn shard(&self, id: &Id) -> &RwLock<HashSet<ById>> {
        let [first, ..] = id.as_bytes();
        self.ids
            .get(usize::from(*first))
            .expect("there are as many shards as values of a byte")
    }
}

impl Default for Living {
    fn default() -> Self {
        Self::new()
    }
}

/// The grants of a key.
struct OfKey {
    name: KeyName,
    groups: RwLock<Groups>,
}

impl OfKey {
    fn new(name: KeyName) -> Self {
        Self {
            name,
            groups: RwLock::default(),
        }
    }
}

#[derive(Default)]
struct Groups {
    /// Each with the number of texts that have it.
    shapes: Vec<(Arc<Shape>, usize)>,
    by_terms: HashMap<ByTerms, Vec<Arc<Live>>>,
    grants: usize,
}

impl Groups {
    /// The link of this text, which grants may have already.
    fn link(&mut self, shape: Shape, terms: Vec<u8>) -> Arc<Link> {
        if let Some((known, _)) = self.by_terms.get_key_value(terms.as_slice()) {
            return Arc::clone(&known.0);
        }
        let known = self.shapes.iter_mut().find(|(known, _)| **known == shape);
        let shape = match known {
            Some((known, texts)) => {
                *texts += 1;
                Arc::clone(known)
            }
            None => {
                let shape = Arc::new(shape);
                self.shapes.push((Arc::clone(&shape), 1));
                shape
            }
        };
        let terms = terms.into();
        Arc::new(Link { terms, shape })
    }

    fn unlink(&mut self, link: &Link, live: &Arc<Live>) {
        let Some(lives) = self.by_terms.get_mut(&*link.terms) else {
            return;
        };
        lives.retain(|one| !Arc::ptr_eq(one, live));
        if !lives.is_empty() {
            return;
        }
        self.by_terms.remove(&*link.terms);
        let known = |(shape, _): &(Arc<Shape>, usize)| Arc::ptr_eq(shape, &link.shape);
        if let Some(place) = self.shapes.iter().position(known)
            && let Some((_, texts)) = self.shapes.get_mut(place)
        {
            *texts -= 1;
            if *texts == 0 {
                self.shapes.swap_remove(place);
            }
        }
    }
}

/// What grants stand under that want the same of a use.
struct Link {
    terms: Box<[u8]>,
    shape: Arc<Shape>,
}

struct ById(Arc<Live>);

impl Borrow<Id> for ById {
    fn borrow(&self) -> &Id {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

struct ByTerms(Arc<Link>);

impl Borrow<[u8]> for ByTerms {
    fn borrow(&self) -> &[u8] {
        &self.0.terms
    }
}

impl Hash for ByTerms {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.terms.hash(state);
    }
}

impl PartialEq for ByTerms {
    fn eq(&self, other: &Self) -> bool {
        self.0.terms == other.0.terms
    }
}

impl Eq for ByTerms {}

/// As many as values of a byte.
const SHARDS: usize = 256;
/// Room for the terms of a use: more is rare and costs another allocation.
const TERMS: usize = 512;

#[cfg(test)]
mod tests;
