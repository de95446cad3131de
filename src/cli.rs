//! The command line: one file a subcommand, one table of exit codes (`Exit`).
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | `healthcheck`: the broker does not serve |
//! | 64 | the command line is wrong or lacks something |
//! | 65 | plaintext, ciphertext, context, name or tenants file refused; an audit trail is broken |
//! | 66 | an input file is not there or not readable |
//! | 69 | broker, KMS, key, keyring or store is not available now |
//! | 70 | a fault of keybroker itself, or the broker's |
//! | 71 | the operating system refuses: an address in use, no signals |
//! | 73 | a file or folder cannot be made, or is there already |
//! | 74 | standard input or output fails |
//! | 77 | denied, or no identity |
//! | 78 | configuration, certificates, keyring or store are not usable |

mod apply;
mod audit;
mod check;
mod completions;
mod connect;
mod crypt;
mod dev;
mod explain;
mod failure;
mod grant;
mod healthcheck;
mod keyring;
mod keys;
mod kms_grant;
mod serve;
mod stored;
mod tenant;

use std::fmt::Display;
use std::io;
use std::io::IsTerminal as _;
use std::io::Read as _;
use std::io::Write as _;
use std::panic;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use clap::CommandFactory as _;
use clap::Parser;
use clap::Subcommand;
use clap::error::ErrorKind;
use tracing::Level;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use zeroize::Zeroizing;

use failure::Exit;
use failure::Failure;
use failure::chain;

/// A key broker between applications and AWS KMS.
#[derive(Parser)]
#[command(
    name = "keybroker",
    version,
    about,
    disable_help_subcommand = true,
    after_help = EXIT_CODES
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings tenants and keys from a file into the store.
    Apply(apply::Args),
    /// Proves audit files whole, and shows what is in them.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Checks a configuration, with the same code that `serve` starts with.
    CheckConfig(check::Args),
    /// Prints a completion script for a shell.
    Completions(completions::Args),
    /// Decrypts a message from standard input.
    Decrypt(crypt::DecryptArgs),
    /// Plays: a broker with everything it needs, without files or AWS. Not for production.
    Dev(dev::Args),
    /// Encrypts standard input into a message.
    Encrypt(crypt::EncryptArgs),
    /// Says why a principal would be allowed or denied an operation with a key.
    Explain(explain::Args),
    /// Makes, lists, renews and ends grants: leave to use a key, for a while.
    #[command(subcommand)]
    Grant(grant::Command),
    /// Asks a broker whether it serves: exit code 0 if so, else 1.
    Healthcheck(healthcheck::Args),
    /// Makes and changes the keyring of the embedded KMS.
    #[command(subcommand)]
    Keyring(keyring::Command),
    /// Shows keys that a broker lets you use or manage.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Makes, lists and ends grants of AWS KMS itself, for IAM principals that call KMS.
    #[command(subcommand)]
    KmsGrant(kms_grant::Command),
    /// Serves until SIGTERM; reloads on SIGHUP and when its files change.
    Serve(serve::Args),
    /// Suspends tenants, resumes them, and drops their data keys.
    #[command(subcommand)]
    Tenant(tenant::Command),
}

/// Which configuration file.
#[derive(clap::Args)]
struct ConfigArg {
    /// The configuration file.
    #[arg(
        long,
        env = "KEYBROKER_CONFIG",
        value_name = "FILE",
        default_value = "/etc/keybroker/keybroker.toml"
    )]
    config: PathBuf,
}

/// How a list is printed.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Json,
    Text,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if let Err(error) = rustls::crypto::aws_lc_rs::default_provider().install_default() {
        drop(error); // Somebody installed the same provider before.
    }
    log(match cli.command {
        Command::Serve(_) => "info",
        _ => "warn",
    });
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return Failure::system(format!("cannot start threads: {error}")).exit(),
    };
    let outcome = runtime.block_on(run(cli.command));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.exit(),
    }
}

/// How many threads serve: one a core, and on a single core a second one, in case that the first
/// hangs in a write to the audit file.
fn workers() -> usize {
    thread::available_parallelism().map_or(LEAST_WORKERS, |cores| cores.get().max(LEAST_WORKERS))
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Apply(args) => apply::run(&args).await,
        Command::Audit(command) => audit::run(&command).await,
        Command::CheckConfig(args) => check::run(&args).await,
        Command::Completions(args) => completions::run(&args, &mut Cli::command()),
        Command::Decrypt(args) => crypt::decrypt(args).await,
        Command::Dev(args) => dev::run(&args).await,
        Command::Encrypt(args) => crypt::encrypt(args).await,
        Command::Explain(args) => explain::run(args).await,
        Command::Grant(command) => grant::run(command).await,
        Command::Healthcheck(args) => healthcheck::run(&args).await,
        Command::Keyring(command) => keyring::run(command),
        Command::Keys(command) => keys::run(command).await,
        Command::KmsGrant(command) => kms_grant::run(command).await,
        Command::Serve(args) => serve::run(&args).await,
        Command::Tenant(command) => tenant::run(command).await,
    }
}

const LEAST_WORKERS: usize = 2;
/// The module's table, in short.
const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  healthcheck: the broker does not serve
  64  the command line is wrong or lacks something
  65  plaintext, ciphertext, context, name or tenants file refused; an audit trail is broken
  66  an input file is not there or not readable
  69  broker, KMS, key, keyring or store is not available now
  70  a fault of keybroker itself, or the broker's
  71  the operating system refuses: an address in use, no signals
  73  a file or folder cannot be made, or is there already
  74  standard input or output fails
  77  denied, or no identity
  78  configuration, certificates, keyring or store are not usable";

/// A line on standard output, for people. Nobody may be there to read it: a closed pipe is no
/// reason to fail, let alone to panic.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// A line on standard error, as [`say`].
fn warn(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// What a command yields, on standard output.
fn yield_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| {
            Failure::new(
                Exit::Io,
                format!("cannot write to standard output: {error}"),
            )
        })
}

/// All of standard input, at most `limit` bytes, wiped when dropped.
fn input(limit: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // One buffer of final size: a growing one would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    let most = u64::try_from(limit + 1).unwrap_or(u64::MAX);
    io::stdin()
        .lock()
        .take(most)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::new(Exit::Io, format!("cannot read standard input: {error}")))?;
    if bytes.len() > limit {
        let sentence = format!("standard input has more than {limit} bytes, the most of a message");
        return Err(Failure::new(Exit::Data, sentence));
    }
    Ok(bytes)
}

/// Help and version go to standard output and succeed; the rest is a usage error.
fn usage(error: &clap::Error) -> ExitCode {
    // As in `say`: a closed pipe.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(Exit::Usage.code()),
    }
}

/// Logs to standard error, so that standard output stays the audit's or the command's.
fn log(usual: &str) {
    let asked = std::env::var("RUST_LOG").unwrap_or_else(|_| usual.into());
    // Err: a test has set one already.
    let _ = tracing::subscriber::set_global_default(logger(&asked, io::stderr));
    // Where a panic was, and not its message, which may quote a value.
    panic::set_hook(Box::new(|panic| {
        tracing::error!(
            place = panic.location().map(tracing::field::display),
            "a panic, which is a fault of keybroker: the call that met it has failed"
        );
    }));
}

/// Writes what is `asked` for. The AWS SDK's own lines stay at warnings whatever that is: it has
/// printed credentials at TRACE.
fn logger<W>(asked: &str, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse_lossy(format!("{QUIET},{asked}"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // A log file is no place for colors.
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .finish()
        // Not a directive of the filter's, which a longer one would outdo.
        .with(filter_fn(|metadata| {
            !metadata.target().starts_with("aws_") || *metadata.level() <= Level::WARN
        }))
}

/// Libraries that say much of every frame: they are heard when they are asked for by name.
const QUIET: &str = "h2=warn,hyper_util=warn";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::fs::File;

    use super::*;

    #[test]
    fn the_aws_sdk_says_nothing_below_warnings_whatever_is_asked_for() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let asked = "trace,aws_sigv4=trace,aws_smithy_runtime::client=trace,h2=debug";
        let written = File::create(file.path()).expect("a file");
        tracing::subscriber::with_default(logger(asked, written), || {
            tracing::trace!(target: "aws_sigv4", "hidden");
            tracing::trace!(target: "aws_types", "hidden");
            tracing::info!(target: "aws_smithy_runtime::client::orchestrator", "hidden");
            tracing::warn!(target: "aws_config", "shown 1");
            tracing::debug!(target: "h2::proto", "shown 2");
            tracing::trace!("shown 3");
        });
        let text = fs::read_to_string(file.path()).expect("text");
        assert!(!text.contains("hidden"), "{text}");
        assert_eq!(text.matches("shown").count(), 3, "{text}");
    }

    #[test]
    fn libraries_talk_of_frames_only_when_asked_by_name() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let written = File::create(file.path()).expect("a file");
        tracing::subscriber::with_default(logger("trace", written), || {
            tracing::debug!(target: "h2::proto", "hidden");
        });
        assert_eq!(fs::read_to_string(file.path()).expect("text"), "");
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_names_every_exit_code() {
        for exit in [
            Exit::CannotCreate,
            Exit::Config,
            Exit::Data,
            Exit::Denied,
            Exit::Io,
            Exit::NoInput,
            Exit::NotServing,
            Exit::Software,
            Exit::System,
            Exit::Unavailable,
            Exit::Usage,
        ] {
            let row = format!("\n{:>4}  ", exit.code());
            assert!(EXIT_CODES.contains(&row), "{exit:?}");
        }
    }
}
