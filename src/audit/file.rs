//! The audit file: appended to, rotated by size, opened anew when it was moved or deleted.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read as _;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::StatxFlags;
use rustix::fs::statx;

use crate::audit::link::Linked;
use crate::audit::link::Place;
use crate::audit::out::Out;
use crate::audit::out::write;

/// A file that was opened by its name, and is the file of that name whenever a lot counts as
/// written.
pub(super) struct Named {
    path: PathBuf,
    file: File,
    id: Id,
    length: u64,
    rotation: Option<Rotation>,
    /// Set by whoever wants it opened anew.
    reopen: Arc<AtomicBool>,
}

/// When a file makes room for the next.
#[derive(Clone, Copy)]
pub(super) struct Rotation {
    /// Longest file, in bytes, unless a single lot is longer.
    pub(super) size: u64,
    /// Most files kept beside the one that is written.
    pub(super) keep: usize,
}

impl Named {
    /// Opens the file at `path`, made with mode 0600 if absent.
    pub(super) fn open(
        path: &Path,
        rotation: Option<Rotation>,
        reopen: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let file = open(path)?;
        Ok(Self {
            path: path.to_owned(),
            id: Id::of(&file)?,
            length: file.metadata()?.len(),
            file,
            rotation,
            reopen,
        })
    }

    /// Whether it is a regular file: a write to anything else can wait for a reader.
    pub(super) fn is_regular(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.is_file())
    }

    /// Ends half a line that a crash has left, and tells which record is the last, in this file or
    /// in the one that was rotated before it.
    pub(super) fn resume(&mut self) -> io::Result<Option<Place>> {
        let tail = tail(&self.path)?;
        if tail.last().is_some_and(|last| *last != b'\n') {
            let mut done = 0;
            self.append(b"\n", &mut done)?;
        }
        match last(&tail) {
            Some(place) => Ok(Some(place)),
            None => match tail_of_rotated(&self.path) {
                Ok(tail) => Ok(last(&tail)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    fn append(&mut self, lot: &[u8], done: &mut usize) -> io::Result<()> {
        let before = *done;
        let written = write(&mut self.file, lot, done);
        let grown = u64::try_from(done.saturating_sub(before)).unwrap_or_default();
        self.length = self.length.saturating_add(grown);
        written
    }

    /// Whether the name is still the file's.
    fn stands(&self) -> io::Result<bool> {
        match Id::at(&self.path) {
            Ok(id) => Ok(id == self.id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn open_anew(&mut self) -> io::Result<()> {
        let file = open(&self.path)?;
        self.id = Id::of(&file)?;
        self.length = file.metadata()?.len();
        self.file = file;
        Ok(())
    }

    /// Makes room when the file has none for `more` bytes. A failure to do so is no reason to lose
    /// records.
    fn rotate(&mut self, more: usize) {
        let Some(Rotation { size, keep }) = self.rotation else {
            return;
        };
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        if self.length == 0 || self.length.saturating_add(more) <= size {
            return;
        }
        let rotated = (0..keep)
            .rev()
            .try_for_each(|age| shift(&numbered(&self.path, age), &numbered(&self.path, age + 1)))
            .and_then(|()| self.open_anew());
        if let Err(error) = rotated {
            tracing::error!(%error, path = %self.path.display(), "the audit file is not rotated");
            // Tried again when as much has come again.
            self.length = 0;
        }
    }
}

impl Out for Named {
    fn write(&mut self, lot: &[u8], done: &mut usize) -> io::Result<()> {
        if self.reopen.swap(false, Ordering::Relaxed) && !self.stands()? {
            self.open_anew()?;
            *done = 0;
        }
        if *done == 0 {
            self.rotate(lot.len());
        }
        for _ in 0..ATTEMPTS {
            self.append(lot, done)?;
            if self.stands()? {
                return Ok(());
            }
            tracing::warn!(
                path = %self.path.display(),
                "the audit file was moved or deleted: it is made anew"
            );
            self.open_anew()?;
            *done = 0;
        }
        Err(io::Error::other(
            "the audit file is moved or deleted over and over",
        ))
    }
}

/// Which file a file is.
#[derive(PartialEq, Eq)]
struct Id {
    device: (u32, u32),
    inode: u64,
}

impl Id {
    fn of(file: &File) -> io::Result<Self> {
        Self::ask(file, Path::new(""), AtFlags::EMPTY_PATH)
    }

    fn at(path: &Path) -> io::Result<Self> {
        Self::ask(CWD, path, AtFlags::empty())
    }

    /// Not by `fs::metadata`, which asks for times as well: Linux gives a file whose times were
    /// looked at a new one with the next write, and every write would change its inode.
    fn ask(folder: impl AsFd, path: &Path, flags: AtFlags) -> io::Result<Self> {
        let found = statx(folder, path, flags, StatxFlags::INO)?;
        Ok(Self {
            device: (found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
        })
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// The file that was rotated `age` times: `audit.jsonl`, `audit.jsonl.1`, `audit.jsonl.2`.
pub(super) fn numbered(path: &Path, age: usize) -> PathBuf {
    match age {
        0 => path.to_owned(),
        age => {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{age}"));
            name.into()
        }
    }
}

fn shift(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

fn tail_of_rotated(path: &Path) -> io::Result<Vec<u8>> {
    tail(&numbered(path, 1))
}

/// The end of a file, with its last records; nothing of what is no regular file.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if !fs::metadata(path)?.is_file() {
        return Ok(bytes);
    }
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last record in `tail`.
fn last(tail: &[u8]) -> Option<Place> {
    let mut lines = tail.rsplit(|byte| *byte == b'\n');
    lines.find_map(|line| Linked::parse(line).map(|linked| linked.place))
}

/// How often a lot is written before the file counts as gone.
const ATTEMPTS: usize = 3;
/// Holds several of the longest records, in bytes.
const TAIL: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn named(path: &Path, rotation: Option<Rotation>) -> Named {
        Named::open(path, rotation, Arc::default()).unwrap()
    }

    fn put(file: &mut Named, lot: &str) {
        let mut done = 0;
        file.write(lot.as_bytes(), &mut done).unwrap();
        assert_eq!(done, lot.len());
    }

    #[test]
    fn a_file_that_was_deleted_or_moved_is_made_anew_with_the_whole_lot() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut file = named(&path, None);
        put(&mut file, "one\n");
        fs::remove_file(&path).unwrap();
        put(&mut file, "two\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        let moved = folder.path().join("moved");
        fs::rename(&path, &moved).unwrap();
        put(&mut file, "three\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        // It may have been on its way into the old one.
        assert_eq!(fs::read_to_string(&moved).unwrap(), "two\nthree\n");
    }

    #[test]
    fn who_moves_the_file_and_says_so_finds_nothing_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let reopen = Arc::new(AtomicBool::new(false));
        let mut file = Named::open(&path, None, Arc::clone(&reopen)).unwrap();
        put(&mut file, "one\n");
        let moved = folder.path().join("moved");
        fs::rename(&path, &moved).unwrap();
        reopen.store(true, Ordering::Relaxed);
        put(&mut file, "two\n");
        assert_eq!(fs::read_to_string(&moved).unwrap(), "one\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
    }

    #[test]
    fn a_full_file_makes_room_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut file = named(&path, Some(Rotation { size: 8, keep: 2 }));
        for lot in ["1\n", "2\n3\n4\n", "5\n", "longer than a file\n", "6\n"] {
            put(&mut file, lot);
        }
        let read = |age| fs::read_to_string(numbered(&path, age)).ok();
        assert_eq!(read(0).as_deref(), Some("6\n"));
        assert_eq!(read(1).as_deref(), Some("longer than a file\n"));
        assert_eq!(read(2).as_deref(), Some("5\n"));
        assert_eq!(read(3), None);
    }

    #[test]
    fn a_file_that_cannot_be_rotated_takes_records_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        fs::create_dir_all(numbered(&path, 1).join("in the way")).unwrap();
        let mut file = named(&path, Some(Rotation { size: 4, keep: 1 }));
        for lot in ["one\n", "two\n"] {
            put(&mut file, lot);
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn half_a_line_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        fs::write(&path, "half a li").unwrap();
        let mut file = named(&path, None);
        assert_eq!(file.resume().unwrap(), None);
        assert_eq!(fs::read_to_string(&path).unwrap(), "half a li\n");
    }
}
