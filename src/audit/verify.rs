//! Proves audit files whole, or names the first record that shows that they are not. Reads any
//! bytes, in memory that does not grow with the number of records.
//!
//! What it proves ends with the last signature of each chain: whoever can write a file can put other
//! records behind that, or cut them off. How many there are is in the [`Report`].

mod run;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read as _;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;
use uuid::Uuid;

use crate::audit::chain::Event;
use crate::audit::chain::Signed;
use crate::audit::link::Hash;
use crate::audit::link::Linked;
use crate::audit::link::Place;
use crate::audit::verify::run::Run;
use crate::crypto::signature::PublicKey;

/// What is known from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The keys that may have signed; none for "whichever the files name".
    pub keys: Vec<PublicKey>,
    /// Records that must be there, by number and hash: learned from another sink, say.
    pub expected: Vec<(u64, Hash)>,
    /// Where the files begin.
    pub beginning: Beginning,
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

/// What stands in the files.
#[derive(Debug, PartialEq, Serialize)]
pub struct Report {
    /// All in all.
    pub verdict: Verdict,
    /// Records, in all chains.
    pub records: u64,
    /// Lines that are no record: what crashes have left of one that nobody was told is written.
    pub torn: u64,
    /// One a process, in the order of their starts.
    pub chains: Vec<Stretch>,
    /// Where it is broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<Broken>,
}

/// What a set of files is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Something was altered, moved, put in or taken out.
    Broken,
    /// Nothing is missing, but for what may have stood behind the last record of a chain that was not
    /// ended.
    Open,
    /// Nothing is missing.
    Whole,
}

/// One process's records.
#[derive(Debug, PartialEq, Serialize)]
pub struct Stretch {
    /// Which process.
    pub instance: Uuid,
    /// The number of its first record here.
    pub first: u64,
    /// The number of its last one.
    pub last: u64,
    /// And its hash: what `--expect` takes.
    pub hash: Hash,
    /// How it ends.
    pub end: End,
    /// Records at its end that no signature vouches for.
    pub unsigned: u64,
    /// Records that stand twice, since their file was moved while they were written.
    pub repeated: u64,
    /// The name of the key that signed; none where nothing here is signed.
    pub key: Option<String>,
    /// How it is known.
    pub trust: Option<Trust>,
}

/// How a chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Without a last record, and the next process has signed what it found there.
    Confirmed,
    /// Without a last record: the process goes on, has crashed, or the rest was cut off.
    Open,
    /// With the last record of a process that has stopped.
    Stopped,
}

/// How a key is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// The files name it: whoever can write them could have signed all of it.
    Found,
    /// It was given.
    Given,
}

/// The first place at which files are broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The file; none when it can't be told.
    pub file: Option<PathBuf>,
    /// The line, counted from 1.
    pub line: Option<u64>,
    /// Whose chain.
    pub instance: Option<Uuid>,
    /// The record's number.
    pub seq: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl Broken {
    fn at(path: &Path, line: u64, place: Option<&Place>, flaw: Flaw) -> Self {
        Self {
            file: Some(path.to_owned()),
            line: Some(line),
            instance: place.map(|place| place.instance),
            seq: place.map(|place| place.seq),
            what: flaw.to_string(),
        }
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Flaw {
    #[error("the record, or what stands before it, was altered")]
    Altered,
    #[error("the record is signed by a key that was not given, or the signature is not good")]
    Forged,
    #[error("the records before it, from the first of this process on, are missing")]
    Headless,
    #[error("no record: the line was altered, or is longer than any")]
    NoRecord,
    #[error("the records {from} to {to} before it are missing")]
    Missing { from: u64, to: u64 },
    #[error("the record is out of place: {expected} would be next")]
    Misplaced { expected: u64 },
    #[error("the record stands behind the last one of its process")]
    Posthumous,
    #[error("the record {seq} with the hash {hash}, which was expected, is not in these files")]
    Unfound { seq: u64, hash: Hash },
    #[error(
        "the process {instance} had written up to {seq} before this one began, which is missing"
    )]
    Unpreceded { instance: Uuid, seq: u64 },
    #[error("the records of {instance} are not those that stood there when this process began")]
    Replaced { instance: Uuid },
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
        let mut number = 0;
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
            match self.take(&linked, &line, at) {
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
        if let (None, Some((seq, hash))) = (&self.broken, self.known.expected.first()) {
            let (seq, hash) = (*seq, *hash);
            self.broken = Some(Broken {
                file: None,
                line: None,
                instance: None,
                seq: Some(seq),
                what: Flaw::Unfound { seq, hash }.to_string(),
            });
        }
        let trust = match self.known.keys.is_empty() {
            true => Trust::Found,
            false => Trust::Given,
        };
        let runs = self.order.iter().filter_map(|instance| {
            let run = self.runs.get(instance)?;
            Some(run.stretch(*instance, trust))
        });
        let chains: Vec<Stretch> = runs.collect();
        let open = chains.iter().any(|chain| chain.end == End::Open);
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
    fn take(&mut self, linked: &Linked<'_>, line: &[u8], at: At) -> Result<bool, Flaw> {
        let Place {
            instance,
            seq,
            hash,
        } = linked.place;
        let event = self.signed(linked, line)?;
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
                let run = self.begin(linked)?;
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

    /// What a signed record says, whose signature is good.
    fn signed(&self, linked: &Linked<'_>, line: &[u8]) -> Result<Option<(PublicKey, Line)>, Flaw> {
        let Some(signature) = &linked.signature else {
            return Ok(None);
        };
        let event: Line = serde_json::from_slice(line).map_err(|_| Flaw::Altered)?;
        let key: PublicKey = event
            .additional_event_data
            .public_key
            .parse()
            .map_err(|_| Flaw::Forged)?;
        let known = self.known.keys.is_empty() || self.known.keys.contains(&key);
        if !known || !linked.place.signed(&key, signature) {
            return Err(Flaw::Forged);
        }
        Ok(Some((key, event)))
    }

    /// The first record of a process that is read.
    fn begin(&self, linked: &Linked<'_>) -> Result<Run, Flaw> {
        let first = self.runs.is_empty() && self.known.beginning == Beginning::Later;
        match linked.place.seq {
            0 => {
                let run = Run::first(linked)?;
                // What a process begins with is signed.
                linked.signature.map(|_| run).ok_or(Flaw::Forged)
            }
            _ if first => Ok(Run::later(linked)),
            _ => Err(Flaw::Headless),
        }
    }

    /// Vouches for all that was read of a process.
    fn vouch(&mut self, instance: Uuid, key: &PublicKey, event: Line) -> Result<(), Flaw> {
        let alone = self.runs.len() == 1;
        let Some(run) = self.runs.get_mut(&instance) else {
            return Ok(());
        };
        run.vouch(key)?;
        match event.event_name {
            Event::Checkpoint => Ok(()),
            Event::Stopped => {
                run.stop();
                Ok(())
            }
            Event::Started => match event.additional_event_data.previous {
                None => Ok(()),
                Some(previous) => match self.runs.get_mut(&previous.instance) {
                    Some(run) => run.confirm(&previous),
                    None if alone && self.known.beginning == Beginning::Later => Ok(()),
                    None => Err(Flaw::Unpreceded {
                        instance: previous.instance,
                        seq: previous.seq,
                    }),
                },
            },
        }
    }
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
struct Line {
    event_name: Event,
    additional_event_data: Signed,
}

/// Longest line, in bytes: a batch's record names up to 64 keys, and no text in one is longer than a
/// request's head.
const LONGEST: usize = 1 << 20;
/// What is read at once, in bytes.
const BUFFER: usize = 1 << 20;

#[cfg(test)]
mod tests;
