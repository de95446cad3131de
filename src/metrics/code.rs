//! How calls end, as gRPC numbers and names it.

/// The status code of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Served.
    Ok,
    /// Its client has gone.
    Cancelled,
    /// Nobody knows.
    Unknown,
    /// Its request is not acceptable.
    InvalidArgument,
    /// Its time is over.
    DeadlineExceeded,
    /// What it names is not there.
    NotFound,
    /// What it makes is there.
    AlreadyExists,
    /// Its caller may not.
    PermissionDenied,
    /// There is no more room, or its caller has had its share.
    ResourceExhausted,
    /// What it names is not in the state for it.
    FailedPrecondition,
    /// It met another.
    Aborted,
    /// It goes past an end.
    OutOfRange,
    /// There is no such method.
    Unimplemented,
    /// A fault of ours.
    Internal,
    /// Something that it needs does not answer.
    Unavailable,
    /// Something is lost for good.
    DataLoss,
    /// Its caller has no identity.
    Unauthenticated,
}

/// What a call came to, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CallOutcome {
    /// Its client has gone before.
    Abandoned,
    /// It was served.
    Done,
    /// The server could not: these spend the error budget.
    Failed,
    /// Its caller asked for what it can't have.
    Refused,
}

impl Code {
    /// In the order of their numbers.
    pub(super) const ALL: [Self; 17] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// Its number; those that there are count from 0 without a gap.
    pub(super) fn number(self) -> usize {
        match self {
            Self::Ok => 0,
            Self::Cancelled => 1,
            Self::Unknown => 2,
            Self::InvalidArgument => 3,
            Self::DeadlineExceeded => 4,
            Self::NotFound => 5,
            Self::AlreadyExists => 6,
            Self::PermissionDenied => 7,
            Self::ResourceExhausted => 8,
            Self::FailedPrecondition => 9,
            Self::Aborted => 10,
            Self::OutOfRange => 11,
            Self::Unimplemented => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::DataLoss => 15,
            Self::Unauthenticated => 16,
        }
    }

    /// The value of `rpc.response.status_code`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Cancelled => "CANCELLED",
            Self::Unknown => "UNKNOWN",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
            Self::DataLoss => "DATA_LOSS",
            Self::Unauthenticated => "UNAUTHENTICATED",
        }
    }

    /// What it says of the call; which codes tell of a failure is OpenTelemetry's convention for
    /// servers.
    pub fn outcome(self) -> CallOutcome {
        match self {
            Self::Ok => CallOutcome::Done,
            Self::Cancelled => CallOutcome::Abandoned,
            Self::DataLoss
            | Self::DeadlineExceeded
            | Self::Internal
            | Self::Unavailable
            | Self::Unimplemented
            | Self::Unknown => CallOutcome::Failed,
            Self::Aborted
            | Self::AlreadyExists
            | Self::FailedPrecondition
            | Self::InvalidArgument
            | Self::NotFound
            | Self::OutOfRange
            | Self::PermissionDenied
            | Self::ResourceExhausted
            | Self::Unauthenticated => CallOutcome::Refused,
        }
    }
}

impl CallOutcome {
    /// The value of the label `outcome`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_stands_at_its_number() {
        let numbers: Vec<usize> = Code::ALL.map(Code::number).to_vec();
        assert_eq!(numbers, (0..Code::ALL.len()).collect::<Vec<_>>());
    }
}
