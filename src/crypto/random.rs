//! Random bytes from the operating system's generator, asked afresh each time: a buffer in user
//! space would repeat itself after a fork or a restored snapshot.

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
