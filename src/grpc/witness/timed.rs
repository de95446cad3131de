//! The time that a call takes, counted once however it ends.

use std::ops::Deref;

use tokio::time::Instant;
use tonic::Status;

use crate::grpc::trace::code;
use crate::metrics::CallTally;
use crate::metrics::Code;

/// A call under way. Dropped before it is answered, its client has gone.
pub(in crate::grpc) struct Timed<T: Deref<Target = CallTally>> {
    tally: T,
    began: Instant,
    open: bool,
}

impl<T: Deref<Target = CallTally>> Timed<T> {
    /// A call of the method of `tally`, which began then.
    pub(in crate::grpc) fn since(began: Instant, tally: T) -> Self {
        Self {
            tally,
            began,
            open: true,
        }
    }

    /// The call was answered: with `status` for `reason`, or served.
    pub(in crate::grpc) fn answered(
        mut self,
        status: Option<&Status>,
        reason: impl FnOnce() -> &'static str,
    ) {
        self.open = false;
        if !self.tally.counting() {
            return;
        }
        let took = self.began.elapsed();
        match status {
            None => self.tally.served(took),
            Some(status) => self.tally.ended(code(status.code()), reason(), took),
        }
    }

    /// The call goes on elsewhere, and is counted there.
    pub(in crate::grpc) fn leave(mut self) {
        self.open = false;
    }
}

impl<T: Deref<Target = CallTally>> Drop for Timed<T> {
    fn drop(&mut self) {
        if self.open {
            let took = self.began.elapsed();
            self.tally.ended(Code::Cancelled, "ABANDONED", took);
        }
    }
}
