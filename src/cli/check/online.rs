//! What KMS lets us do with the keys of a directory, found out by dry runs.

mod signing;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::SignedDuration;
use serde::Serialize;
use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::Format;
use crate::cli::check::online::signing::Signing;
use crate::cli::serve;
use crate::cli::yield_bytes;
use crate::config::Config;
use crate::directory::Directory;
use crate::directory::Key;
use crate::kms;
use crate::kms::Demand;
use crate::kms::Guarded;
use crate::kms::KeyRef;
use crate::kms::Kms;
use crate::kms::Statement;
use crate::kms::local::Purpose;
use crate::message::EncryptionContext;
use crate::metrics::KmsOperation;
use crate::metrics::Metrics;
use crate::trace::Tracer;

/// Asks about each KMS key of each key in `directory`, and about the one that countersigns audit
/// records, and prints the answers. Fails with the exit
/// code of what is most worth doing something about.
pub(super) async fn check(
    config: &Config,
    directory: &Directory,
    within: SignedDuration,
    output: Format,
) -> Result<(), Failure> {
    let within = Duration::try_from(within).unwrap_or(Duration::ZERO);
    let within = within.min(LONGEST);
    let backends = Arc::new(serve::backends(&config.kms, Purpose::Production).await?);
    let signing = match &config.audit.kms_key {
        Some(key) => Some(Signing::ask(backends.aws.signing_key(key), within).await),
        None => None,
    };
    // What fails once is asked again, as the server does.
    let guarded = Guarded::new(backends, &config.kms.aws, Metrics::unread(), Tracer::off());
    let kms: Arc<dyn Kms> = Arc::new(guarded.map_err(|error| Failure::config(&error))?);
    let rows = ask(&kms, directory, within).await;
    let text = match output {
        Format::Json => json(&rows, signing.as_ref()),
        Format::Text => text(&rows) + &signing.as_ref().map(Signing::text).unwrap_or_default(),
    };
    yield_bytes(text.as_bytes())?;
    verdict(&rows)?;
    signing.map_or(Ok(()), |signing| signing.verdict())
}

/// A KMS key of a key, and what KMS says of it.
struct Row {
    /// `tenants/{tenant}/keys/{key}/versions/{version}`.
    name: String,
    kms_key: KeyRef,
    answers: Vec<(KmsOperation, Result<(), kms::Error>)>,
}

struct Question {
    name: String,
    kms_key: KeyRef,
    context: EncryptionContext,
    operations: &'static [KmsOperation],
    demand: Demand,
}

async fn ask(kms: &Arc<dyn Kms>, directory: &Directory, within: Duration) -> Vec<Row> {
    let deadline = Instant::now() + within;
    let mut keys: Vec<&Arc<Key>> = directory
        .tenants()
        .flat_map(|tenant| directory.keys(tenant.id()))
        .collect();
    keys.sort_by_cached_key(|key| key.name().to_string());
    let questions: Vec<Question> = keys
        .into_iter()
        .flat_map(|key| questions(key, deadline))
        .collect();
    stream::iter(questions)
        .map(|question| answer(Arc::clone(kms), question, deadline))
        .buffered(AT_ONCE)
        .collect()
        .await
}

/// One for each KMS key in each of its Regions: those of the last version seal and open, those before
/// them open.
fn questions(key: &Key, deadline: Instant) -> Vec<Question> {
    let pairs = key.context();
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    // The directory bounds its pairs so that callers have room for their own.
    let context = EncryptionContext::new(pairs).unwrap_or_default();
    let primary = key.kms().primary_version();
    let mut questions = Vec::new();
    for (version, kms_keys) in (1..).zip(key.kms().versions()) {
        let does = |all| if version == primary { all } else { &OPENS[..] };
        let generator = (kms_keys.generator(), does(&GENERATES));
        let additional = kms_keys.additional().map(|one| (one, does(&WRAPS)));
        for (kms_key, operations) in [generator].into_iter().chain(additional) {
            let regions = kms_key.in_regions().iter();
            questions.extend(regions.map(|kms_key| Question {
                name: format!("{}/versions/{version}", key.name()),
                kms_key: kms_key.clone(),
                context: context.clone(),
                operations,
                // The deadline is what ends it, and is told so.
                demand: Demand::new(
                    key.tenant().id().clone(),
                    key.tenant().weight(),
                    deadline + LONGEST,
                ),
            }));
        }
    }
    questions
}

async fn answer(kms: Arc<dyn Kms>, question: Question, deadline: Instant) -> Row {
    let Question {
        name,
        kms_key,
        context,
        operations,
        demand,
    } = question;
    let mut answers = Vec::new();
    for operation in operations {
        let asked = kms.dry_run(*operation, &kms_key, &context, &demand);
        let asked = timeout_at(deadline, asked).await;
        let late = || Err(kms::Error::Unavailable("no answer within --within".into()));
        answers.push((*operation, asked.unwrap_or_else(|_| late())));
    }
    Row {
        name,
        kms_key,
        answers,
    }
}

impl Row {
    /// What our role lacks.
    fn denied(&self) -> Vec<KmsOperation> {
        let denied =
            |answer: &Result<(), kms::Error>| matches!(answer, Err(kms::Error::AccessDenied(_)));
        let answers = self.answers.iter();
        answers
            .filter(|(_, answer)| denied(answer))
            .map(|(operation, _)| *operation)
            .collect()
    }

    fn errors(&self) -> impl Iterator<Item = (KmsOperation, &kms::Error)> {
        let answers = self.answers.iter();
        answers.filter_map(|(operation, answer)| Some((*operation, answer.as_ref().err()?)))
    }
}

fn text(rows: &[Row]) -> String {
    let width = |of: fn(&Row) -> usize| rows.iter().map(of).max().unwrap_or(0);
    let names = width(|row| row.name.len());
    let keys = width(|row| row.kms_key.to_string().len());
    let columns = WRAPS.into_iter().filter(|column| {
        let mut answers = rows.iter().flat_map(|row| &row.answers);
        answers.any(|(operation, _)| operation == column)
    });
    let columns: Vec<KmsOperation> = columns.collect();
    let mut lines = Vec::new();
    for row in rows {
        let cells = columns.iter().map(|operation| {
            let mut answers = row.answers.iter();
            let found = answers.find(|(one, _)| one == operation);
            let outcome = found.map_or("-", |(_, answer)| label(answer));
            format!("  {} {outcome:13}", operation.label())
        });
        let (name, key) = (&row.name, row.kms_key.to_string());
        let line = format!("{name:names$}  {key:keys$}{}", cells.collect::<String>());
        lines.push(line.trim_end().to_owned());
        for (operation, error) in row.errors() {
            lines.push(format!("    {}: {error}", operation.label()));
        }
        let denied = row.denied();
        if !denied.is_empty() {
            let statement = Statement::new(&row.kms_key, &denied);
            lines.push(format!("    missing: {statement}"));
        }
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

fn json(rows: &[Row], signing: Option<&Signing>) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let denied = row.denied();
            let missing = (!denied.is_empty()).then(|| Statement::new(&row.kms_key, &denied));
            let operations: Vec<_> = row
                .answers
                .iter()
                .map(|(operation, answer)| Operation {
                    operation: operation.label(),
                    outcome: label(answer),
                    error: answer.as_ref().err().map(ToString::to_string),
                })
                .collect();
            serde_json::json!({
                "key_version": row.name,
                "kms_key": row.kms_key.to_string(),
                "region": row.kms_key.region(),
                "operations": operations,
                "missing_statement": missing,
            })
        })
        .collect();
    let signing = signing.map(Signing::json);
    let all = serde_json::json!({ "kms_keys": rows, "audit_kms_key": signing });
    format!("{all}\n")
}

#[derive(Serialize)]
struct Operation {
    operation: &'static str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn verdict(rows: &[Row]) -> Result<(), Failure> {
    let failing = rows.iter().filter(|row| row.errors().next().is_some());
    let count = failing.count();
    let failures = rows.iter().flat_map(Row::errors);
    let worst = failures
        .map(|(_, error)| Failure::kms(error).exit)
        .min_by_key(|exit| WORTH.iter().position(|one| one == exit));
    match worst {
        None => Ok(()),
        Some(exit) => {
            let sentence = format!(
                "{count} of {} KMS keys do not do all that is asked of them: the list on standard \
                 output says what, and which statement our role lacks",
                rows.len()
            );
            Err(Failure::new(exit, sentence))
        }
    }
}

fn label(answer: &Result<(), kms::Error>) -> &'static str {
    match answer {
        Ok(()) => "ok",
        Err(kms::Error::AccessDenied(_)) => "DENIED",
        Err(kms::Error::Credentials(_)) => "NO_CREDENTIALS",
        Err(kms::Error::Disabled) => "DISABLED",
        Err(kms::Error::IncorrectKey | kms::Error::InvalidCiphertext | kms::Error::Invalid(_)) => {
            "INVALID"
        }
        Err(kms::Error::NotFound(_)) => "NOT_FOUND",
        Err(kms::Error::PendingDeletion(_)) => "INVALID_STATE",
        Err(kms::Error::Crowded { .. } | kms::Error::Throttled) => "THROTTLED",
        Err(kms::Error::Unavailable(_)) => "UNAVAILABLE",
    }
}

/// What we do with the KMS key that data keys are made with, and whether we see its state.
const GENERATES: [KmsOperation; 3] = [
    KmsOperation::GenerateDataKey,
    KmsOperation::Decrypt,
    KmsOperation::DescribeKey,
];
/// The same for one that wraps them as well, and makes them when the other does not answer.
const WRAPS: [KmsOperation; 4] = [
    KmsOperation::GenerateDataKey,
    KmsOperation::Encrypt,
    KmsOperation::Decrypt,
    KmsOperation::DescribeKey,
];
/// The same for those that only open.
const OPENS: [KmsOperation; 2] = [KmsOperation::Decrypt, KmsOperation::DescribeKey];
/// Whose fault is worth most: what will not pass by itself.
const WORTH: [Exit; 5] = [
    Exit::Denied,
    Exit::Config,
    Exit::Data,
    Exit::Software,
    Exit::Unavailable,
];
/// Longest time for asking, whatever is wanted.
const LONGEST: Duration = Duration::from_secs(3600);
/// KMS keys that are asked about at once: a small part of any quota.
const AT_ONCE: usize = 8;
