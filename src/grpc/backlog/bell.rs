//! A timer that rings as exactly as a socket has something to read, and that is heard when sockets
//! are: tokio's own count whole milliseconds.

use std::io;
use std::os::unix::net;
use std::time::Duration;

use rustix::io::read;
use rustix::time::Itimerspec;
use rustix::time::TimerfdClockId;
use rustix::time::TimerfdFlags;
use rustix::time::TimerfdTimerFlags;
use rustix::time::Timespec;
use rustix::time::timerfd_create;
use rustix::time::timerfd_settime;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// It is no stream: that is the kind of descriptor that tokio takes of anybody without `unsafe`. It
/// is waited for as one, and read as what it is.
pub(super) struct Bell(UnixStream);

impl Bell {
    /// One that does not ring.
    ///
    /// # Errors
    /// The system's, which has no descriptor left.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        UnixStream::from_std(net::UnixStream::from(timer)).map(Self)
    }

    /// Resolves `pause` from now, which is more than nothing.
    ///
    /// # Errors
    /// The system's, of which none is known.
    pub(super) async fn ring(&self, pause: Duration) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(pause).map_err(io::Error::other)?,
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        let mut rings = [0; 8];
        let read = || read(&self.0, &mut rings).map_err(io::Error::from);
        self.0.async_io(Interest::READABLE, read).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn it_rings_when_it_is_time_and_not_for_one_that_was_given_up() {
        let bell = Bell::new().unwrap();
        let (short, long) = (Duration::from_millis(1), Duration::from_millis(20));
        for _ in 0..3 {
            let began = Instant::now();
            let given_up = tokio::time::timeout(long, bell.ring(short * 100)).await;
            given_up.unwrap_err();
            bell.ring(long).await.unwrap();
            assert!(began.elapsed() >= long * 2);
            bell.ring(short).await.unwrap();
            assert!(began.elapsed() >= long * 2 + short);
        }
    }
}
