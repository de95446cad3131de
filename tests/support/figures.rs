//! Figures that tests and benchmarks leave behind: flat JSON objects in the target folder, written
//! by any number of processes at once.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;

use serde_json::Map;
use serde_json::Value;

/// Merges `figures` into `figures/{name}.json` in the target folder: other keys in the file stay.
pub fn record<V: Into<Value>>(name: &str, figures: impl IntoIterator<Item = (&'static str, V)>) {
    let folder = target().join("figures");
    fs::create_dir_all(&folder).expect("a folder for figures");
    let lock = File::create(folder.join(format!("{name}.lock"))).expect("a lock file");
    lock.lock().expect("the lock");

    let path = folder.join(format!("{name}.json"));
    let mut object: Map<String, Value> = match fs::read(&path) {
        Ok(known) => serde_json::from_slice(&known).expect("a flat object"),
        Err(_) => Map::new(),
    };
    for (key, value) in figures {
        object.insert(key.to_owned(), value.into());
    }
    let mut file = tempfile::NamedTempFile::new_in(&folder).expect("a temporary file");
    serde_json::to_writer_pretty(&mut file, &object).expect("the figures written");
    file.persist(&path).expect("the figures in place");
}

fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
    }
}
