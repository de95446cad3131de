//! Who denied what, as a KMS says it.

use std::fmt;

use crate::kms::KeyRef;

/// A denial of access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    said: String,
    replica: Option<KeyRef>,
}

impl Denial {
    /// The same, by this one of the replicas of a multi-Region key.
    pub fn by_replica(self, replica: &KeyRef) -> Self {
        Self {
            replica: Some(replica.clone()),
            ..self
        }
    }

    /// The replica that was asked, where that is not the preferred one by itself: each Region has
    /// policies of its own.
    pub fn replica(&self) -> Option<&KeyRef> {
        self.replica.as_ref()
    }
}

/// With the service's own sentence.
impl<T: Into<String>> From<T> for Denial {
    fn from(said: T) -> Self {
        Self {
            said: said.into(),
            replica: None,
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}
