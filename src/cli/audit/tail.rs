//! `keybroker audit tail`.

use std::fs;
use std::fs::File;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::cli::ConfigArg;
use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::audit::view::View;
use crate::cli::audit::view::print;
use crate::config::Config;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// The audit file; that of the configuration when not given.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Goes on with what is written from now on, into the file that has its name then.
    #[arg(short, long)]
    follow: bool,
    /// How many records to begin with.
    #[arg(short = 'n', long, value_name = "COUNT", default_value = "20")]
    records: usize,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let path = match &args.file {
        Some(path) => path.clone(),
        None => configured(&args.config.config)?,
    };
    let unreadable = |error: io::Error| {
        let sentence = format!("cannot read {}: {error}", path.display());
        Failure::new(Exit::NoInput, sentence)
    };
    let mut reading = Reading::open(&path).map_err(unreadable)?;
    let last = reading.last(args.records).map_err(unreadable)?;
    for line in last {
        if !show(&line)? {
            return Ok(());
        }
    }
    if !args.follow {
        return Ok(());
    }
    loop {
        match reading.next(&path).map_err(unreadable)? {
            Some(line) => {
                if !show(&line)? {
                    return Ok(());
                }
            }
            None => thread::sleep(PAUSE),
        }
    }
}

fn configured(path: &Path) -> Result<PathBuf, Failure> {
    let config = Config::load(path).map_err(|error| Failure::config(&error))?;
    config.audit.file.ok_or_else(|| {
        let sentence = format!("{} names no audit.file: name one here", path.display());
        Failure::new(Exit::Usage, sentence)
    })
}

fn show(line: &[u8]) -> Result<bool, Failure> {
    match View::read(line) {
        Some(view) => print(view.line().as_bytes()),
        // The end of a line whose beginning was not read, or what a crash has left.
        None => Ok(true),
    }
}

/// A file that is read while it grows.
struct Reading {
    file: BufReader<File>,
    /// Its inode.
    id: u64,
    /// A line whose end is not there yet.
    line: Vec<u8>,
}

impl Reading {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self {
            id: file.metadata()?.ino(),
            file: BufReader::new(file),
            line: Vec::new(),
        })
    }

    /// The last lines; what is read next stands behind them.
    fn last(&mut self, lines: usize) -> io::Result<Vec<Vec<u8>>> {
        let length = self.file.get_ref().metadata()?.len();
        self.file
            .seek(SeekFrom::Start(length.saturating_sub(LOOKED_BACK)))?;
        let mut bytes = Vec::new();
        (&mut self.file).take(LOOKED_BACK).read_to_end(&mut bytes)?;
        let mut all: Vec<Vec<u8>> = bytes
            .split_inclusive(|b| *b == b'\n')
            .map(Vec::from)
            .collect();
        if let Some(cut) = all.pop_if(|line| !line.ends_with(b"\n")) {
            self.line = cut;
        }
        let from = all.len().saturating_sub(lines);
        Ok(all.split_off(from))
    }

    /// The next line, if it is there.
    fn next(&mut self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.file.read_until(b'\n', &mut self.line)?;
        if self.line.ends_with(b"\n") {
            return Ok(Some(std::mem::take(&mut self.line)));
        }
        let position = self.file.stream_position()?;
        match fs::metadata(path) {
            Ok(metadata) if metadata.ino() != self.id || metadata.len() < position => {
                *self = Self::open(path)?;
                Ok(None)
            }
            Ok(_) => Ok(None),
            // It comes back with the next record.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// How far back the last records are looked for, in bytes.
const LOOKED_BACK: u64 = 4 << 20;
/// Between two looks at a file.
const PAUSE: Duration = Duration::from_millis(250);
