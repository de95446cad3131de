//! keybroker: a gRPC key broker between applications and AWS KMS.
//!
//! The rooms, in the order in which imports may point (later rooms import earlier ones, never the
//! reverse). A request passes them from the bottom up to [`grpc`] and back:

mod sync;

pub mod clock;
pub mod mem;

pub mod crypto;
pub mod name;
pub mod strict;

pub mod metrics;
pub mod trace;

pub mod identity;
pub mod message;

pub mod kms;

pub mod quota;

pub mod directory;

pub mod grants;

pub mod policy;

pub mod datakeys;

pub mod store;

pub mod audit;
pub mod error;

pub mod broker;

pub mod telemetry;

pub mod grpc;

pub mod admin;

pub mod config;

pub mod cli;
