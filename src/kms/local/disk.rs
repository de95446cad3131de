//! Files that have one holder and are replaced whole or not at all.

use std::fs::File;
use std::fs::OpenOptions;
use std::fs::TryLockError;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tempfile::Builder;
use tempfile::NamedTempFile;

/// The lock of a keyring, held until dropped.
pub(super) struct Lock(File);

impl Drop for Lock {
    /// Closing the file is not enough: a process that was started a moment ago, and has not yet
    /// run its program, holds a copy of it.
    fn drop(&mut self) {
        // Closed, it is unlocked before long all the same.
        let _ = self.0.unlock();
    }
}

/// Takes the lock of the keyring at `path`. Its file lies beside the keyring, which is replaced
/// by each write, and is never removed: removal would let two holders lock two files.
pub(super) fn lock(path: &Path) -> Result<Lock, TryLockError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(name)
        .map_err(TryLockError::Error)?;
    file.try_lock()?;
    Ok(Lock(file))
}

/// The file's first `limit` bytes, or all.
pub(super) fn read(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A new file beside `path` that holds `bytes`, on disk, readable by its owner alone; gone when
/// dropped.
pub(super) fn written(path: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut new = Builder::new()
        .prefix(".keyring-")
        .tempfile_in(folder(path))?;
    new.write_all(bytes)?;
    new.as_file().sync_all()?;
    Ok(new)
}

/// Puts on disk which file `path` names.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_holder_whoever_has_a_copy_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyring");
        let held = lock(&path).unwrap();
        // What a process inherits when it is started.
        let _copy = held.0.try_clone().unwrap();
        assert!(matches!(lock(&path), Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(lock(&path).is_ok());
    }
}
