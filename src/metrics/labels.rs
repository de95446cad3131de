//! What is counted, as closed sets: each is the values of one label.

/// What became of an audit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audited {
    /// A sink has it.
    Accepted,
    /// No sink has it, or none in time.
    Failed,
    /// One of several sinks will never have it.
    Missed,
}

impl Audited {
    pub(super) const ALL: [Self; 3] = [Self::Accepted, Self::Failed, Self::Missed];

    /// The value of the label `outcome`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Failed => "failed",
            Self::Missed => "missed",
        }
    }
}

/// What became of an attempt to have audit records countersigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Countersigned {
    /// KMS has signed.
    Done,
    /// It has not.
    Failed,
}

impl Countersigned {
    pub(super) const ALL: [Self; 2] = [Self::Done, Self::Failed];

    /// The value of the label `outcome`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// How a look-up in the data-key cache was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// By the KMS call of another look-up.
    Coalesced,
    /// By a cached key within its limits.
    Hit,
    /// By a KMS call of its own.
    Miss,
    /// By a cached key past its soft limit, whose successor is due.
    Stale,
}

impl Lookup {
    pub(super) const ALL: [Self; 4] = [Self::Coalesced, Self::Hit, Self::Miss, Self::Stale];

    /// The value of the label `result`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Coalesced => "coalesced",
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
        }
    }
}

/// Whose limit a request is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateScope {
    /// The caller's own.
    Principal,
    /// That of all callers of the tenant.
    Tenant,
}

impl RateScope {
    /// Everyone who has a limit.
    pub const ALL: [Self; 2] = [Self::Principal, Self::Tenant];

    /// The value of the label `scope`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Principal => "principal",
            Self::Tenant => "tenant",
        }
    }
}

/// Why a call found no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    /// As many calls as may be are under way.
    InFlight,
    /// Work stands in line too long, and the tenant has had its share.
    QueueDelay,
    /// As many streams as may be are under way.
    Streams,
    /// As many calls as may be wait for KMS.
    Waiters,
}

impl Shed {
    /// Every reason that there is.
    pub const ALL: [Self; 4] = [
        Self::InFlight,
        Self::QueueDelay,
        Self::Streams,
        Self::Waiters,
    ];

    /// The value of the label `reason`: the setting that bounds it.
    pub fn label(self) -> &'static str {
        match self {
            Self::InFlight => "in_flight",
            Self::QueueDelay => "queue_delay",
            Self::Streams => "streams",
            Self::Waiters => "waiters",
        }
    }
}

/// Why a data key left the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retirement {
    /// Of its limit of age: reached, or so near that a successor came.
    Age,
    /// Of its limit of bytes, likewise.
    Bytes,
    /// The cache, or its tenant's share of it, was full.
    Capacity,
    /// KMS refused the key behind it.
    Denied,
    /// Nobody used it for long.
    Idle,
    /// One of its key's KMS keys had not wrapped it, and a successor came.
    Incomplete,
    /// Of its limit of messages, likewise.
    Messages,
    /// Somebody had it purged.
    Purge,
    /// The directory changed: its key is gone, or is not what it was.
    Rotated,
}

impl Retirement {
    /// Every reason that there is.
    pub const ALL: [Self; 9] = [
        Self::Age,
        Self::Bytes,
        Self::Capacity,
        Self::Denied,
        Self::Idle,
        Self::Incomplete,
        Self::Messages,
        Self::Purge,
        Self::Rotated,
    ];

    /// The value of the label `reason`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Bytes => "bytes",
            Self::Capacity => "capacity",
            Self::Denied => "denied",
            Self::Idle => "idle",
            Self::Incomplete => "incomplete",
            Self::Messages => "messages",
            Self::Purge => "purge",
            Self::Rotated => "rotated",
        }
    }
}

/// How fetching a data key's successor ahead of time ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// The successor is in the cache.
    Done,
    /// KMS did not answer: the key serves on within its hard limits.
    Failed,
    /// KMS refused.
    Refused,
}

impl Refresh {
    pub(super) const ALL: [Self; 3] = [Self::Done, Self::Failed, Self::Refused];

    /// The value of the label `outcome`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// What became of an entry that a restart began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warming {
    /// KMS gave its data key again.
    Done,
    /// KMS did not answer.
    Failed,
    /// It belongs to no key of the directory any more.
    Foreign,
    /// There is no room for it.
    Full,
    /// A caller was faster.
    Known,
    /// KMS refused.
    Refused,
}

impl Warming {
    pub(super) const ALL: [Self; 6] = [
        Self::Done,
        Self::Failed,
        Self::Foreign,
        Self::Full,
        Self::Known,
        Self::Refused,
    ];

    /// The value of the label `outcome`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Foreign => "foreign",
            Self::Full => "full",
            Self::Known => "known",
            Self::Refused => "refused",
        }
    }
}

/// What we need and can do without for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependency {
    /// The sinks of audit records.
    Audit,
    /// The KMS key that countersigns them.
    AuditKms,
    /// The key management service.
    Kms,
    /// Where tenants are kept.
    Store,
}

impl Dependency {
    pub(super) const ALL: [Self; 4] = [Self::Audit, Self::AuditKms, Self::Kms, Self::Store];

    /// The value of the label `dependency`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::AuditKms => "audit_kms",
            Self::Kms => "kms",
            Self::Store => "store",
        }
    }
}

/// What a KMS is asked to do; the labels are its own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KmsOperation {
    /// To unwrap a data key.
    Decrypt,
    /// Whether a key may be used.
    DescribeKey,
    /// To wrap a data key that another key has made.
    Encrypt,
    /// To make a data key and wrap it.
    GenerateDataKey,
}

impl KmsOperation {
    pub(super) const ALL: [Self; 4] = [
        Self::Decrypt,
        Self::DescribeKey,
        Self::Encrypt,
        Self::GenerateDataKey,
    ];

    /// The value of the label `operation`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Decrypt => "Decrypt",
            Self::DescribeKey => "DescribeKey",
            Self::Encrypt => "Encrypt",
            Self::GenerateDataKey => "GenerateDataKey",
        }
    }
}

/// How a request to a KMS ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KmsOutcome {
    /// Nobody waited for the answer any more.
    Abandoned,
    /// Our own credentials are missing or no good.
    Credentials,
    /// It did what it was asked.
    Done,
    /// It answered against its contract, or called our request malformed.
    Invalid,
    /// It decided against it.
    Refused,
    /// It asks for fewer requests.
    Throttled,
    /// It failed, was not reached or did not answer in time.
    Unavailable,
}

impl KmsOutcome {
    pub(super) const ALL: [Self; 7] = [
        Self::Abandoned,
        Self::Credentials,
        Self::Done,
        Self::Invalid,
        Self::Refused,
        Self::Throttled,
        Self::Unavailable,
    ];

    /// The value of the label `outcome`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
            Self::Credentials => "credentials",
            Self::Done => "done",
            Self::Invalid => "invalid",
            Self::Refused => "refused",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What became of a reload of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The new one is in force.
    Done,
    /// The old one stays in force.
    Failed,
}

impl Reload {
    pub(super) const ALL: [Self; 2] = [Self::Done, Self::Failed];

    /// The value of the label `outcome`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// What was decided about a caller and a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The caller may.
    Allow,
    /// The caller may not, or the key's tenant is suspended.
    Deny,
    /// The caller may use the key, but not with this context or for this message.
    Invalid,
}

impl Decision {
    pub(super) const ALL: [Self; 3] = [Self::Allow, Self::Deny, Self::Invalid];

    /// The value of the label `decision`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Invalid => "invalid",
        }
    }
}

/// Whether requests for a KMS key are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// They are.
    Closed,
    /// One at a time, until one does not fail.
    Half,
    /// They are not.
    Open,
}
