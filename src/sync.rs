//! The primitives of logic that races, under one name, so that model tests can put their own in
//! their place (`tests/models`).

pub(crate) use std::sync::atomic;
