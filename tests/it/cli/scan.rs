//! Looks for secrets in texts and in the memory of another process, in all the forms in which they
//! travel.

use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use base64::prelude::BASE64_URL_SAFE;

/// Secrets to look for: pieces of them, since what is freed loses its first bytes to the allocator.
pub(super) struct Secrets {
    pieces: HashMap<Piece, (usize, &'static str)>,
    /// Whether any piece begins with these three bytes: most of the memory is passed over by it.
    starts: Vec<bool>,
    count: usize,
}

/// A piece of a secret that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Which secret.
    pub(super) secret: usize,
    /// In which form.
    pub(super) form: &'static str,
    /// Where.
    pub(super) address: u64,
    /// In what.
    pub(super) mapping: String,
}

/// A part of a process's memory.
#[derive(Default)]
pub(super) struct Mapping {
    pub(super) range: Range<u64>,
    /// Rights and file: `rw-p [heap]`.
    pub(super) name: String,
    /// Its figures and flags.
    fields: HashMap<String, String>,
}

impl Mapping {
    /// A figure in bytes.
    pub(super) fn bytes(&self, field: &str) -> u64 {
        let kib = self.fields[field].strip_suffix(" kB").unwrap();
        kib.parse::<u64>().unwrap() << 10
    }

    /// Whether it has the flag of two letters.
    pub(super) fn has(&self, flag: &str) -> bool {
        self.fields["VmFlags"].split(' ').any(|one| one == flag)
    }
}

/// The memory of the process `id`.
pub(super) fn mappings(id: u32) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    let smaps = fs::read_to_string(format!("/proc/{id}/smaps")).unwrap();
    for line in smaps.lines() {
        let (first, rest) = line.split_once(' ').unwrap();
        if let Some(field) = first.strip_suffix(':') {
            let fields = &mut mappings.last_mut().unwrap().fields;
            fields.insert(field.to_owned(), rest.trim().to_owned());
            continue;
        }
        let (begin, end) = first.split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        let words: Vec<&str> = rest.split_whitespace().collect();
        mappings.push(Mapping {
            range: address(begin)..address(end),
            name: [&words[..1], &words[4..]].concat().join(" "),
            ..Mapping::default()
        });
    }
    mappings
}

type Piece = [u8; PIECE];

impl Secrets {
    pub(super) fn new() -> Self {
        Self {
            pieces: HashMap::new(),
            starts: vec![false; 1 << 24],
            count: 0,
        }
    }

    /// Adds a random secret of 18 bytes or more; its number.
    pub(super) fn add(&mut self, secret: &[u8]) -> usize {
        let number = self.count;
        self.count += 1;
        let lower: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![("raw", secret.to_vec())];
        forms.push(("upper-case hex", lower.to_ascii_uppercase().into()));
        forms.push(("lower-case hex", lower.into()));
        // What stands before it in the text moves the groups of three by 0, 1 or 2 bytes.
        for skipped in 0..3 {
            let whole = (secret.len() - skipped) / 3 * 3;
            let groups = &secret[skipped..skipped + whole];
            forms.push(("base64", BASE64_STANDARD.encode(groups).into()));
            forms.push(("base64url", BASE64_URL_SAFE.encode(groups).into()));
        }
        let list = format!("{secret:?}");
        let list = list.trim_matches(['[', ']']);
        forms.push(("list", list.into()));
        forms.push(("dense list", list.replace(' ', "").into()));
        forms.push(("escaped", secret.escape_ascii().to_string().into()));
        for (form, bytes) in forms {
            for piece in [bytes.first_chunk(), bytes.last_chunk()] {
                let piece: &Piece = piece.unwrap();
                self.starts[start(piece)] = true;
                self.pieces.entry(*piece).or_insert((number, form));
            }
        }
        number
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// What of them is in the writable memory of the process `id`, which should stand still.
    pub(super) fn find_in(&self, id: u32) -> Vec<Found> {
        let memory = File::open(format!("/proc/{id}/mem")).unwrap();
        let mut found = Vec::new();
        let mut looked_at = 0;
        for mapping in mappings(id) {
            if !mapping.name.starts_with("rw") {
                continue;
            }
            let length = mapping.range.end - mapping.range.start;
            let mut bytes = vec![0; length as usize];
            // Some can't be read by anybody.
            if memory
                .read_exact_at(&mut bytes, mapping.range.start)
                .is_ok()
            {
                looked_at += bytes.len();
                self.find(&bytes, &mapping, &mut found);
            }
        }
        assert!(looked_at > 1 << 20, "{looked_at} bytes are no server");
        found
    }

    /// What of them is in `bytes`, which is called `name`.
    pub(super) fn find_in_text(&self, bytes: &[u8], name: &str) -> Vec<Found> {
        let mapping = Mapping {
            name: name.to_owned(),
            ..Mapping::default()
        };
        let mut found = Vec::new();
        self.find(bytes, &mapping, &mut found);
        found
    }

    fn find(&self, bytes: &[u8], mapping: &Mapping, found: &mut Vec<Found>) {
        let mut at = 0;
        while let Some(window) = bytes[at..].first_chunk::<PIECE>() {
            if u128::from_ne_bytes(*window) == 0 {
                // No piece begins with so many zeros, and most of memory is zeros.
                at += PIECE - 2;
                continue;
            }
            if self.starts[start(window)]
                && let Some((secret, form)) = self.pieces.get(window)
            {
                found.push(Found {
                    secret: *secret,
                    form,
                    address: mapping.range.start + at as u64,
                    mapping: mapping.name.clone(),
                });
            }
            at += 1;
        }
    }
}

fn start(piece: &Piece) -> usize {
    usize::from(piece[0]) << 16 | usize::from(piece[1]) << 8 | usize::from(piece[2])
}

/// Long enough that chance doesn't find one.
const PIECE: usize = 16;

#[test]
fn the_reader_finds_every_form_at_every_place() {
    let secret: Vec<u8> = (0x80..0xa0).collect();
    let mut secrets = Secrets::new();
    let number = secrets.add(&secret);
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    for before in 0..20 {
        let mut text = vec![b'.'; before];
        text.extend(&secret);
        let forms = [
            ("raw", text.clone()),
            ("lower-case hex", hex.clone().into_bytes()),
            ("upper-case hex", hex.to_uppercase().into_bytes()),
            ("list", format!("{text:?}").into_bytes()),
            ("dense list", serde_json::to_vec(&text).unwrap()),
            ("escaped", text.escape_ascii().to_string().into_bytes()),
            ("base64", BASE64_STANDARD.encode(&text).into_bytes()),
            (
                "base64url",
                BASE64_URL_SAFE
                    .encode([&text[..], &[0xff]].concat())
                    .into_bytes(),
            ),
        ];
        for (form, bytes) in forms {
            let bytes = [vec![0; before], bytes, vec![0; 40]].concat();
            let mut found = Vec::new();
            secrets.find(&bytes, &Mapping::default(), &mut found);
            let found: Vec<_> = found
                .iter()
                .map(|found| (found.secret, found.form))
                .collect();
            // A text without the two letters in which they differ is the same in both.
            assert_eq!(found.len(), 2, "{form} {before} {found:?}");
            assert!(found.iter().all(|(secret, _)| *secret == number));
        }
    }
    let mut found = Vec::new();
    secrets.find(&secret[1..31], &Mapping::default(), &mut found);
    assert_eq!(found, []);
}
