//! Why bytes are not a message that opens.

use super::context;
use super::envelope::Limit;
use super::reader::Short;

/// The first thing found wrong with a message. For audit records and the command line; callers
/// over the network get one answer for all of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The bytes are the base64 text of a message.
    #[error("the message is base64; decode it first")]
    Base64,
    /// The message was sealed under another data key.
    #[error("the message commits to another data key")]
    CommitmentMismatch,
    /// The content type is neither framed nor a single block.
    #[error("unknown content type {0}")]
    ContentType(u8),
    /// The encryption context is outside our limits.
    #[error("encryption context: {0}")]
    Context(#[from] context::Error),
    /// The encryption context is not what its own lengths and count say, or not UTF-8.
    #[error("malformed encryption context")]
    ContextMalformed,
    /// There are no bytes.
    #[error("the message is empty")]
    Empty,
    /// The final frame claims more content than a regular one.
    #[error("final frame of {length} bytes, more than the frame length of {limit}")]
    FinalFrame {
        /// The length it claims, in bytes.
        length: u32,
        /// The frame length of the message, in bytes.
        limit: u32,
    },
    /// The frame length does not go with the content type, or passes 2^31 − 1.
    #[error("frame length {0} out of bounds")]
    FrameLength(u32),
    /// The frame of this number was changed, or belongs to another message or place.
    #[error("frame {0} does not verify")]
    FrameMismatch(u32),
    /// A frame is missing, repeated or out of order.
    #[error("frame {found} where frame {expected} belongs")]
    FrameSequence {
        /// The number that comes next.
        expected: u32,
        /// The number that is there.
        found: u32,
    },
    /// The header was changed, or the associated data is not that of the message.
    #[error("header or associated data does not verify")]
    HeaderMismatch,
    /// The encrypted data keys are outside our limits.
    #[error(transparent)]
    Limit(#[from] Limit),
    /// A frame, or a body without frames, is longer than we hold in memory.
    #[error("frame of {length} bytes, more than the {limit} that are held in memory")]
    LongFrame {
        /// The length it claims, in bytes.
        length: u64,
        /// The most bytes that are held.
        limit: u64,
    },
    /// Suite 0x0578, which signs.
    #[error("signed suite 0x0578 is not supported")]
    SignedSuite,
    /// A suite that does not commit to its key, or is unknown.
    #[error("suite {0:#06x} is not supported")]
    Suite(u16),
    /// So many bytes follow the end of the message.
    #[error("{0} bytes after the end of the message")]
    TrailingBytes(usize),
    /// The bytes end before the message does.
    #[error("the message is truncated")]
    Truncated,
    /// The first byte is no message's.
    #[error("not a message: version {0}")]
    Version(u8),
    /// A message of version 1, whose suites don't commit to their key.
    #[error("version 1 messages don't commit to their key and are not read")]
    Version1,
}

impl Flaw {
    /// A stable name in snake case.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Base64 => "base64",
            Self::CommitmentMismatch => "commitment_mismatch",
            Self::ContentType(_) => "content_type",
            Self::Context(_) => "context_limit",
            Self::ContextMalformed => "context_malformed",
            Self::Empty => "empty",
            Self::FinalFrame { .. } => "final_frame_length",
            Self::FrameLength(_) => "frame_length",
            Self::FrameMismatch(_) => "frame_mismatch",
            Self::FrameSequence { .. } => "frame_sequence",
            Self::HeaderMismatch => "header_mismatch",
            Self::Limit(Limit::Field { .. }) => "encrypted_data_key_length",
            Self::Limit(Limit::Keys { .. }) => "encrypted_data_key_count",
            Self::LongFrame { .. } => "long_frame",
            Self::SignedSuite => "signed_suite",
            Self::Suite(_) => "suite",
            Self::TrailingBytes(_) => "trailing_bytes",
            Self::Truncated => "truncated",
            Self::Version(_) => "version",
            Self::Version1 => "version_1",
        }
    }
}

impl From<Short> for Flaw {
    fn from(_: Short) -> Self {
        Self::Truncated
    }
}
