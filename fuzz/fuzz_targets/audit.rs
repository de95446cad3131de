//! Reads any bytes as an audit file, and in a second turn as what follows a true one.
#![no_main]

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;

use keybroker::audit::Audit;
use keybroker::audit::Sink;
use keybroker::audit::verify::Known;
use keybroker::audit::verify::Verdict;
use keybroker::audit::verify::Verifier;
use keybroker::clock::System;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let report = read(bytes);
    // Nothing links by chance.
    assert_eq!(report.records, 0);

    let behind = [whole(), bytes].concat();
    let report = read(&behind);
    assert_eq!(report.records, 3);
    assert_eq!(report.verdict == Verdict::Broken, report.broken.is_some());
});

fn read(bytes: &[u8]) -> keybroker::audit::verify::Report {
    let mut verifier = Verifier::new(Known::default());
    let read = verifier.read(Path::new("audit.jsonl"), bytes);
    assert!(read.is_ok(), "memory can be read");
    verifier.report()
}

/// A process's first record, one of a call, and its last.
fn whole() -> &'static [u8] {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let sink = Sink::to(Taken(Arc::clone(&taken)));
        // Dropped, it is abandoned, which is on record.
        drop(Audit::new(sink, Arc::new(System)).begin());
        let text = taken.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone()
    })
}

struct Taken(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Taken {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
