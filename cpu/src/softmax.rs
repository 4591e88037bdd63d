//! Online softmax: what is kept of the positions a query row has seen.
//!
//! ```text
//! m = max of x_j             x_j = score_j * scale * log2(e), rounded once
//! l = sum of 2^(x_j - m)
//! o = sum of 2^(x_j - m) v_j
//! ```
//!
//! Two of them over disjoint positions merge into one over both, so the same type serves the loop
//! over blocks and the combination of parts. Factors for a new maximum are formed from the very
//! maxima that the probabilities used, so that they telescope `[S-7.9]`, and l sums probabilities
//! before any rounding of theirs `[S-7.10]`.

use crate::lanes::Lanes;

/// One query row's sums, wherever they are kept.
#[derive(Debug)]
pub(crate) struct Online<'a> {
    /// -inf while nothing finite was seen.
    pub(crate) m: &'a mut f32,
    pub(crate) l: &'a mut f32,
    /// `[d_v]`, in the order of the units and padded to whole ones.
    pub(crate) o: &'a mut [f32],
}

impl Online<'_> {
    /// Nothing seen.
    #[inline(always)]
    pub(crate) fn init(&mut self) {
        *self.m = f32::NEG_INFINITY;
        *self.l = 0.0;
        self.o.fill(0.0);
    }

    /// Turns the scores of a block into probabilities, adds them to `l`, and rescales `o`, to which
    /// the caller then adds probabilities times values.
    ///
    /// Positions that the row does not see have a score of -inf, and a probability of 0 exactly.
    /// `scores` is a whole number of vectors.
    #[inline(always)]
    pub(crate) fn push<L: Lanes>(&mut self, lanes: L, scores: &mut [f32], scale_log2: f32) {
        let mut max = lanes.splat(f32::NEG_INFINITY);
        for chunk in scores.chunks_exact(L::LANES) {
            max = lanes.max(lanes.load(chunk), max);
        }
        // The scale is positive, so the largest score is the largest x. NaNs are ignored here and
        // spread by their probabilities.
        let raised = self.raise(lanes.largest(max) * scale_log2);
        if let Some(factor) = raised {
            scale(lanes, self.o, factor);
            *self.l *= factor;
        }
        let (scale, shift) = (lanes.splat(scale_log2), lanes.splat(-base(*self.m)));
        let mut sum = lanes.splat(0.0);
        for chunk in scores.chunks_exact_mut(L::LANES) {
            let p = lanes.exp2(lanes.fma(lanes.load(chunk), scale, shift));
            lanes.store(chunk, p);
            sum = lanes.add(sum, p);
        }
        *self.l += lanes.sum(sum);
    }

    /// Adds another row's sums over other positions.
    #[inline(always)]
    pub(crate) fn merge<L: Lanes>(&mut self, lanes: L, m: f32, l: f32, o: &[f32]) {
        if let Some(factor) = self.raise(m) {
            scale(lanes, self.o, factor);
            *self.l *= factor;
        }
        let factor = factor(m, *self.m);
        *self.l += l * factor;
        let factor = lanes.splat(factor);
        let others = o.chunks_exact(L::LANES);
        for (o, other) in self.o.chunks_exact_mut(L::LANES).zip(others) {
            lanes.store(o, lanes.fma(lanes.load(other), factor, lanes.load(o)));
        }
    }

    /// Divides `o` by `l` and answers the lse. `sees` says whether the mask shows the row any
    /// position: one that sees none is empty `[S-3.14]`, one whose scores are all -inf is NaN.
    #[inline(always)]
    pub(crate) fn normalise<L: Lanes>(&mut self, lanes: L, sees: bool) -> f32 {
        if !sees {
            self.o.fill(0.0);
            return f32::NEG_INFINITY;
        }
        if *self.l == 0.0 {
            self.o.fill(f32::NAN);
            return f32::NAN;
        }
        scale(lanes, self.o, 1.0 / *self.l);
        // In f64 the two roundings that cancel large parts of m and ln l do not show.
        (f64::from(*self.m) * std::f64::consts::LN_2 + f64::from(*self.l).ln()) as f32
    }

    /// Raises the maximum to `m` if that is larger, and answers the factor for `l` and `o` then.
    #[inline(always)]
    fn raise(&mut self, m: f32) -> Option<f32> {
        // Where `m` is NaN or no larger, nothing changes.
        if m > *self.m {
            let factor = factor(*self.m, m);
            *self.m = m;
            Some(factor)
        } else {
            None
        }
    }
}

/// What weights relative to the maximum `from` are multiplied by to be relative to `to >= from`.
#[inline(always)]
fn factor(from: f32, to: f32) -> f32 {
    // A sum whose maximum is -inf is 0 or NaN, and 1 keeps either.
    if from == to || from == f32::NEG_INFINITY { 1.0 } else { (from - to).exp2() }
}

/// What is subtracted from exponents: the maximum, or anything finite while all of them are -inf.
#[inline(always)]
pub(crate) fn base(m: f32) -> f32 {
    if m == f32::NEG_INFINITY { 0.0 } else { m }
}

#[inline(always)]
fn scale<L: Lanes>(lanes: L, o: &mut [f32], factor: f32) {
    let factor = lanes.splat(factor);
    for chunk in o.chunks_exact_mut(L::LANES) {
        lanes.store(chunk, lanes.mul(lanes.load(chunk), factor));
    }
}
