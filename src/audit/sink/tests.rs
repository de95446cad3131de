use std::path::Path;
use std::thread::ThreadId;

use jiff::Timestamp;

use crate::audit::verify;
use crate::audit::verify::Known;
use crate::audit::verify::Report;
use crate::audit::verify::Verdict;
use crate::audit::verify::Verifier;
use crate::clock::Manual;

use super::*;

/// Takes three bytes, then fails once, then takes all.
struct Fickle {
    taken: Arc<Mutex<Vec<u8>>>,
    calls: usize,
}

impl Write for Fickle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.calls += 1;
        let count = match self.calls {
            1 => 3,
            2 => return Err(io::ErrorKind::StorageFull.into()),
            _ => bytes.len(),
        };
        self.taken.lock().expect("no panic").extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_lot_that_was_taken_in_part_is_gone_on_with() {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let out = Fickle {
        taken: Arc::clone(&taken),
        calls: 0,
    };
    let sink = Sink::to(out);
    assert_eq!(
        sink.write(&line(&sink, "first"), Ask::Now).await,
        Err(Unavailable)
    );
    assert_eq!(sink.write(&line(&sink, "second"), Ask::Now).await, Ok(()));
    drop(sink);
    assert_eq!(records(&taken), ["first", "second"]);
    assert_eq!(proved(&taken).records, 4, "with its beginning and its end");
}

#[tokio::test]
async fn records_of_one_flush_leave_in_one_write() {
    let (sizes, written) = mpsc::channel();
    let sink = Sink::to(Sizes(sizes));
    let calls = ["first", "other"].map(|name| sink.write(&line(&sink, name), Ask::Later));
    sink.flush();
    for call in calls {
        assert_eq!(call.await, Ok(()));
    }
    drop(sink);
    assert_eq!(written.iter().count(), 2, "the records, and the end");
}

#[tokio::test]
async fn a_call_that_finds_no_place_waits_for_one() {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let sink = Sink::to(Taken(Arc::clone(&taken)));
    let lines = BOUNDS.lines + 1;
    let calls: Vec<_> = (0..lines)
        .map(|_| sink.write(&line(&sink, "x"), Ask::Later))
        .collect();
    for call in calls {
        assert_eq!(call.await, Ok(()));
    }
    drop(sink);
    assert_eq!(records(&taken).len(), lines);
    proved(&taken);
}

#[tokio::test]
async fn a_writer_that_panics_fails_calls_at_once() {
    let (sizes, written) = mpsc::channel();
    drop(written);
    let sink = Sink::to(Sizes(sizes));
    assert_eq!(sink.write(b"x\n", Ask::Now).await, Err(Unavailable));
    assert_eq!(sink.write(b"x\n", Ask::Now).await, Err(Unavailable));
}

#[tokio::test]
async fn what_may_block_for_ever_is_written_by_the_thread() {
    let (reader, out) = io::pipe().unwrap();
    let (sink, hands) = watched(out, Writers::Thread, Duration::ZERO);
    assert_eq!(sink.write(b"x\n", Ask::Now).await, Ok(()));
    assert_ne!(hands.recv().unwrap(), thread::current().id());
    drop(reader);
}

#[tokio::test]
async fn what_is_near_is_written_by_who_flushes() {
    let (sink, hands) = watched(io::sink(), Writers::Callers, FAST);
    let call = sink.write(b"x\n", Ask::Later);
    assert!(hands.try_recv().is_err(), "nobody has asked");
    sink.flush();
    assert_eq!(hands.try_recv(), Ok(thread::current().id()));
    assert_eq!(call.await, Ok(()));
    assert_eq!(sink.write(b"x\n", Ask::Now).await, Ok(()));
    assert_eq!(hands.try_recv(), Ok(thread::current().id()));
}

#[tokio::test]
async fn the_thread_writes_to_a_slow_file_until_it_is_fast_again() {
    let own = thread::current().id();
    let pace = Arc::new(Mutex::new(SLOW));
    let (sink, hands) = timed(io::sink(), Writers::Callers, Arc::clone(&pace));
    let write = || async { assert_eq!(sink.write(b"x\n", Ask::Now).await, Ok(())) };
    write().await;
    assert_eq!(hands.recv(), Ok(own), "it was not known to be slow");
    write().await;
    assert_ne!(hands.recv(), Ok(own));
    *pace.lock().unwrap() = FAST;
    write().await;
    assert_ne!(hands.recv(), Ok(own), "this one shows that it is fast");
    // The thread may not have put the pen down yet.
    write().await;
    while hands.recv() != Ok(own) {
        write().await;
    }
}

#[tokio::test]
async fn the_record_of_an_abandoned_call_is_written_by_the_thread() {
    let (sink, hands) = watched(io::sink(), Writers::Callers, FAST);
    sink.leave(b"x\n");
    assert_ne!(hands.recv().unwrap(), thread::current().id());
}

#[test]
fn a_panic_in_a_write_fails_its_lot_and_no_other() {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let out = Brittle {
        taken: Arc::clone(&taken),
        broken: true,
    };
    let sink = Sink::into(Outlet::one(Stream(out)), Writers::Callers, Arc::new(System));
    let fate = |call| futures_util::FutureExt::now_or_never(call);
    let first = sink.write(&line(&sink, "first"), Ask::Later);
    let flush = std::panic::AssertUnwindSafe(|| sink.flush());
    assert!(std::panic::catch_unwind(flush).is_err());
    assert_eq!(fate(first), Some(Err(Unavailable)));
    assert_eq!(
        fate(sink.write(&line(&sink, "second"), Ask::Now)),
        Some(Ok(()))
    );
    drop(sink);
    // What nobody knows to be written may be.
    assert_eq!(records(&taken), ["first", "second"]);
    proved(&taken);
}

#[test]
fn only_regular_files_are_near() {
    let folder = tempfile::tempdir().unwrap();
    let near = |path: PathBuf| {
        let file = Named::open(&path, None, Arc::default()).unwrap();
        file.is_regular().unwrap()
    };
    assert!(near(folder.path().join("audit.jsonl")));
    assert!(!near("/dev/null".into()));
    let (reader, out) = io::pipe().unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&out);
    assert!(!near(format!("/proc/self/fd/{fd}").into()));
    drop(reader);
}

/// Panics at first, then takes all.
struct Brittle {
    taken: Arc<Mutex<Vec<u8>>>,
    broken: bool,
}

impl Write for Brittle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!std::mem::take(&mut self.broken), "the first write");
        self.taken.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A sink whose writes take `pace`, and the threads that make them.
fn watched(
    out: impl Write + Send + 'static,
    writers: Writers,
    pace: Duration,
) -> (Sink, mpsc::Receiver<ThreadId>) {
    timed(out, writers, Arc::new(Mutex::new(pace)))
}

fn timed(
    out: impl Write + Send + 'static,
    writers: Writers,
    pace: Arc<Mutex<Duration>>,
) -> (Sink, mpsc::Receiver<ThreadId>) {
    let clock = Arc::new(Manual::new(Timestamp::UNIX_EPOCH));
    let (tell, hands) = mpsc::channel();
    let out = Watched {
        out,
        tell,
        clock: Arc::clone(&clock),
        pace,
    };
    (Sink::into(Outlet::one(Stream(out)), writers, clock), hands)
}

/// Tells which thread writes; each write takes its time.
struct Watched<W> {
    out: W,
    tell: mpsc::Sender<ThreadId>,
    clock: Arc<Manual>,
    pace: Arc<Mutex<Duration>>,
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.clock.advance(*self.pace.lock().unwrap());
        // Err: the test has ended.
        let _ = self.tell.send(thread::current().id());
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

const FAST: Duration = Duration::from_millis(1);
const SLOW: Duration = Duration::from_millis(50);

/// Tells how much it is given at once. Panics when nobody listens.
struct Sizes(mpsc::Sender<usize>);

impl Write for Sizes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.len()).expect("somebody listens");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps all.
struct Taken(Arc<Mutex<Vec<u8>>>);

impl Write for Taken {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Fails while it is told to.
struct Moody {
    taken: Taken,
    fails: Arc<AtomicBool>,
}

impl Write for Moody {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.fails.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => self.taken.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn many(outs: impl IntoIterator<Item = Relay>) -> Sink {
    let outlet = Outlet::Many(outs.into_iter().collect());
    Sink::into(outlet, Writers::Thread, Arc::new(System))
}

#[tokio::test]
async fn a_sink_that_hangs_holds_up_no_other() {
    let (reader, pipe) = io::pipe().unwrap();
    let taken = Arc::new(Mutex::new(Vec::new()));
    let sink = many([
        Relay::new("pipe", Stream(pipe)),
        Relay::new("good", Stream(Taken(Arc::clone(&taken)))),
    ]);
    let line = line(&sink, &"x".repeat(60 << 10));
    // More than the pipe and its relay hold together.
    for _ in 0..60 {
        assert_eq!(sink.write(&line, Ask::Now).await, Ok(()));
    }
    assert!(sink.metrics.audits(Audited::Missed) > 0);
    // Whoever read it would see a gap.
    drop(reader);
    drop(sink);
    assert_eq!(records(&taken).len(), 60);
    proved(&taken);
}

#[tokio::test]
async fn calls_fail_while_all_of_several_sinks_fail_and_no_longer() {
    let fails = Arc::new(AtomicBool::new(true));
    let taken = [(); 2].map(|()| Arc::new(Mutex::new(Vec::new())));
    let relay = |taken: &Arc<Mutex<Vec<u8>>>| {
        let taken = Taken(Arc::clone(taken));
        let fails = Arc::clone(&fails);
        Relay::new("moody", Stream(Moody { taken, fails }))
    };
    let sink = many(taken.each_ref().map(relay));
    for _ in 0..4 {
        assert_eq!(
            sink.write(&line(&sink, "x"), Ask::Now).await,
            Err(Unavailable)
        );
    }
    fails.store(false, Ordering::Relaxed);
    while sink.write(&line(&sink, "y"), Ask::Now).await.is_err() {}
    drop(sink);
    for taken in taken {
        // What they failed with was kept, and stands before what came after it.
        let records = records(&taken);
        assert_eq!(records.first().map(String::as_str), Some("x"));
        assert_eq!(records.last().map(String::as_str), Some("y"));
        assert_eq!(proved(&taken).verdict, Verdict::Whole);
    }
}

#[tokio::test]
async fn best_effort_waits_for_nothing_and_counts_what_is_lost() {
    let (reader, pipe) = io::pipe().unwrap();
    let mut sink = Sink::to(pipe);
    sink.mode = Mode::BestEffort;
    for _ in 0..3 * BOUNDS.lines {
        let line = [b"x".repeat(100), b"\n".to_vec()].concat();
        assert_eq!(sink.write(&line, Ask::Now).await, Ok(()));
    }
    assert!(sink.metrics.audits(Audited::Failed) > 0);
    drop(reader);
}

#[test]
fn a_file_goes_on_where_the_last_process_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        file: Some(folder.path().join("audit.jsonl")),
        ..Config::default()
    };
    let path = config.file.clone().unwrap();
    for _ in 0..3 {
        drop(Sink::open(&config, None, Metrics::unread()).unwrap());
    }
    let key = Key::of_file(&folder.path().join("audit.key")).unwrap();
    let known = Known {
        keys: vec![key.public()],
        ..Known::default()
    };
    let report = verify::files(&[path], known).unwrap();
    assert_eq!((report.verdict, report.records), (Verdict::Whole, 6));
    assert_eq!(report.chains.len(), 3);
}

/// A record of `name`.
fn line(sink: &Sink, name: &str) -> Vec<u8> {
    format!(
        "{{\"name\":\"{name}\",\"instance\":\"{}\"}}\n",
        sink.instance()
    )
    .into_bytes()
}

/// The names of the records.
fn records(taken: &Mutex<Vec<u8>>) -> Vec<String> {
    let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("{\"name\":\"")?.split_once('"'))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// That they are a chain.
fn proved(taken: &Mutex<Vec<u8>>) -> Report {
    let mut verifier = Verifier::new(Known::default());
    let text = taken.lock().unwrap().clone();
    verifier.read(Path::new("taken"), &*text).unwrap();
    let report = verifier.report();
    assert_eq!(report.broken, None);
    report
}
