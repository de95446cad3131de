//! An audit sink in memory that fails or holds on demand.

use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;

use tokio::sync::watch;

use super::soon;

/// Clones are one sink.
#[derive(Clone)]
pub struct Trail(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    lines: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    text: Vec<u8>,
    failing: bool,
    forgetting: bool,
    held: bool,
}

impl Default for Trail {
    fn default() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            changed: Condvar::new(),
            lines: watch::Sender::new(0),
        }))
    }
}

impl Trail {
    /// Everything written so far.
    pub fn text(&self) -> String {
        String::from_utf8(self.0.state.lock().unwrap().text.clone()).unwrap()
    }

    /// The records of calls so far.
    pub fn records(&self) -> Vec<serde_json::Value> {
        self.text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|record: &serde_json::Value| {
                // Those of the trail itself are of no call.
                !record["eventName"].as_str().unwrap().starts_with("Audit")
            })
            .collect()
    }

    /// How many records of calls there are, forgotten ones too.
    pub fn count(&self) -> usize {
        *self.0.lines.borrow()
    }

    /// From now on, records are counted and not kept: for more than memory holds.
    pub fn forget(&self) {
        self.0.state.lock().unwrap().forgetting = true;
    }

    /// Waits until there are so many records: for those that no answer waits for.
    pub async fn reached(&self, records: usize) {
        let mut lines = self.0.lines.subscribe();
        soon(lines.wait_for(|lines| *lines >= records))
            .await
            .unwrap();
    }

    /// From now on, nothing is taken.
    pub fn fail(&self) {
        self.0.state.lock().unwrap().failing = true;
    }

    /// From now on, a write waits.
    pub fn hold(&self) {
        self.0.state.lock().unwrap().held = true;
    }

    /// From now on, everything is taken.
    pub fn heal(&self) {
        let mut state = self.0.state.lock().unwrap();
        state.failing = false;
        state.held = false;
        self.0.changed.notify_all();
    }
}

impl Write for Trail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let held = |state: &mut State| state.held;
        let state = self.0.state.lock().unwrap();
        let mut state = self.0.changed.wait_while(state, held).unwrap();
        if state.failing {
            return Err(io::Error::other("a sink that was told to fail"));
        }
        if !state.forgetting {
            state.text.extend_from_slice(bytes);
        }
        let text = String::from_utf8_lossy(bytes);
        let all = text.matches("\"eventName\":").count();
        let ended = all - text.matches("\"eventName\":\"Audit").count();
        self.0.lines.send_modify(|lines| *lines += ended);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
