//! The chain of one process, as far as it was read.

use std::collections::VecDeque;
use std::path::PathBuf;

use uuid::Uuid;

use crate::audit::countersign::Countersignature;
use crate::audit::link::Hash;
use crate::audit::link::Linked;
use crate::audit::link::Place;
use crate::audit::verify::Broken;
use crate::audit::verify::Countersigned;
use crate::audit::verify::End;
use crate::audit::verify::Flaw;
use crate::audit::verify::Line;
use crate::audit::verify::Stretch;
use crate::audit::verify::Trust;
use crate::crypto::signature::PublicKey;

pub(super) struct Run {
    first: u64,
    last: u64,
    hash: Hash,
    /// Of the last records, the last one included: some may come twice.
    recent: VecDeque<Hash>,
    end: End,
    /// The last record that a signature vouches for, and one before the first if there is none.
    signed: Option<u64>,
    repeated: u64,
    key: Option<PublicKey>,
    /// How the key is known.
    trust: Trust,
    /// The last signed records, by number: one of them may be countersigned later.
    places: VecDeque<(u64, Hash)>,
    countersigned: Option<Countersigned>,
    /// The last record that a given key has countersigned.
    vouched: Option<u64>,
    /// The process whose first record is about one of these, and which.
    confirmed: Option<(Uuid, u64)>,
    /// Where the first record stands.
    file: PathBuf,
    line: u64,
}

impl Run {
    /// Begins with the first record of a process.
    pub(super) fn first(linked: &Linked<'_>, line: Line<'_>) -> Result<Self, Flaw> {
        let genesis = Hash::genesis(linked.place.instance);
        match genesis.next(linked.body) == linked.place.hash {
            true => Ok(Self::later(linked, line)),
            false => Err(Flaw::Altered),
        }
    }

    /// Begins with any record: what stands before it is not known.
    pub(super) fn later(linked: &Linked<'_>, line: Line<'_>) -> Self {
        let Place { seq, hash, .. } = linked.place;
        Self {
            first: seq,
            last: seq,
            hash,
            recent: VecDeque::from([hash]),
            end: End::Open,
            signed: None,
            repeated: 0,
            key: None,
            trust: Trust::Found,
            places: VecDeque::new(),
            countersigned: None,
            vouched: None,
            confirmed: None,
            file: line.path.to_owned(),
            line: line.number,
        }
    }

    /// Takes the next record, or one that was taken before. Whether it is new.
    pub(super) fn take(&mut self, linked: &Linked<'_>) -> Result<bool, Flaw> {
        let Place { seq, hash, .. } = linked.place;
        let next = self.last.saturating_add(1);
        if seq < next {
            return match (self.recent(seq), self.before(linked)) {
                (Some(known), Some(before))
                    if known == hash && before.next(linked.body) == hash =>
                {
                    self.repeated += 1;
                    Ok(false)
                }
                _ => Err(self.misplaced()),
            };
        }
        if self.end == End::Stopped {
            return Err(Flaw::Posthumous);
        }
        if seq > next {
            let to = seq - 1;
            return Err(Flaw::Missing { from: next, to });
        }
        if self.hash.next(linked.body) != hash {
            return Err(Flaw::Altered);
        }
        self.last = seq;
        self.hash = hash;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(hash);
        Ok(true)
    }

    /// That a record was taken before.
    pub(super) fn misplaced(&self) -> Flaw {
        Flaw::Misplaced {
            expected: self.last.saturating_add(1),
        }
    }

    /// The last record is signed, by `key`: one process has one.
    pub(super) fn vouch(&mut self, key: &PublicKey, trust: Trust) -> Result<(), Flaw> {
        if self.key.get_or_insert(*key) != key {
            return Err(Flaw::Forged);
        }
        self.trust = trust;
        self.signed = Some(self.last);
        if self.places.len() == RECENT {
            self.places.pop_front();
        }
        self.places.push_back((self.last, self.hash));
        Ok(())
    }

    /// The last record carries `one`, which is good, by `key`. Of what stands before all that is
    /// known it proves nothing.
    pub(super) fn countersign(
        &mut self,
        one: &Countersignature,
        key: &PublicKey,
        trust: Trust,
    ) -> Result<(), Flaw> {
        let Place { seq, hash, .. } = one.of;
        let oldest = self.places.front().map_or(self.last, |(seq, _)| *seq);
        if seq < oldest {
            return Ok(());
        }
        let at = self.places.binary_search_by_key(&seq, |(seq, _)| *seq);
        let known = at.ok().and_then(|at| self.places.get(at));
        if known != Some(&(seq, hash)) {
            return Err(Flaw::Miscountersigned);
        }
        if trust == Trust::Given {
            self.vouched = Some(seq);
        }
        self.countersigned = Some(Countersigned {
            last: seq,
            behind: 0,
            key: key.id(),
            arn: one.key_id.clone(),
            trust,
        });
        Ok(())
    }

    pub(super) fn stop(&mut self) {
        self.end = End::Stopped;
    }

    /// Another process has found `place` to be the last record.
    pub(super) fn confirm(&mut self, place: &Place, by: Uuid) -> Result<(), Flaw> {
        let Place {
            instance,
            seq,
            hash,
        } = *place;
        if seq > self.last {
            return Err(Flaw::Unpreceded { instance, seq });
        }
        match self.recent(seq) {
            Some(known) if known == hash => {
                // A signed record before it names the key that signs what may follow.
                let signed = self.places.front();
                if signed.is_some_and(|(signed, _)| *signed <= seq) {
                    self.confirmed = Some((by, seq));
                }
            }
            // It stands before all that is known.
            None if seq < self.first => return Ok(()),
            // Nobody could tell any more whether it is that one.
            None => return Err(Flaw::Outrun { instance, seq }),
            Some(_) => return Err(Flaw::Replaced { instance }),
        }
        if self.end == End::Open && seq == self.last {
            self.end = End::Confirmed;
        }
        self.signed = self.signed.max(Some(seq));
        Ok(())
    }

    pub(super) fn stretch(&self, instance: Uuid, trust: Trust, unvouched: Option<u64>) -> Stretch {
        Stretch {
            instance,
            first: self.first,
            last: self.last,
            hash: self.hash,
            end: self.end,
            unsigned: self.behind(self.signed),
            unvouched,
            repeated: self.repeated,
            key: self.key.map(|key| key.id()),
            trust: self.key.map(|_| match self.trust {
                Trust::Given => Trust::Given,
                Trust::Found | Trust::Vouched => trust,
            }),
            countersigned: self.countersigned.as_ref().map(|one| Countersigned {
                behind: self.last - one.last,
                ..one.clone()
            }),
        }
    }

    /// Whether any of it is signed.
    pub(super) fn is_signed(&self) -> bool {
        self.key.is_some()
    }

    /// The last record that given keys vouch for: the process's own, one that has countersigned it, or
    /// those of the next process if `vouched` for that.
    pub(super) fn vouched_to(&self, vouched: impl Fn(&Uuid) -> bool) -> Option<u64> {
        if self.trust == Trust::Given {
            return self.signed;
        }
        let next = self.confirmed.filter(|(next, _)| vouched(next));
        self.vouched.max(next.map(|(_, seq)| seq))
    }

    /// How many of these are not among those up to `last`.
    pub(super) fn behind(&self, last: Option<u64>) -> u64 {
        match last {
            Some(last) => self.last - last,
            None => (self.last - self.first).saturating_add(1),
        }
    }

    /// What is wrong with all of it.
    pub(super) fn broken(&self, instance: Uuid, flaw: Flaw) -> Broken {
        Broken {
            file: Some(self.file.clone()),
            line: Some(self.line),
            instance: Some(instance),
            seq: Some(self.first),
            what: flaw.to_string(),
        }
    }

    /// The hash that a record hangs on which was taken before.
    fn before(&self, linked: &Linked<'_>) -> Option<Hash> {
        match linked.place.seq.checked_sub(1) {
            None => Some(Hash::genesis(linked.place.instance)),
            Some(before) => self.recent(before),
        }
    }

    fn recent(&self, seq: u64) -> Option<Hash> {
        let back = usize::try_from(self.last.checked_sub(seq)?).ok()?;
        let at = self.recent.len().checked_sub(back.checked_add(1)?)?;
        self.recent.get(at).copied()
    }
}

/// More than a lot has.
const RECENT: usize = 4096;
