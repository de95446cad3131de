//! Trails that another key has countersigned, verified with nothing but that key.

use super::*;

/// A process's records 0 to 10. Number 5 is signed and countersigned, which 8 carries; 9 and 10
/// are not signed.
struct Trail {
    lines: Vec<Vec<u8>>,
    kms: SigningKey,
}

impl Trail {
    fn new() -> Self {
        Self::carrying(|one| one)
    }

    /// A trail that carries something else than the countersignature.
    fn carrying(change: impl FnOnce(Countersignature) -> Countersignature) -> Self {
        let kms = SigningKey::random().unwrap();
        let mut text = Vec::new();
        let (mut process, _) = Process::new(None);
        process.write_countersigned(&kms, change, &mut text);
        let lines = text.split_inclusive(|b| *b == b'\n');
        let lines: Vec<_> = lines.map(Vec::from).collect();
        assert_eq!(lines.len(), 11);
        Self { lines, kms }
    }

    fn report(&self, lines: &[Vec<u8>]) -> Report {
        of(&lines.concat(), only(&self.kms))
    }
}

impl Process {
    fn write_countersigned(
        &mut self,
        kms: &SigningKey,
        change: impl FnOnce(Countersignature) -> Countersignature,
        text: &mut Vec<u8>,
    ) {
        self.fill(0..4, text);
        self.chain.seal(b"\n", text);
        let one = countersignature(self.chain.last().unwrap(), kms);
        self.fill(4..6, text);
        // Asked aside, KMS has answered meanwhile.
        self.chain.tray().put(change(one), 4);
        self.chain.seal(b"\n", text);
        self.fill(6..8, text);
    }
}

#[test]
fn a_countersignature_proves_the_key_of_the_process() {
    let trail = Trail::new();
    let report = trail.report(&trail.lines);
    assert_eq!((report.verdict, report.broken), (Verdict::Open, None));
    let [chain] = report.chains.try_into().unwrap();
    assert_eq!((chain.trust, chain.unsigned), (Some(Trust::Vouched), 2));
    let countersigned = chain.countersigned.unwrap();
    assert_eq!((countersigned.last, countersigned.behind), (5, 5));
    assert_eq!(countersigned.key, trail.kms.public().id());
    assert_eq!(countersigned.trust, Trust::Given);
    // Nobody else's does, and without one it says so.
    let other = SigningKey::random().unwrap();
    let broken = of(&trail.lines.concat(), only(&other)).broken.unwrap();
    assert_eq!((broken.line, broken.seq), (Some(1), Some(0)));
    let cut = trail.report(&trail.lines[..8]).broken.unwrap();
    assert!(cut.what.contains("not given"), "{}", cut.what);
    let found = report_of(&trail.lines);
    let countersigned = found.chains[0].countersigned.clone().unwrap();
    assert_eq!(countersigned.trust, Trust::Found);
}

#[test]
fn every_change_before_the_last_signature_is_found() {
    let trail = Trail::new();
    let proved = trail.lines.len() - 2;
    let broken = |lines: &[Vec<u8>]| trail.report(lines).verdict == Verdict::Broken;
    for number in 0..proved {
        for at in 0..trail.lines[number].len() {
            let mut edited = trail.lines.clone();
            edited[number][at] ^= 1;
            assert!(broken(&edited), "{at} of {number}");
        }
        let mut cut = trail.lines.clone();
        cut.remove(number);
        assert!(broken(&cut), "without {number}");
        for to in 0..proved {
            let mut moved = trail.lines.clone();
            let line = moved.remove(number);
            moved.insert(to, line);
            assert_eq!(broken(&moved), number != to, "{number} to {to}");
        }
        for (from, line) in Trail::new().lines.into_iter().enumerate() {
            let mut spliced = trail.lines.clone();
            spliced[number] = line;
            assert!(broken(&spliced), "{from} for {number}");
        }
    }
}

#[test]
fn whoever_has_the_key_of_the_process_has_no_other_trail_to_show() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.key");
    let kms = SigningKey::random().unwrap();
    let instance = Uuid::now_v7();
    let mut text = Vec::new();
    let process = || Process::of(instance, Key::of_file(&path).unwrap(), None);
    let mut true_one = None;
    process().write_countersigned(&kms, |one| true_one.insert(one).clone(), &mut text);
    assert_eq!(of(&text, only(&kms)).broken, None);
    // Other records of the same number, signed with the same key, with what KMS has signed.
    let mut forged = Vec::new();
    let mut forger = process();
    forger.fill(90..94, &mut forged);
    forger.chain.seal(b"\n", &mut forged);
    let place = forger.chain.last().unwrap();
    assert_eq!(place.seq, true_one.as_ref().unwrap().of.seq);
    forger.fill(95..96, &mut forged);
    forger.chain.tray().put(true_one.unwrap(), 4);
    forger.chain.seal(b"\n", &mut forged);
    let broken = of(&forged, only(&kms)).broken.unwrap();
    assert!(broken.what.contains("countersignature"), "{}", broken.what);
}

#[test]
fn no_altered_countersignature_vouches() {
    let alter = |text: &str, at: usize| {
        let mut bytes = text.as_bytes().to_vec();
        let at = at % bytes.len().max(1);
        // Another letter, that base64url has.
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).unwrap()
    };
    let broken = |change: &dyn Fn(Countersignature) -> Countersignature| {
        let trail = Trail::carrying(change);
        trail.report(&trail.lines).verdict == Verdict::Broken
    };
    for at in 0..86 {
        assert!(broken(&|mut one| {
            one.signature = alter(&one.signature, at);
            one
        }));
        assert!(broken(&|mut one| {
            one.public_key = alter(&one.public_key, at);
            one
        }));
    }
    for text in ["", "=", "AAAA", "\u{0}", &"A".repeat(4096)] {
        assert!(broken(&|mut one| {
            one.signature = text.into();
            one
        }));
        assert!(broken(&|mut one| {
            one.public_key = text.into();
            one
        }));
    }
    for seq in [0, 4, 6, 8, u64::MAX] {
        assert!(broken(&|mut one| {
            one.of.seq = seq;
            one
        }));
    }
    // A good one, of records that stand elsewhere or nowhere.
    let kms = SigningKey::random().unwrap();
    for (instance, seq) in [(Some(Uuid::now_v7()), 5), (None, 4), (None, 7)] {
        let mut text = Vec::new();
        let elsewhere = |one: Countersignature| {
            let instance = instance.unwrap_or(one.of.instance);
            let place = Place {
                instance,
                seq,
                ..one.of
            };
            countersignature(place, &kms)
        };
        Process::new(None)
            .0
            .write_countersigned(&kms, elsewhere, &mut text);
        let verdict = of(&text, only(&kms)).verdict;
        assert_eq!(verdict, Verdict::Broken, "{seq}");
    }
}

#[test]
fn a_part_of_a_trail_is_proved_by_a_countersignature_in_it() {
    let trail = Trail::new();
    let part = |from: usize| {
        let known = Known {
            beginning: Beginning::Later,
            ..only(&trail.kms)
        };
        of(&trail.lines[from..].concat(), known)
    };
    let chain = &part(2).chains[0];
    assert_eq!((chain.first, chain.trust), (2, Some(Trust::Vouched)));
    // The record that is countersigned stands before it: nothing given is known to vouch for it.
    assert_eq!(part(6).verdict, Verdict::Broken);
}

/// Of a process that ends in order: 13 is its last record, and 11 is countersigned.
fn ended(kms: &SigningKey, path: &Path, instance: Uuid) -> Vec<u8> {
    let mut text = Vec::new();
    let mut process = Process::of(instance, Key::of_file(path).unwrap(), None);
    process.write_countersigned(kms, |one| one, &mut text);
    process.chain.seal(b"\n", &mut text);
    let one = countersignature(process.chain.last().unwrap(), kms);
    process.chain.tray().put(one, 0);
    process.chain.seal(b"\n", &mut text);
    process.chain.stop(&mut text);
    text
}

#[test]
fn what_was_written_anew_behind_a_countersignature_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.key");
    let (kms, instance) = (SigningKey::random().unwrap(), Uuid::now_v7());
    let text = ended(&kms, &path, instance);
    let report = of(&text, only(&kms));
    assert_eq!((report.verdict, report.broken), (Verdict::Whole, None));
    assert_eq!(report.chains[0].unvouched, Some(2));
    let most = |most| Known {
        most_unvouched: Some(most),
        ..only(&kms)
    };
    assert_eq!(of(&text, most(2)).verdict, Verdict::Whole);

    // Whoever has the key of the process drops all countersignatures but the first.
    let mut forger = Process::of(instance, Key::of_file(&path).unwrap(), None);
    let mut forged = Vec::new();
    forger.write_countersigned(&kms, |one| one, &mut forged);
    forger.fill(100..120, &mut forged);
    forger.chain.stop(&mut forged);
    let report = of(&forged, only(&kms));
    assert_eq!((report.verdict, report.broken), (Verdict::Open, None));
    assert_eq!(report.chains[0].end, End::Stopped);
    assert_eq!(report.chains[0].unvouched, Some(26));
    assert_eq!(of(&forged, most(26)).verdict, Verdict::Open);
    let broken = of(&forged, most(25)).broken.unwrap();
    assert!(broken.what.contains("the last 26"), "{}", broken.what);
    // Nobody who was given vouches for more than was asked for.
    assert_eq!(super::report(&forged).chains[0].unvouched, None);
}

#[test]
fn no_number_of_records_hides_the_end_that_the_next_process_has_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.key");
    let (kms, instance) = (SigningKey::random().unwrap(), Uuid::now_v7());
    let begin = |text: &mut Vec<u8>| {
        let mut first = Process::of(instance, Key::of_file(&path).unwrap(), None);
        first.write_countersigned(&kms, |one| one, text);
        first
    };
    let (mut honest, mut after) = (Vec::new(), Vec::new());
    let mut first = begin(&mut honest);
    first.fill(0..3, &mut honest);
    let (mut second, _) = Process::new(first.chain.last());
    second.write_countersigned(&kms, |one| one, &mut after);
    let report = of(&[honest, after.clone()].concat(), only(&kms));
    assert_eq!(report.broken, None);
    assert_eq!(report.chains[0].end, End::Confirmed);
    assert_eq!(report.chains[0].unvouched, Some(0));

    for more in [3, 100, 10_000] {
        let mut forged = Vec::new();
        let mut forger = begin(&mut forged);
        forger.fill(500..500 + more, &mut forged);
        forger.chain.stop(&mut forged);
        forged.extend_from_slice(&after);
        let broken = of(&forged, only(&kms)).broken.unwrap();
        let by = (broken.instance, broken.seq);
        assert_eq!(by, (Some(second.instance), Some(0)), "{}", broken.what);
    }
}

fn countersignature(of: Place, kms: &SigningKey) -> Countersignature {
    Countersignature {
        of,
        key_id: "arn:aws:kms:eu-west-1:111122223333:key/1234abcd".into(),
        public_key: kms.public().to_string(),
        algorithm: kms.public().algorithm().label().into(),
        signature: of.sign(kms).to_string(),
    }
}

fn only(key: &SigningKey) -> Known {
    Known {
        keys: vec![key.public()],
        ..Known::default()
    }
}

fn report_of(lines: &[Vec<u8>]) -> Report {
    report(&lines.concat())
}
