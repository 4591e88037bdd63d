//! Where cases come from.
//!
//! | generator | cases | for |
//! |---|---|---|
//! | [`corpus`] | named, kept as data | what went wrong once, or would unnoticed |
//! | [`grid`] | every pair of values of every two axes | interactions of settings |
//! | [`exhaustive`] | every case up to a small size | boundaries nobody thought of |
//! | [`random`] | proptest over descriptions | the rest; what it finds is shrunk to a line |

pub mod corpus;
pub mod exhaustive;
pub mod grid;
pub mod random;
mod shape;
