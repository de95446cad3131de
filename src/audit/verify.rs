//! Proves audit files whole, or names the first record that shows that they are not. Reads any
//! bytes, in memory that does not grow with the number of records.
//!
//! What it proves ends with the last signature of each chain: whoever can write a file can put other
//! records behind that, or cut them off. How many there are is in the [`Report`].
//!
//! A chain is signed by the key of its process. Where keys are given, one of them must be that one,
//! or have countersigned a record of the chain, whose first one names it; or so must the chain of
//! the process that came next, whose first record is about the end of this one. What stands behind
//! the last record that is vouched for so, whoever has the key of the process could have written.

mod report;
mod run;

pub use report::Broken;
pub use report::Countersigned;
pub use report::End;
pub use report::Report;
pub use report::Stretch;
pub use report::Trust;
pub use report::Verdict;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read as _;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use uuid::Uuid;

use crate::audit::chain::Event as Name;
use crate::audit::chain::Signed;
use crate::audit::link::Hash;
use crate::audit::link::Linked;
use crate::audit::link::Place;
use crate::audit::verify::report::Flaw;
use crate::audit::verify::run::Run;
use crate::crypto::signature::PublicKey;

/// What is known from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The keys that may have signed or countersigned; none for "whichever the files name".
    pub keys: Vec<PublicKey>,
    /// Records that must be there, by number and hash: learned from another sink, say.
    pub expected: Vec<(u64, Hash)>,
    /// Where the files begin.
    pub beginning: Beginning,
    /// How many records at the end of a chain may be such that no given key vouches for them; none
    /// for "any number".
    pub most_unvouched: Option<u64>,
}

/// Where a set of files begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beginning {
    /// With the first record that there ever was.
    #[default]
    First,
    /// Anywhere: older files are gone, or were left out.
    Later,
}

/// A file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct Unreadable {
    /// Which.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// Verifies the files at `paths`, whose order does not matter.
///
/// # Errors
/// [`Unreadable`] for a file that cannot be read to its end.
pub fn files(paths: &[PathBuf], known: Known) -> Result<Report, Unreadable> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| Unreadable { path, source }
    };
    let open = |path: &Path| {
        let file = File::open(path)?;
        Ok(BufReader::with_capacity(BUFFER, file))
    };
    let mut ordered = Vec::new();
    for path in paths {
        let place = open(path).and_then(first).map_err(unreadable(path))?;
        ordered.push((place, path));
    }
    // A process's id begins with the time of its start.
    ordered.sort();
    let mut verifier = Verifier::new(known);
    for (_, path) in ordered {
        let read = open(path).and_then(|file| verifier.read(path, file));
        if !read.map_err(unreadable(path))? {
            break;
        }
    }
    Ok(verifier.report())
}

/// The place of the first record in `lines`.
fn first(mut lines: impl BufRead) -> io::Result<Option<(Uuid, u64)>> {
    let mut line = Vec::new();
    while next(&mut lines, &mut line)? {
        let bare = line.strip_suffix(b"\n").unwrap_or(&line);
        if let Some(linked) = Linked::parse(bare) {
            return Ok(Some((linked.place.instance, linked.place.seq)));
        }
    }
    Ok(None)
}

/// Verifies lines, one after another.
pub struct Verifier {
    known: Known,
    runs: HashMap<Uuid, Run>,
    order: Vec<Uuid>,
    torn: u64,
    records: u64,
    broken: Option<Broken>,
}

impl Verifier {
    /// Of a trail that nothing is known of but this.
    pub fn new(known: Known) -> Self {
        Self {
            known,
            runs: HashMap::new(),
            order: Vec::new(),
            torn: 0,
            records: 0,
            broken: None,
        }
    }

    /// Reads `lines` of the file at `path`. `false` when they are broken, and more is of no use.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&mut self, path: &Path, mut lines: impl BufRead) -> io::Result<bool> {
        let mut line = Vec::new();
        let mut number: u64 = 0;
        // A line that is none: a crash may have left it, if a process begins behind it.
        let mut torn = None;
        let mut at = At::Beginning;
        while self.broken.is_none() && next(&mut lines, &mut line)? {
            number += 1;
            let ended = line.strip_suffix(b"\n");
            let Some(linked) = Linked::parse(ended.unwrap_or(&line)) else {
                if let Some(first) = torn.replace(number) {
                    self.broken = Some(Broken::at(path, first, None, Flaw::NoRecord));
                }
                // At the end of a file a line may be cut.
                if ended.is_none() && line.len() < LONGEST {
                    torn = None;
                    self.torn += 1;
                }
                continue;
            };
            if let Some(torn) = torn.take() {
                let begins = linked.place.seq == 0 && linked.signature.is_some();
                if !begins {
                    self.broken = Some(Broken::at(path, torn, None, Flaw::NoRecord));
                    break;
                }
                self.torn += 1;
            }
            let here = Line {
                path,
                number,
                bytes: &line,
            };
            match self.take(&linked, here, at) {
                Ok(true) => at = At::Within,
                Ok(false) => {}
                Err(flaw) => {
                    self.broken = Some(Broken::at(path, number, Some(&linked.place), flaw));
                }
            }
        }
        if let (None, Some(torn)) = (&self.broken, torn) {
            self.broken = Some(Broken::at(path, torn, None, Flaw::NoRecord));
        }
        Ok(self.broken.is_none())
    }

    /// What was found.
    pub fn report(mut self) -> Report {
        let vouched = self.vouched();
        if self.broken.is_none() {
            self.broken = self.unproved(&vouched).or_else(|| {
                let (seq, hash) = *self.known.expected.first()?;
                Some(Broken {
                    file: None,
                    line: None,
                    instance: None,
                    seq: Some(seq),
                    what: Flaw::Unfound { seq, hash }.to_string(),
                })
            });
        }
        let runs = self.order.iter().filter_map(|instance| {
            let run = self.runs.get(instance)?;
            let to = vouched.get(instance).copied();
            let trust = match to {
                Some(_) => Trust::Vouched,
                None => Trust::Found,
            };
            let given = !self.known.keys.is_empty();
            Some(run.stretch(*instance, trust, given.then(|| run.behind(to))))
        });
        let chains: Vec<Stretch> = runs.collect();
        let open = chains
            .iter()
            .any(|chain| chain.end == End::Open || chain.unvouched.is_some_and(|last| last > LAST));
        Report {
            verdict: match (&self.broken, open) {
                (Some(_), _) => Verdict::Broken,
                (None, true) => Verdict::Open,
                (None, false) => Verdict::Whole,
            },
            records: self.records,
            torn: self.torn,
            chains,
            broken: self.broken,
        }
    }

    /// Takes a record. Whether it is new; one that was taken before may stand at the beginning of a
    /// file alone: the lot that was written while the last one was moved.
    fn take(&mut self, linked: &Linked<'_>, line: Line<'_>, at: At) -> Result<bool, Flaw> {
        let Place {
            instance,
            seq,
            hash,
        } = linked.place;
        let event = signed(linked, line.bytes)?;
        match self.runs.get_mut(&instance) {
            Some(run) => {
                if !run.take(linked)? {
                    return match at {
                        At::Beginning => Ok(false),
                        At::Within => Err(run.misplaced()),
                    };
                }
            }
            None => {
                let run = self.begin(linked, line)?;
                self.order.push(instance);
                self.runs.insert(instance, run);
            }
        }
        self.records += 1;
        self.known.expected.retain(|known| *known != (seq, hash));
        if let Some((key, event)) = event {
            self.vouch(instance, &key, event)?;
        }
        Ok(true)
    }

    /// The first record of a process that is read.
    fn begin(&self, linked: &Linked<'_>, line: Line<'_>) -> Result<Run, Flaw> {
        let first = self.runs.is_empty() && self.known.beginning == Beginning::Later;
        match linked.place.seq {
            0 => {
                let run = Run::first(linked, line)?;
                // What a process begins with is signed.
                linked.signature.map(|_| run).ok_or(Flaw::Forged)
            }
            _ if first => Ok(Run::later(linked, line)),
            _ => Err(Flaw::Headless),
        }
    }

    /// Vouches for all that was read of a process, by a record that is signed with `key`.
    fn vouch(&mut self, instance: Uuid, key: &PublicKey, event: Event) -> Result<(), Flaw> {
        let alone = self.runs.len() == 1;
        let Self { known, runs, .. } = self;
        let Some(run) = runs.get_mut(&instance) else {
            return Ok(());
        };
        let Event { event_name, signed } = event;
        if let Some(one) = &signed.countersignature {
            let by = one.signer().filter(|_| one.of.instance == instance);
            let by = by.ok_or(Flaw::Miscountersigned)?;
            run.countersign(one, &by, known.trust(&by))?;
        }
        run.vouch(key, known.trust(key))?;
        match event_name {
            Name::Checkpoint => Ok(()),
            Name::Stopped => {
                run.stop();
                Ok(())
            }
            Name::Started => match signed.previous {
                None => Ok(()),
                Some(previous) => match runs.get_mut(&previous.instance) {
                    Some(run) => run.confirm(&previous, instance),
                    None if alone && known.beginning == Beginning::Later => Ok(()),
                    None => Err(Flaw::Unpreceded {
                        instance: previous.instance,
                        seq: previous.seq,
                    }),
                },
            },
        }
    }

    /// The last record of each chain that given keys vouch for, where there is one.
    fn vouched(&self) -> HashMap<Uuid, u64> {
        let mut vouched = HashMap::new();
        for instance in self.order.iter().rev() {
            let run = self.runs.get(instance);
            let to = run.and_then(|run| run.vouched_to(|next| vouched.contains_key(next)));
            if let Some(to) = to {
                vouched.insert(*instance, to);
            }
        }
        vouched
    }

    /// The first chain that given keys do not vouch for as they are to.
    fn unproved(&self, vouched: &HashMap<Uuid, u64>) -> Option<Broken> {
        if self.known.keys.is_empty() {
            return None;
        }
        self.order.iter().find_map(|instance| {
            let run = self.runs.get(instance)?;
            let to = vouched.get(instance).copied();
            if to.is_none() && run.is_signed() {
                return Some(run.broken(*instance, Flaw::Foreign));
            }
            let (last, most) = (run.behind(to), self.known.most_unvouched?);
            (last > most).then(|| run.broken(*instance, Flaw::Unvouched { last, most }))
        })
    }
}

impl Known {
    fn trust(&self, key: &PublicKey) -> Trust {
        match self.keys.contains(key) {
            true => Trust::Given,
            false => Trust::Found,
        }
    }
}

/// What a signed record says, whose signature is good.
fn signed(linked: &Linked<'_>, line: &[u8]) -> Result<Option<(PublicKey, Event)>, Flaw> {
    let Some(signature) = &linked.signature else {
        return Ok(None);
    };
    let event: Event = serde_json::from_slice(line).map_err(|_| Flaw::Altered)?;
    let key: PublicKey = event.signed.public_key.parse().map_err(|_| Flaw::Forged)?;
    match linked.place.signed(&key, signature.as_ref()) {
        true => Ok(Some((key, event))),
        false => Err(Flaw::Forged),
    }
}

/// A line, and where it stands.
#[derive(Clone, Copy)]
struct Line<'a> {
    path: &'a Path,
    number: u64,
    bytes: &'a [u8],
}

/// Where in a file a record stands.
#[derive(Clone, Copy)]
enum At {
    Beginning,
    Within,
}

/// Reads a line, its newline included, at most [`LONGEST`] bytes of it. `false` at the end.
fn next(lines: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let most = u64::try_from(LONGEST).unwrap_or(u64::MAX);
    Ok(lines.take(most).read_until(b'\n', line)? > 0)
}

/// What matters of a signed line.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    event_name: Name,
    #[serde(rename = "additionalEventData")]
    signed: Signed,
}

/// Longest line, in bytes: a batch's record names up to 64 keys, and no text in one is longer than a
/// request's head.
const LONGEST: usize = 1 << 20;
/// Most records behind the last countersignature at an orderly end: the one that carries it, the last
/// one, and some.
const LAST: u64 = 8;
/// What is read at once, in bytes.
const BUFFER: usize = 1 << 20;

#[cfg(test)]
mod tests;
