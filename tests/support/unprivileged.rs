//! Runs a test under limits that its own process escapes: as a user whom file permissions bind,
//! or without space on the disk.

use std::env;
use std::fs;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

/// Runs `check` in a fresh folder, as somebody who is not root.
///
/// Root runs the calling test, named `test` with its modules, once more as `nobody`. Fails when
/// that can't be done.
pub fn run(test: &str, check: impl FnOnce(&Path)) {
    run_prepared(test, |_| (), check);
}

/// [`run`], after `prepare` in the folder as the user who started the tests: somebody else may not
/// even find what was built.
pub fn run_prepared(test: &str, prepare: impl FnOnce(&Path), check: impl FnOnce(&Path)) {
    if let Some(folder) = env::var_os(RERUN) {
        return check(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    if !is_root() {
        return check(folder.path());
    }
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let setpriv = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    rerun(test, &setpriv, folder.path());
}

/// Runs `prepare` in a fresh folder, then `check` in a process that can put no byte into any
/// file, which is what a full disk does.
pub fn run_without_space(test: &str, prepare: impl FnOnce(&Path), check: impl FnOnce(&Path)) {
    if let Some(folder) = env::var_os(RERUN) {
        return check(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    // Ignored, the signal leaves the failing write to report itself.
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""];
    rerun(test, &limited, folder.path());
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Runs `test` of this binary through the command `wrapper`, which finds `folder` in its environment.
fn rerun(test: &str, wrapper: &[&str], folder: &Path) {
    // As standard input the binary can be run by a user who may not enter its folder.
    let binary = File::open(env::current_exe().unwrap()).unwrap();
    let output = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .args(["/proc/self/fd/0", "--exact", test])
        .current_dir(folder)
        .env(RERUN, folder)
        .stdin(binary)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    // A misspelt name would run nothing, and succeed.
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{wrapper:?} {test}:\n{text}\n{errors}");
}

const NOBODY: u32 = 65534;
const RERUN: &str = "KEYBROKER_TEST_RERUN";
