//! The statement that a role lacks.

use std::fmt;

use serde::Serialize;

use crate::kms::Arn;
use crate::kms::KeyRef;
use crate::metrics::KmsOperation;

/// A statement of an IAM policy that allows operations on one key. Its text is JSON on one line: it
/// can be pasted as it is.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Statement {
    effect: &'static str,
    action: Vec<String>,
    resource: String,
}

impl Statement {
    /// Allows `operations` on `key`.
    pub fn new(key: &KeyRef, operations: &[KmsOperation]) -> Self {
        let actions = operations.iter();
        Self {
            effect: "Allow",
            action: actions.map(|one| format!("kms:{}", one.label())).collect(),
            resource: key.to_string(),
        }
    }

    /// Allows signatures with `key`, and whatever checks them.
    pub fn to_sign(key: &Arn) -> Self {
        Self {
            effect: "Allow",
            action: ["kms:GetPublicKey", "kms:Sign"].map(String::from).into(),
            resource: key.to_string(),
        }
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(&json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_json_as_a_policy_has_it() {
        let key = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd";
        let key: KeyRef = key.parse().expect("an ARN");
        let operations = [KmsOperation::Decrypt, KmsOperation::DescribeKey];
        assert_eq!(
            Statement::new(&key, &operations).to_string(),
            format!(
                r#"{{"Effect":"Allow","Action":["kms:Decrypt","kms:DescribeKey"],"Resource":"{key}"}}"#
            )
        );
    }
}
