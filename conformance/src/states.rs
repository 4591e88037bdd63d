//! Queries and cache rows that trained models computed, as inputs.

use crate::case::{Case, InvalidCase};
use crate::fill::{Fill, Token, TokenRow};

/// Captured states of one model.
#[derive(Clone, Debug)]
pub struct States {}

impl States {
    /// The states that a case asks for, if it does.
    pub(crate) fn for_case(case: &Case) -> Result<Option<States>, InvalidCase> {
        match case.fill {
            Fill::States => Err(InvalidCase::States { reason: "none are captured".into() }),
            _ => Ok(None),
        }
    }

    pub(crate) fn query(&self, _sequence: usize, _t: usize, _draft: u64) -> Vec<f64> {
        Vec::new()
    }

    pub(crate) fn row(&self, _token: Token) -> TokenRow {
        TokenRow { first: Vec::new(), second: Vec::new() }
    }
}
