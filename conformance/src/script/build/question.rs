//! What the oracle is asked: the same attention over the tokens that sequences should hold.

use super::{Asking, Builder, magnitude, partner};
use crate::case::InvalidCase;
use crate::fill::TokenRow;
use crate::script::{Question, Rotation, maxima};
use grouped_attention::{
    CacheLayout, Mask, MaskKind, PageId, ReferenceCache, Rope, Row, Sequence, Slot, Step,
};

impl Builder<'_> {
    /// The oracle's cache: one token a page, sequence after sequence.
    pub(super) fn question(
        &self,
        asking: &[Asking],
        mask: MaskKind<'_>,
        q: Vec<f64>,
    ) -> Result<Question, InvalidCase> {
        let tokens: usize = asking.iter().map(|asking| asking.end - asking.first).sum();
        let layout = CacheLayout::new(*self.problem.geometry(), self.problem.dtype(), 1, tokens)?;
        let mut cache = ReferenceCache::new(layout);
        let mut ids: Vec<Vec<PageId>> = Vec::with_capacity(asking.len());
        let mut page = 0;
        for asking in asking {
            let held = &self.live[asking.live].tokens[asking.first..asking.end];
            for token in held {
                let TokenRow { first, second } = self.rotated(token);
                cache.write(Slot { page: PageId(page), row: 0 }, &first, &second);
                page += 1;
            }
            ids.push((page - held.len() as u32..page).map(PageId).collect());
        }
        let sequences: Vec<Sequence<'_>> = asking
            .iter()
            .zip(&ids)
            .map(|(asking, pages)| Sequence { q_len: asking.q_len, kv_len: pages.len(), pages })
            .collect();
        let mask = Mask::new(mask, asking.iter().map(|asking| asking.q_len))?;
        let step = Step::new(1, &sequences, mask)?;
        let (q_max, k_max) = maxima(&step, &q, &cache, self.problem.geometry().heads());
        let rotation = self.problem.rope().map(|rope| self.rotation_error(rope, asking, &step, &q));
        Ok(Question { step, q, cache, rotation, q_max, k_max })
    }

    /// How far `[S-7.19]` lets rotated keys move each row's scores.
    fn rotation_error(&self, rope: &Rope, asking: &[Asking], step: &Step, q: &[f64]) -> Rotation {
        let geometry = self.problem.geometry();
        let (h_q, width) = (geometry.h_q(), geometry.width_k());
        let rows = step.total_q() * h_q;
        let mut rotation = Rotation { relative: vec![0.0; rows], stored: vec![0.0; rows] };
        let dtype = self.problem.dtype();
        let stored_once = |y: f64| dtype.unit_roundoff() * y.abs() + dtype.min_normal();
        for (span, asking) in step.spans().iter().zip(asking) {
            let held = &self.live[asking.live].tokens[asking.first..asking.end];
            for token in held {
                let rotated = self.rotated(token);
                for row in span.q_start * h_q..(span.q_start + span.q_len) * h_q {
                    let head = geometry.cached_head(row % h_q);
                    let given = &token.rows[self.layer];
                    let (x, y, nope) = key_parts(geometry.row(), head, given, &rotated);
                    let q = &q[row * width + nope..][..x.len()];
                    let (mut relative, mut stored) = (0.0, 0.0);
                    for (c, (q, y)) in q.iter().zip(y).enumerate() {
                        let pair = x[c].abs() + x[partner(rope.style(), c, x.len())].abs();
                        relative +=
                            q.abs() * 4.0 * magnitude(rope) * pair * (1.0 + dtype.unit_roundoff());
                        // Once for the engine's rounding, once for the oracle's.
                        stored += q.abs() * 2.0 * stored_once(*y);
                    }
                    let worst = |old: &mut f64, new: f64| *old = old.max(self.case.scale * new);
                    worst(&mut rotation.relative[row], relative);
                    worst(&mut rotation.stored[row], stored);
                }
            }
        }
        rotation
    }
}

/// The token before rotation, after it, and where in the query that part of the key begins.
fn key_parts<'a>(
    row: Row,
    head: usize,
    given: &'a TokenRow,
    rotated: &'a TokenRow,
) -> (&'a [f64], &'a [f64], usize) {
    match row {
        Row::Separate { d_k, .. } => {
            (&given.first[head * d_k..][..d_k], &rotated.first[head * d_k..][..d_k], 0)
        }
        Row::Tied { n, .. } => (&given.second, &rotated.second, n),
    }
}
