//! The keyring of a server: opened at the start, tended as long as it serves.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::Failure;
use crate::cli::chain;
use crate::clock::Clock;
use crate::kms;
use crate::kms::local;
use crate::kms::local::Keyring;
use crate::kms::local::Purpose;
use crate::kms::local::SealingKey;

/// As [`keyring`], and says so when the disk does not answer: there is nothing to serve without.
pub(super) async fn opened(config: kms::LocalConfig, purpose: Purpose) -> Result<Keyring, Failure> {
    let path = config.keyring.clone();
    let opening = move || keyring(&config, purpose);
    let slow = || {
        tracing::warn!(
            path = %path.display(),
            "the keyring is still being opened: look at the disk that it and its sealing key are on"
        );
    };
    aside(opening, SLOW_DISK, slow).await
}

/// Opens the keyring of `config` with its sealing key.
pub(in crate::cli) fn keyring(
    config: &kms::LocalConfig,
    purpose: Purpose,
) -> Result<Keyring, Failure> {
    // Who has neither needs the sentence that says how to make both.
    if matches!(config.keyring.try_exists(), Ok(false)) {
        let missing = local::Error::Missing {
            path: config.keyring.clone(),
        };
        return Err(Failure::keyring(&missing));
    }
    let sealing_key = sealing_key(config)?;
    Keyring::open(&config.keyring, purpose, sealing_key).map_err(|error| Failure::keyring(&error))
}

/// The sealing key of `config`, from its file or systemd credential.
pub(in crate::cli) fn sealing_key(config: &kms::LocalConfig) -> Result<SealingKey, Failure> {
    let source = config
        .sealing_key
        .parse()
        .map_err(|error| Failure::config(&error))?;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY");
    SealingKey::load(&source, credentials.as_deref().map(Path::new))
        .map_err(|error| Failure::config(&error))
}

/// Once an hour, or more often where keys are to live shorter: keys that have reached their period
/// get a new version, and keys whose deletion is due are destroyed.
pub(super) async fn tend(keyring: Arc<Keyring>, config: kms::LocalConfig, clock: Arc<dyn Clock>) {
    let period = config
        .rotation_period
        .and_then(|span| Duration::try_from(span).ok());
    let pause = period.map_or(LONGEST_PAUSE, |period| {
        period.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
    });
    let mut ticks = tokio::time::interval(pause);
    loop {
        ticks.tick().await;
        let keyring = Arc::clone(&keyring);
        let now = clock.wall();
        // Changes wait for the disk.
        let done = tokio::task::spawn_blocking(move || tend_once(&keyring, period, now)).await;
        if done.is_err() {
            tracing::error!("tending the local keyring failed; it is tried again");
        }
    }
}

fn tend_once(keyring: &Keyring, period: Option<Duration>, now: jiff::Timestamp) {
    let rotated = period.map_or_else(|| Ok(Vec::new()), |period| keyring.rotate_due(period, now));
    match rotated {
        Ok(rotated) => {
            for key in rotated {
                tracing::info!(%key, "rotated a key of the local keyring");
            }
        }
        Err(error) => tracing::error!(
            error = chain(&error),
            "cannot rotate keys of the local keyring: they serve on in their old version"
        ),
    }
    match keyring.delete_due(now) {
        Ok(deleted) => {
            for key in deleted {
                tracing::warn!(%key, "destroyed a key of the local keyring: its deletion was due");
            }
        }
        Err(error) => tracing::error!(
            error = chain(&error),
            "cannot destroy keys of the local keyring whose deletion is due: they stay barred"
        ),
    }
}

/// What `work` gives on a thread of its own, where it may block; calls `slow` whenever another
/// `period` has passed without it.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    period: Duration,
    mut slow: impl FnMut(),
) -> T {
    let mut working = tokio::task::spawn_blocking(work);
    loop {
        match tokio::time::timeout(period, &mut working).await {
            Ok(Ok(done)) => return done,
            Ok(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            Err(_) => slow(),
        }
    }
}

/// Between two looks at the keyring.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// A period of nothing would spin.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// After which a disk is called slow.
const SLOW_DISK: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_hangs_is_told_of_again_and_again_and_ends_when_it_can() {
        let (answer, disk) = mpsc::channel();
        let mut told = 0;
        let slow = || {
            told += 1;
            if told == 3 {
                answer.send("keyring").unwrap();
            }
        };
        let opening = move || disk.recv().unwrap();
        assert_eq!(
            aside(opening, Duration::from_millis(1), slow).await,
            "keyring"
        );
        assert!(told >= 3, "{told}");
    }
}
