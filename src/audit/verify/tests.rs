mod countersigned;

use std::sync::Arc;

use jiff::Timestamp;

use crate::audit::chain::Chain;
use crate::audit::countersign::Countersignature;
use crate::audit::key::Key;
use crate::clock::Manual;
use crate::crypto::signature::SigningKey;

use super::*;

/// Two processes, one after another: 0 to 9 with a signed record in the middle, and 0 to 8 with
/// three at the end that nothing vouches for.
struct Trail {
    lines: Vec<Vec<u8>>,
    keys: Vec<PublicKey>,
}

impl Trail {
    fn new() -> Self {
        let mut text = Vec::new();
        let (mut first, key) = Process::new(None);
        first.fill(0..4, &mut text);
        first.chain.seal(b"\n", &mut text);
        first.fill(4..7, &mut text);
        first.chain.stop(&mut text);
        let (mut second, other) = Process::new(first.chain.last());
        second.fill(7..11, &mut text);
        second.chain.seal(b"\n", &mut text);
        second.fill(11..14, &mut text);
        let lines: Vec<_> = text
            .split_inclusive(|b| *b == b'\n')
            .map(Vec::from)
            .collect();
        assert_eq!(lines.len(), 19);
        Self {
            lines,
            keys: vec![key, other],
        }
    }

    fn report(&self) -> Report {
        report(&self.lines.concat())
    }

    /// The lines before the last signature.
    fn proved(&self) -> usize {
        self.lines.len() - TAIL
    }
}

#[test]
fn a_whole_trail_is_proved_and_told_of() {
    let trail = Trail::new();
    let report = trail.report();
    assert_eq!((report.verdict, report.records), (Verdict::Open, 19));
    let [first, second] = report.chains.try_into().unwrap();
    assert_eq!((first.first, first.last, first.unsigned), (0, 9, 0));
    assert_eq!((first.end, first.trust), (End::Stopped, Some(Trust::Found)));
    assert_eq!(first.key, Some(trail.keys[0].id()));
    assert_eq!((second.end, second.unsigned), (End::Open, 3));
}

#[test]
fn whose_key_signed_is_checked_where_it_is_given() {
    let trail = Trail::new();
    let text = trail.lines.concat();
    let told = |keys: &[PublicKey]| {
        let keys = keys.to_vec();
        let known = Known {
            keys,
            ..Known::default()
        };
        of(&text, known)
    };
    let report = told(&trail.keys);
    assert_eq!(report.verdict, Verdict::Open);
    assert_eq!(report.chains[0].trust, Some(Trust::Given));
    // The second process has signed what it found of the first.
    assert_eq!(told(&trail.keys[1..]).chains[0].trust, Some(Trust::Vouched));
    let broken = told(&trail.keys[..1]).broken.unwrap();
    assert_eq!((broken.line, broken.seq), (Some(11), Some(0)));
    assert!(broken.what.contains("not given"), "{}", broken.what);
}

#[test]
fn every_edit_before_the_last_signature_is_found() {
    let trail = Trail::new();
    for (number, line) in trail.lines.iter().enumerate().take(trail.proved()) {
        for at in 0..line.len() {
            let mut edited = trail.lines.clone();
            edited[number][at] ^= 1;
            let report = report(&edited.concat());
            let broken = report.broken.expect("an edit");
            // What follows it, where it could be the work of a crash.
            let near = number + 1..=number + 2;
            assert!(near.contains(&usize::try_from(broken.line.unwrap()).unwrap()));
        }
    }
}

#[test]
fn every_record_that_is_taken_out_is_found() {
    let trail = Trail::new();
    for from in 0..trail.proved() {
        for to in from + 1..=trail.proved() {
            let mut cut = trail.lines.clone();
            cut.drain(from..to);
            let report = report(&cut.concat());
            // Without all that is signed, it is the trail of nobody.
            assert_eq!(report.verdict, Verdict::Broken, "{from} to {to}");
        }
    }
    let mut cut = trail.lines;
    cut.remove(6);
    let broken = report(&cut.concat()).broken.unwrap();
    assert_eq!((broken.line, broken.seq), (Some(7), Some(7)));
    assert!(broken.what.contains("6 to 6"), "{}", broken.what);
}

#[test]
fn every_record_that_is_moved_or_repeated_is_found() {
    let trail = Trail::new();
    for from in 0..trail.lines.len() {
        for to in 0..trail.proved() {
            let mut moved = trail.lines.clone();
            let line = moved.remove(from);
            moved.insert(to, line.clone());
            let report_of_moved = report(&moved.concat());
            let same = moved == trail.lines;
            assert_eq!(report_of_moved.broken.is_none(), same, "{from} to {to}");

            let mut repeated = trail.lines.clone();
            repeated.insert(to, line);
            let verdict = report(&repeated.concat()).verdict;
            assert_eq!(verdict, Verdict::Broken, "{from} before {to}");
        }
    }
}

#[test]
fn records_of_another_trail_are_found() {
    let trail = Trail::new();
    let other = Trail::new();
    for to in 0..trail.proved() {
        for from in 0..other.lines.len() {
            let mut spliced = trail.lines.clone();
            spliced[to] = other.lines[from].clone();
            let verdict = report(&spliced.concat()).verdict;
            assert_eq!(verdict, Verdict::Broken, "{from} for {to}");
        }
    }
    // Whole ends of it too.
    for at in 1..trail.proved() {
        let spliced = [&trail.lines[..at], &other.lines[at..]].concat();
        assert_eq!(report(&spliced.concat()).verdict, Verdict::Broken, "{at}");
    }
}

#[test]
fn a_cut_end_shows_as_an_open_one_and_fails_where_more_is_expected() {
    let trail = Trail::new();
    let text = trail.lines.concat();
    let whole = trail.report();
    let last = whole.chains[1].clone_place();
    let ends = (1..text.len()).filter(|end| text[end - 1] == b'\n');
    for end in ends {
        let report = report(&text[..end]);
        assert_eq!(report.broken, None);
        let stopped = end == trail.lines[..10].concat().len();
        let verdict = if stopped {
            Verdict::Whole
        } else {
            Verdict::Open
        };
        assert_eq!(report.verdict, verdict);
        let known = Known {
            expected: vec![last],
            ..Known::default()
        };
        let broken = of(&text[..end], known).broken;
        assert_eq!(broken.is_some(), end < text.len());
    }
    // Between lines too; what is left of one is none.
    let cut = report(&text[..text.len() - 10]);
    assert_eq!((cut.verdict, cut.torn, cut.records), (Verdict::Open, 1, 18));
}

#[test]
fn a_start_vouches_for_the_end_that_a_crash_has_left() {
    let mut text = Vec::new();
    let (mut first, _) = Process::new(None);
    first.fill(0..4, &mut text);
    let crashed = text.len();
    text.extend_from_slice(b"{\"half\": \"a li\n");
    let (mut second, _) = Process::new(first.chain.last());
    second.chain.seal(b"", &mut text);
    second.chain.stop(&mut text);
    let whole = report(&text);
    assert_eq!((whole.verdict, whole.torn), (Verdict::Whole, 1));
    assert_eq!(whole.chains[0].end, End::Confirmed);
    assert_eq!(whole.chains[0].unsigned, 0);
    // Cutting off the end of the first one is found by that.
    let lines: Vec<_> = text.split_inclusive(|b| *b == b'\n').collect();
    let cut = [&lines[..4], &lines[5..]].concat().concat();
    let broken = report(&cut).broken.unwrap();
    assert!(broken.what.contains("up to 4"), "{}", broken.what);
    // And so is leaving it out.
    let broken = report(&text[crashed..]).broken.unwrap();
    assert!(broken.what.contains("is missing"), "{}", broken.what);
}

#[test]
fn files_are_put_in_order_and_may_begin_later() {
    let trail = Trail::new();
    let folder = tempfile::tempdir().unwrap();
    let parts = [0..3, 3..8, 8..14, 14..19];
    // Part of the third stands in the second already: it was moved meanwhile.
    let paths: Vec<PathBuf> = parts
        .iter()
        .enumerate()
        .map(|(number, part)| {
            let path = folder.path().join(format!("audit.jsonl.{}", 9 - number));
            let early = if number == 2 { 2 } else { 0 };
            let part = part.start - early..part.end;
            std::fs::write(&path, trail.lines[part].concat()).unwrap();
            path
        })
        .collect();
    let [a, b, c, d] = [0, 1, 2, 3].map(|number: usize| paths[number].clone());
    let shuffled = [c.clone(), a, d.clone(), b.clone()];
    let report = files(&shuffled, Known::default()).unwrap();
    assert_eq!((report.verdict, report.records), (Verdict::Open, 19));
    assert_eq!(report.chains[0].repeated, 2);

    let later = [d.clone(), b.clone(), c.clone()];
    let headless = files(&later, Known::default()).unwrap();
    assert_eq!(headless.broken.unwrap().file, Some(b));
    let known = || Known {
        beginning: Beginning::Later,
        ..Known::default()
    };
    let report = files(&later, known()).unwrap();
    assert_eq!(report.verdict, Verdict::Open);
    assert_eq!(report.chains[0].first, 3);
    // One from between them is missed all the same.
    let broken = files(&[c, d.clone()], known()).unwrap().broken;
    assert_eq!(broken, None);
    let broken = files(&[paths[1].clone(), d], known()).unwrap().broken;
    assert!(broken.is_some());
    assert!(files(&[folder.path().join("absent")], known()).is_err());
}

struct Process {
    chain: Chain,
    instance: Uuid,
}

impl Process {
    /// One that begins behind `previous`, and its key.
    fn new(previous: Option<Place>) -> (Self, PublicKey) {
        let key = Key::of_process().unwrap();
        let public = key.public();
        (Self::of(Uuid::now_v7(), key, previous), public)
    }

    fn of(instance: Uuid, key: Key, previous: Option<Place>) -> Self {
        let clock = Arc::new(Manual::new(Timestamp::UNIX_EPOCH));
        let chain = Chain::new(instance, key, previous, clock);
        Self { chain, instance }
    }

    fn fill(&mut self, numbers: std::ops::Range<u32>, text: &mut Vec<u8>) {
        for number in numbers {
            let instance = self.instance;
            let line = format!("{{\"number\":{number},\"instance\":\"{instance}\"}}\n");
            self.chain.seal(line.as_bytes(), text);
        }
    }
}

fn report(text: &[u8]) -> Report {
    of(text, Known::default())
}

fn of(mut text: &[u8], known: Known) -> Report {
    let mut verifier = Verifier::new(known);
    verifier.read(Path::new("audit.jsonl"), &mut text).unwrap();
    verifier.report()
}

impl Stretch {
    fn clone_place(&self) -> (u64, Hash) {
        (self.last, self.hash)
    }
}

/// Records of the second process behind its last signed one.
const TAIL: usize = 3;
