//! The statement that a role lacks.

use std::fmt;

use crate::kms::KeyRef;
use crate::metrics::KmsOperation;

/// A statement of an IAM policy, in JSON on one line, which allows operations on one key: it can be
/// pasted as it is.
pub struct Statement<'a> {
    key: &'a KeyRef,
    operations: &'a [KmsOperation],
}

impl<'a> Statement<'a> {
    /// Allows `operations` on `key`.
    pub fn new(key: &'a KeyRef, operations: &'a [KmsOperation]) -> Self {
        Self { key, operations }
    }
}

impl fmt::Display for Statement<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actions = self.operations.iter().map(|one| one.label());
        let actions: Vec<String> = actions.map(|label| format!("\"kms:{label}\"")).collect();
        // No name of a key has anything that JSON escapes.
        write!(
            f,
            r#"{{"Effect":"Allow","Action":[{}],"Resource":"{}"}}"#,
            actions.join(","),
            self.key
        )
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
        let statement = Statement::new(&key, &operations).to_string();
        let expected = serde_json::json!({
            "Effect": "Allow",
            "Action": ["kms:Decrypt", "kms:DescribeKey"],
            "Resource": key.to_string(),
        });
        let parsed: serde_json::Value = serde_json::from_str(&statement).expect("JSON");
        assert_eq!(parsed, expected);
    }
}
