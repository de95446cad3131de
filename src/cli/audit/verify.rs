//! `keybroker audit verify`.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use crate::audit::Hash;
use crate::audit::verify;
use crate::audit::verify::Beginning;
use crate::audit::verify::Broken;
use crate::audit::verify::Countersigned;
use crate::audit::verify::End;
use crate::audit::verify::Known;
use crate::audit::verify::Report;
use crate::audit::verify::Stretch;
use crate::audit::verify::Trust;
use crate::audit::verify::Verdict;
use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::Format;
use crate::cli::chain;
use crate::cli::yield_bytes;
use crate::crypto::signature::PublicKey;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    /// Audit files, rotated ones among them; the order does not matter.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A key that may have signed or countersigned, as PEM: what `keybroker audit public-key`
    /// prints. Without one, the keys that the files name are taken for true. May be given several
    /// times.
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
    /// A record that must be there, by its number and hash, learned from elsewhere. May be given
    /// several times.
    #[arg(long, value_name = "SEQ:HASH")]
    expect: Vec<Expected>,
    /// The files begin anywhere: what stood before is gone, or was left out. The first record of all
    /// cannot be proved then.
    #[arg(long)]
    partial: bool,
    /// The most records at the end of a process's that no given key may vouch for: those behind the
    /// last countersignature. More of them are no fault otherwise, but an open end.
    #[arg(long, value_name = "N", requires = "public_key")]
    most_unvouched: Option<u64>,
    /// How to print what was found.
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Clone, Copy)]
struct Expected(u64, Hash);

impl FromStr for Expected {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once(':').and_then(|(seq, hash)| {
            let (seq, hash) = (seq.parse().ok()?, hash.parse().ok()?);
            Some(Self(seq, hash))
        });
        parts.ok_or("not a number, a colon and a hash of 43 characters")
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let keys: Result<Vec<PublicKey>, Failure> = args.public_key.iter().map(public_key).collect();
    let known = Known {
        keys: keys?,
        expected: args
            .expect
            .iter()
            .map(|Expected(seq, hash)| (*seq, *hash))
            .collect(),
        beginning: match args.partial {
            true => Beginning::Later,
            false => Beginning::First,
        },
        most_unvouched: args.most_unvouched,
    };
    let report = verify::files(&args.files, known)
        .map_err(|error| Failure::new(Exit::NoInput, chain(&error)))?;
    let text = match args.output {
        Format::Json => format!("{}\n", serde_json::json!(report)),
        Format::Text => text(&report),
    };
    yield_bytes(text.as_bytes())?;
    match &report.broken {
        Some(broken) => Err(Failure::new(Exit::Data, sentence(broken))),
        None => Ok(()),
    }
}

fn public_key(path: &PathBuf) -> Result<PublicKey, Failure> {
    let shown = path.display();
    let pem = fs::read(path)
        .map_err(|error| Failure::new(Exit::NoInput, format!("cannot read {shown}: {error}")))?;
    PublicKey::from_pem(&pem).map_err(|error| {
        let sentence =
            format!("{shown}: {error} in PEM: make it with `keybroker audit public-key`");
        Failure::new(Exit::Data, sentence)
    })
}

fn text(report: &Report) -> String {
    let verdict = match report.verdict {
        Verdict::Broken => "broken",
        Verdict::Open => "unbroken, with an open end",
        Verdict::Whole => "whole",
    };
    let mut text = format!("{verdict}: {} records\n", report.records);
    for chain in &report.chains {
        // Err: memory takes all.
        let _ = writeln!(text, "{}", line(chain));
    }
    if report.torn > 0 {
        let _ = writeln!(
            text,
            "{} lines that a crash has cut: their calls were not answered",
            report.torn
        );
    }
    text
}

fn line(chain: &Stretch) -> String {
    let Stretch {
        instance,
        first,
        last,
        hash,
        end,
        unsigned,
        unvouched,
        repeated,
        key,
        trust,
        countersigned,
    } = chain;
    let mut line = format!("{instance}: {first} to {last}, {last}:{hash}");
    line += match end {
        End::Confirmed => ", no last record, but the next process has found this end",
        End::Open => ", no last record: it runs, has crashed, or its end was cut off",
        End::Stopped => ", ended in order",
    };
    if *unsigned > 0 {
        line += &format!(", the last {unsigned} not signed");
    }
    if let Some(last) = unvouched.filter(|last| last > unsigned) {
        line += &format!(", the last {last} vouched for by no key that was given");
    }
    if *repeated > 0 {
        line += &format!(", {repeated} twice since the file was moved");
    }
    if let Some(key) = key {
        line += &format!(", signed by {key}{}", known(trust.unwrap_or(Trust::Found)));
    }
    if let Some(Countersigned {
        last,
        behind,
        key,
        arn,
        trust,
    }) = countersigned
    {
        let known = known(*trust);
        line += &format!(
            ", countersigned up to {last} ({behind} before the end) by {arn}, {key}{known}"
        );
    }
    line
}

fn known(trust: Trust) -> &'static str {
    match trust {
        Trust::Found => ", which only the file names: see --public-key",
        Trust::Given => ", which was given",
        Trust::Vouched => ", which a key that was given vouches for",
    }
}

fn sentence(broken: &Broken) -> String {
    let Broken {
        file,
        line,
        instance,
        seq,
        what,
    } = broken;
    let mut sentence = String::new();
    if let (Some(file), Some(line)) = (file, line) {
        sentence += &format!("{}:{line}: ", file.display());
    }
    if let (Some(instance), Some(seq)) = (instance, seq) {
        sentence += &format!("record {seq} of {instance}: ");
    }
    sentence + what
}
