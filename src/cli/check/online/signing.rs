//! What KMS lets us do with the key that countersigns audit records, found out by a dry run.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use crate::cli::Failure;
use crate::cli::check::online::label;
use crate::kms::Arn;
use crate::kms::Error;
use crate::kms::Signer as _;
use crate::kms::Statement;
use crate::kms::aws::SigningKey;

/// `audit.kms_key`, and what KMS says of it.
pub(super) struct Signing {
    key: Arn,
    answer: Result<(), Error>,
}

impl Signing {
    pub(super) async fn ask(key: SigningKey, within: Duration) -> Self {
        let asked = timeout(within, key.dry_run()).await;
        let late = || Err(Error::Unavailable("no answer within --within".into()));
        Self {
            key: key.key().clone(),
            answer: asked.unwrap_or_else(|_| late()),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "audit.kms_key  {}  Sign {}\n",
            self.key,
            label(&self.answer)
        );
        if let Err(error) = &self.answer {
            text += &format!("    Sign: {error}\n");
        }
        if let Some(statement) = self.missing() {
            text += &format!("    missing: {statement}\n");
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        serde_json::json!({
            "kms_key": self.key.as_str(),
            "region": self.key.region(),
            "outcome": label(&self.answer),
            "error": self.answer.as_ref().err().map(ToString::to_string),
            "missing_statement": self.missing(),
        })
    }

    pub(super) fn verdict(&self) -> Result<(), Failure> {
        self.answer.as_ref().map_err(|error| {
            let exit = Failure::kms(error).exit;
            Failure::new(exit, format!("audit.kms_key does not sign: {error}"))
        })?;
        Ok(())
    }

    fn missing(&self) -> Option<Statement> {
        match &self.answer {
            Err(Error::AccessDenied(_)) => Some(Statement::to_sign(&self.key)),
            Ok(()) | Err(_) => None,
        }
    }
}
