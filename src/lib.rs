//! keybroker: a gRPC key broker between applications and AWS KMS.
//!
//! The rooms, in the order in which a request passes them and imports may point (later rooms
//! import earlier ones, never the reverse):

pub mod clock;
pub mod crypto;
pub mod kms;
pub mod message;
pub mod name;
