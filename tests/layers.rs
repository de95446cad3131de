//! The shape of the source: imports point one way, and named crates stay in their rooms.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::slice;

/// A room imports those before it, never those after: what stands first can be read, tested and
/// trusted without the rest. From the tools that know nothing of the service, over who calls and
/// what a message is, to keys and who may use them; then the operations, which know no gRPC; then
/// gRPC, which knows no files; then what joins them all.
const ORDER: [&str; 26] = [
    "sync",
    "clock",
    "mem",
    "crypto",
    "name",
    "strict",
    "metrics",
    "trace",
    "identity",
    "message",
    "kms",
    "quota",
    "directory",
    "grants",
    "policy",
    "datakeys",
    "store",
    "audit",
    "error",
    "broker",
    "telemetry",
    "grpc",
    "admin",
    "config",
    "cli",
    "main",
];

/// Crates (with `*`, all whose names begin so) or modules of crates, and the only places that name
/// them: so that each can be reviewed, and replaced, in one place.
const HOMES: [(&str, &[&str]); 15] = [
    ("aws_config", &["kms/aws"]),
    ("aws_credential_types", &["kms/aws"]),
    ("aws_lc_rs::aead", &["crypto/aead"]),
    ("aws_sdk_*", &["kms/aws"]),
    ("aws_smithy_*", &["kms/aws"]),
    ("http", &["grpc", "admin"]),
    ("hyper*", &["grpc", "admin"]),
    ("moka", &["datakeys"]),
    ("opentelemetry", &["metrics", "telemetry", "trace"]),
    ("opentelemetry_*", &["telemetry"]),
    ("prometheus", &["telemetry"]),
    ("rcgen", &["cli/dev"]),
    ("sqlx", &["store"]),
    ("tonic*", &["grpc", "telemetry"]),
    ("x509_parser", &["identity", "grpc/tls"]),
];

#[test]
fn rooms_are_declared_in_the_order_of_their_imports() {
    let lib = fs::read_to_string(source().join("lib.rs")).unwrap();
    let declared: Vec<&str> = lib
        .lines()
        .map(|line| line.strip_prefix("pub ").unwrap_or(line))
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    let (main, rooms) = ORDER.split_last().unwrap();
    assert_eq!((declared.as_slice(), *main), (rooms, "main"));
}

#[test]
fn imports_point_one_way() {
    let mut wrong = Vec::new();
    for file in files() {
        for (line, imported) in file.imports() {
            if rank(&imported) > rank(&file.module[0]) {
                let path = file.path.display();
                wrong.push(format!(
                    "{path}:{line}: {} imports {imported}",
                    file.module[0]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn named_crates_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for file in files() {
        for (number, line) in &file.code {
            for (name, homes) in HOMES {
                let at_home = homes.iter().any(|home| file.is_in(home));
                if !at_home && names_crate(line, name) {
                    wrong.push(format!("{}:{number}: {name}", file.path.display()));
                }
            }
            if !file.is_in("grpc") && line.contains("grpc::pb") {
                wrong.push(format!("{}:{number}: generated types", file.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_one_room_opens_unsafe_code() {
    let folders = ["src", "tests", "benches", "fuzz/fuzz_targets"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let opens = |path: &PathBuf| {
        // A lint's attribute may stand on several lines.
        let text: String = fs::read_to_string(path)
            .unwrap()
            .split_whitespace()
            .collect();
        ["allow(", "expect(", "warn("]
            .iter()
            .any(|lint| text.contains(&format!("{lint}unsafe_code")))
    };
    let opening: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| below(&root.join(folder)))
        .filter(opens)
        .collect();
    assert_eq!(opening, [root.join("src/mem.rs")]);
}

#[test]
fn large_files_are_told_of() {
    for path in below(&source()) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > 400 {
            println!("{lines} lines: {}", path.display());
        }
    }
}

#[test]
fn the_reader_of_imports_sees_what_it_should() {
    let file = File::new(
        PathBuf::from("kms/aws/codes.rs"),
        "\
//! Not [`crate::cli`].
use crate::crypto::Secret;
use super::super::super::grpc::pb;
use super::super::Error; // crate::config
type Long = crate::policy::Permit;
#[cfg(test)]
mod tests {
    use crate::broker::Broker;
}
use other_crate::clock::Clock;
use crate::name;
#[cfg(test)]
use crate::main::main;
",
    );
    let imports: Vec<_> = file.imports();
    let seen: Vec<_> = imports.iter().map(|(n, room)| (*n, &**room)).collect();
    assert_eq!(
        seen,
        [(2, "crypto"), (3, "grpc"), (5, "policy"), (11, "name")]
    );
    assert!(names_crate("use tonic::Code;", "tonic*"));
    assert!(names_crate("x: tonic_types::Y", "tonic*"));
    assert!(!names_crate("use rustls::tonic::Code;", "tonic*"));
    assert!(!names_crate("electronic::x", "tonic*"));
    assert!(!names_crate("let http = 1;", "http"));
    assert!(!names_crate("use http_body_util::Limited;", "http"));
    assert!(names_crate("use aws_lc_rs::aead::Tag;", "aws_lc_rs::aead"));
    assert!(!names_crate("aws_lc_rs::hkdf::x", "aws_lc_rs::aead"));
}

/// A file without comments and test code.
struct File {
    path: PathBuf,
    /// Its module, from the room on.
    module: Vec<String>,
    /// Numbered lines.
    code: Vec<(usize, String)>,
    /// Modules that are declared in it for tests alone.
    tests: BTreeSet<String>,
}

impl File {
    fn new(path: PathBuf, text: &str) -> Self {
        let module = path.with_extension("");
        let module = module.iter().map(|part| part.to_str().unwrap().to_owned());
        let mut file = Self {
            module: module.collect(),
            path,
            code: Vec::new(),
            tests: BTreeSet::new(),
        };
        let mut lines = (1..).zip(text.lines());
        while let Some((number, line)) = lines.next() {
            if line.trim() == "#[cfg(test)]" {
                let item = lines.next().map(|(_, item)| item).unwrap_or_default();
                if let Some(name) = item.trim().strip_prefix("mod ") {
                    file.tests
                        .insert(name.trim_end_matches([';', '{', ' ']).into());
                }
                // An item ends with its line, or with a brace in its own column.
                let column = item.len() - item.trim_start().len();
                if !item.ends_with(';') {
                    let end = format!("{}}}", " ".repeat(column));
                    lines.find(|(_, line)| *line == end);
                }
                continue;
            }
            let code = line.split("//").next().unwrap_or_default();
            file.code.push((number, code.to_owned()));
        }
        file
    }

    /// The rooms that it names, with the lines.
    fn imports(&self) -> Vec<(usize, String)> {
        let mut imports = Vec::new();
        for (number, line) in &self.code {
            for root in ["crate::", "keybroker::"] {
                imports.extend(after(line, root).map(|room| (*number, room)));
            }
            // As many steps up as the module is deep lead to the root.
            let up = "super::".repeat(self.module.len());
            imports.extend(after(line, &up).map(|room| (*number, room)));
        }
        imports.retain(|(_, room)| ORDER.contains(&room.as_str()));
        imports
    }

    /// Whether it is the module `home`, or within it.
    fn is_in(&self, home: &str) -> bool {
        self.path.with_extension("").starts_with(home)
    }
}

/// What stands behind each `path` in `line` that begins as one.
fn after<'a>(line: &'a str, path: &str) -> impl Iterator<Item = String> + use<'a> {
    let places: Vec<(usize, usize)> = line
        .match_indices(path)
        .map(|(at, path)| (at, at + path.len()))
        .collect();
    places
        .into_iter()
        .filter(|(at, _)| begins(line, *at))
        .map(|(_, end)| {
            let name = line[end..].chars();
            name.take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect()
        })
}

/// Whether `line` has a path that begins with `name`.
fn names_crate(line: &str, name: &str) -> bool {
    let (name, open) = match name.strip_suffix('*') {
        Some(name) => (name, true),
        None => (name, false),
    };
    line.match_indices(name).any(|(at, _)| {
        let rest = &line[at + name.len()..];
        let part = |c: char| open && (c.is_ascii_alphanumeric() || c == '_');
        begins(line, at) && rest.trim_start_matches(part).starts_with("::")
    })
}

/// Whether what stands at `at` is no part of a longer name or path.
fn begins(line: &str, at: usize) -> bool {
    !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

fn rank(room: &str) -> usize {
    let rank = ORDER.iter().position(|one| *one == room);
    rank.unwrap_or_else(|| panic!("the room {room} has no place in ORDER"))
}

/// The files of the source, but for `lib.rs` and test modules.
fn files() -> Vec<File> {
    let source = source();
    let mut files = BTreeMap::new();
    for path in below(&source) {
        let text = fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(&source).unwrap().to_owned();
        let file = File::new(path, &text);
        files.insert(file.module.clone(), file);
    }
    files.remove(["lib".to_owned()].as_slice());
    let tests: Vec<Vec<String>> = files
        .values()
        .flat_map(|file| {
            let within = |name: &String| [file.module.as_slice(), slice::from_ref(name)].concat();
            file.tests.iter().map(within).collect::<Vec<_>>()
        })
        .collect();
    files.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
    assert!(files.len() > 30, "the source is not where it was");
    files.into_values().collect()
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(below(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}
