//! Random bytes from the operating system's generator, asked afresh each time: a buffer in user
//! space would repeat itself after a fork or a restored snapshot.

use std::time::Duration;

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system's random generator failed")]
pub struct Error(#[from] getrandom::Error);

/// Fills `bytes`.
///
/// # Errors
/// [`Error`] when the generator fails; `bytes` are then of no use.
pub fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    Ok(getrandom::fill(bytes)?)
}

/// `span`, or up to half as much more.
pub fn jittered(span: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness there is no jitter, and nothing worse.
    let _ = fill(&mut byte);
    let [byte] = byte;
    span + span * u32::from(byte) / 512
}
