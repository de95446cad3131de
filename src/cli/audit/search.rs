//! `keybroker audit search`.

use std::fs::File;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;

use jiff::SignedDuration;
use jiff::Timestamp;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::Format;
use crate::cli::audit::view::View;
use crate::cli::audit::view::print;
use crate::cli::warn;
use crate::clock::Clock as _;
use crate::clock::System;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    /// Audit files, in the order in which they are read.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// About this key: tenants/{tenant}/keys/{key}, or keys/{key} of any tenant.
    #[arg(long)]
    key: Option<String>,
    /// By this principal.
    #[arg(long)]
    principal: Option<String>,
    /// With this outcome: `served`, or a reason like POLICY_DENIED, of the call or of an item.
    #[arg(long)]
    outcome: Option<String>,
    /// Of this method, or of EndKmsGrant, AuditStarted, AuditCheckpoint or AuditStopped.
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// Not before this time (2026-01-31T12:00:00Z), or so long ago (2h).
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Before this time, likewise.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// A line for people, or the record as it stands.
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut foreign = 0_u64;
    for path in &args.files {
        if !file(args, path, &mut foreign)? {
            return Ok(());
        }
    }
    if foreign > 0 {
        warn(format_args!("{foreign} lines are no records"));
    }
    Ok(())
}

/// Searches the file at `path`. `false` when nobody reads what is found any more.
fn file(args: &Args, path: &Path, foreign: &mut u64) -> Result<bool, Failure> {
    let unreadable = |error: io::Error| {
        let sentence = format!("cannot read {}: {error}", path.display());
        Failure::new(Exit::NoInput, sentence)
    };
    let mut file = BufReader::new(File::open(path).map_err(unreadable)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if file.read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
            return Ok(true);
        }
        let Some(view) = View::read(&line) else {
            *foreign += 1;
            continue;
        };
        if !args.matches(&view) {
            continue;
        }
        let shown = match args.output {
            Format::Json => print(line.strip_suffix(b"\n").unwrap_or(&line))?,
            Format::Text => print(view.line().as_bytes())?,
        };
        if !shown {
            return Ok(false);
        }
    }
}

impl Args {
    fn matches(&self, view: &View) -> bool {
        let is = |asked: &Option<String>, known: Option<&str>| {
            asked.as_deref().is_none_or(|asked| known == Some(asked))
        };
        is(&self.tenant, view.tenant.as_deref())
            && is(&self.principal, view.principal())
            && is(&self.event, Some(&view.event_name))
            && self.since.is_none_or(|since| since <= view.event_time)
            && self.until.is_none_or(|until| view.event_time < until)
            && self.key.as_deref().is_none_or(|key| named(view, key))
            && self
                .outcome
                .as_deref()
                .is_none_or(|asked| view.outcomes().any(|outcome| outcome == asked))
    }
}

fn named(view: &View, key: &str) -> bool {
    view.keys().any(|name| {
        let rest = name.strip_suffix(key);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
    })
}

/// A time, or how long ago it was.
fn time(text: &str) -> Result<Timestamp, String> {
    let ago = |span: SignedDuration| System.wall().checked_sub(span).ok();
    let span = text.parse().ok().and_then(ago);
    match span {
        Some(time) => Ok(time),
        None => text.parse().map_err(|error: jiff::Error| error.to_string()),
    }
}
