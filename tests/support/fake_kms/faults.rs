//! What can go wrong with an answer, and when.

use std::time::Duration;

use super::Operation;

/// What can go wrong with an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A body as it stands, with this HTTP status.
    Body(u16, String),
    /// The connection ends in order, without an answer.
    Close,
    /// This error code with this HTTP status.
    Code(&'static str, u16),
    /// The right answer, late.
    Delay(Duration),
    /// The right answer, a byte each time that so much has passed.
    Drip(Duration),
    /// This error code, with a message that repeats the request's context.
    EchoContext(&'static str),
    /// This error code, with a message that repeats the request's head.
    EchoHead(&'static str),
    /// A success whose body is no JSON.
    Garbage,
    /// Half of the head, then the end.
    HalfHead,
    /// No answer, on a connection that stays open.
    Hang,
    /// The head, then the end.
    HeadAlone,
    /// A success with a body of this many bytes.
    Huge(u64),
    /// A page of somebody between, with this HTTP status and no code.
    Page(u16),
    /// The connection is reset.
    Reset,
    /// The throttling of KMS, which asks for so much time before the next try.
    Throttle(Duration),
    /// Half of the body, then the end.
    Truncate,
    /// What was asked is done, and no answer comes, on a connection that stays open.
    Unheard,
    /// Another key's ARN in the answer.
    WrongKeyId,
    /// A plaintext of this many bytes.
    WrongLength(usize),
}

/// When a fault happens.
pub struct Rule {
    /// All, if none is named; and so on.
    pub operation: Option<Operation>,
    pub key: Option<String>,
    pub region: Option<String>,
    /// How many times yet.
    pub remaining: Option<usize>,
    pub fault: Fault,
}

/// The rules of a fake. The latest that matches counts.
#[derive(Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    pub fn add(&mut self, rule: Rule) {
        self.0.push(rule);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Ends what is wrong in one Region alone.
    pub fn clear_region(&mut self, region: &str) {
        self.0.retain(|rule| rule.region.as_deref() != Some(region));
    }

    /// What goes wrong with a call, which is counted.
    pub fn next(&mut self, operation: Operation, key: Option<&str>, region: &str) -> Option<Fault> {
        let rule = self.0.iter_mut().rev().find(|rule| {
            rule.remaining != Some(0)
                && rule.operation.is_none_or(|one| one == operation)
                && (rule.key.is_none() || rule.key.as_deref() == key)
                && rule.region.as_ref().is_none_or(|one| one == region)
        })?;
        rule.remaining = rule.remaining.map(|calls| calls - 1);
        Some(rule.fault.clone())
    }
}
