//! The store that a configuration names.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::chain;
use crate::cli::warn;
use crate::directory::Directory;
use crate::kms::local::sealing::Source;
use crate::store::Config;
use crate::store::Error;
use crate::store::Store;

/// The store of `config`, its tables made or checked where that needs no server.
pub(super) fn open(config: &Config) -> Result<Store, Failure> {
    let password = config.password.as_deref().map(password).transpose()?;
    let password = password.as_deref().map(|text| text.trim_end_matches('\n'));
    Store::new(config, password).map_err(|error| failure(&error))
}

/// The tenants of the store of `config`; says which are not usable.
pub(super) async fn directory(config: &Config) -> Result<Directory, Failure> {
    let news = open(config)?.news(None).await;
    let news = news.map_err(|error| failure(&error))?;
    let rows = news.map(|news| news.tenants).unwrap_or_default();
    let (directory, unusable) = Directory::default().with(rows);
    for (tenant, error) in unusable {
        let error = chain(&error);
        warn(format_args!(
            "tenant {tenant} of the store is not usable: {error}"
        ));
    }
    Ok(directory)
}

/// What a failure of the store means for a command.
pub(super) fn failure(error: &Error) -> Failure {
    let exit = match error {
        Error::File { .. } => Exit::CannotCreate,
        Error::Engine(_) | Error::Slow => Exit::Unavailable,
        Error::UnknownTenant(_) => Exit::Data,
        Error::Address(_)
        | Error::Damaged(_)
        | Error::ExposedFile { .. }
        | Error::ExposedFolder { .. }
        | Error::Newer { .. }
        | Error::Old { .. } => Exit::Config,
    };
    Failure::new(exit, chain(error))
}

/// The password for PostgreSQL, from its file or systemd credential.
fn password(source: &str) -> Result<Zeroizing<String>, Failure> {
    let config = |sentence: String| Failure::new(Exit::Config, sentence);
    let source = source
        .parse()
        .map_err(|error| config(format!("store.password is {error}")))?;
    let path: PathBuf = match source {
        Source::File(path) => path,
        Source::Credential(name) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
            Some(folder) => Path::new(&folder).join(name),
            None => {
                let sentence = format!("store.password: systemd hands over no credential {name}");
                return Err(config(sentence));
            }
        },
    };
    let unreadable = |error| config(format!("store.password: {}: {error}", path.display()));
    let file = fs::File::open(&path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    if mode & 0o007 != 0 {
        let sentence = format!(
            "store.password: {} is open to every user (mode {mode:o}): take that away and choose \
             another password",
            path.display()
        );
        return Err(config(sentence));
    }
    // One buffer of final size: a growing one would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(LONGEST));
    let most = u64::try_from(LONGEST).unwrap_or_default();
    file.take(most)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    Ok(text)
}

/// Of a password, in bytes.
const LONGEST: usize = 1024;
