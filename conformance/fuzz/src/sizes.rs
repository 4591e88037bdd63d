//! Sizes as callers get them wrong: mostly small, sometimes absurd.

use arbitrary::{Arbitrary, Result, Unstructured};

/// A number of something.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub usize);

impl<'a> Arbitrary<'a> for Size {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Size> {
        let byte: u8 = input.arbitrary()?;
        Ok(Size(match byte {
            0..=239 => usize::from(byte % 12),
            240..=247 => 1 << (byte - 240 + 28),
            248..=251 => usize::MAX >> (byte - 248),
            _ => input.arbitrary()?,
        }))
    }
}
