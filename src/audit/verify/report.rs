//! What is found in audit files.

use std::path::Path;
use std::path::PathBuf;

use serde::Serialize;
use uuid::Uuid;

use crate::audit::link::Hash;
use crate::audit::link::Place;

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
    /// ended; and nothing was altered, but for what stands behind the last record of a chain that a
    /// given key vouches for, where that is more than an orderly end leaves.
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
    /// Records at its end that no given key vouches for, where keys are given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unvouched: Option<u64>,
    /// Records that stand twice, since their file was moved while they were written.
    pub repeated: u64,
    /// The name of the key that signed; none where nothing here is signed.
    pub key: Option<String>,
    /// How it is known.
    pub trust: Option<Trust>,
    /// What another key has signed of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub countersigned: Option<Countersigned>,
}

/// What a key in a KMS has signed of a chain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Countersigned {
    /// The number of the last record that it vouches for.
    pub last: u64,
    /// Records behind that.
    pub behind: u64,
    /// The name of the key.
    pub key: String,
    /// Its ARN, as the file names it.
    pub arn: String,
    /// How it is known.
    pub trust: Trust,
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
    /// One that was given vouches for it, by a countersignature, or by the next process's.
    Vouched,
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
    pub(super) fn at(path: &Path, line: u64, place: Option<&Place>, flaw: Flaw) -> Self {
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
pub(super) enum Flaw {
    #[error("the record, or what stands before it, was altered")]
    Altered,
    #[error(
        "the process has signed with a key that was not given, and that no key that was given has \
         countersigned"
    )]
    Foreign,
    #[error("the signature is not good, or not by the key of this process")]
    Forged,
    #[error("the records before it, from the first of this process on, are missing")]
    Headless,
    #[error("no record: the line was altered, or is longer than any")]
    NoRecord,
    #[error("the countersignature is not good, or not of a record that stands here")]
    Miscountersigned,
    #[error("the records {from} to {to} before it are missing")]
    Missing { from: u64, to: u64 },
    #[error("the record is out of place: {expected} would be next")]
    Misplaced { expected: u64 },
    #[error(
        "the process {instance} has written thousands of records behind {seq}, which this one found to \
         be its last: either they are forged, or both were writing for long"
    )]
    Outrun { instance: Uuid, seq: u64 },
    #[error("the record stands behind the last one of its process")]
    Posthumous,
    #[error("the record {seq} with the hash {hash}, which was expected, is not in these files")]
    Unfound { seq: u64, hash: Hash },
    #[error(
        "the process {instance} had written up to {seq} before this one began, which is missing"
    )]
    Unpreceded { instance: Uuid, seq: u64 },
    #[error(
        "no key that was given vouches for the last {last} records of this process, and {most} may be \
         so at most"
    )]
    Unvouched { last: u64, most: u64 },
    #[error("the records of {instance} are not those that stood there when this process began")]
    Replaced { instance: Uuid },
}
