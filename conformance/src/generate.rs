//! Where cases come from.

pub mod corpus;
