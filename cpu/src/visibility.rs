//! Which positions queries see, in the forms that kernels use: ends and words of bits.

use grouped_attention::{Mask, Span};
use std::cmp::Ordering;
use std::ops::Range;

/// A mask, copied into memory that later steps reuse.
#[derive(Debug, Default)]
pub(crate) struct Visibility {
    kind: Kind,
    /// Of every query of the batch; empty unless the mask is a tree.
    paths: Vec<Path>,
}

/// A draft token's way to its root, in words of 64 positions that begin at multiples of 64. A chain
/// of q tokens is q steps long but has only q / 64 words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// Positions of the token's own word that it sees.
    word: u64,
    /// Its nearest ancestor in an earlier word, local to the draft; -1 if there is none.
    earlier: i32,
}

/// Positions of a word.
const WORD: usize = u64::BITS as usize;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Causal,
    Full,
    Tree,
}

impl Visibility {
    /// Room for trees of as many tokens as the vector has.
    pub(crate) fn with_paths(paths: Vec<Path>) -> Visibility {
        Visibility { kind: Kind::Causal, paths }
    }

    /// Copies the mask of a step.
    pub(crate) fn write(&mut self, mask: &Mask, spans: &[Span]) {
        self.paths.clear();
        self.kind = match mask {
            Mask::Causal => Kind::Causal,
            Mask::Full => Kind::Full,
            Mask::Tree(tree) => {
                spans.iter().for_each(|span| self.write_draft(span, tree.parents()));
                Kind::Tree
            }
        };
    }

    /// Parents come before their children, so one pass finds every path.
    fn write_draft(&mut self, span: &Span, parents: &[i32]) {
        let prefix = span.kv_len - span.q_len;
        for t in 0..span.q_len {
            let position = prefix + t;
            let (own, parent) = (1 << (position % WORD), parents[span.q_start + t]);
            let path = match usize::try_from(parent) {
                Ok(parent) if (prefix + parent) / WORD == position / WORD => {
                    let Path { word, earlier } = self.paths[span.q_start + parent];
                    Path { word: word | own, earlier }
                }
                _ => Path { word: own, earlier: parent },
            };
            self.paths.push(path);
        }
    }

    /// The end of the positions that some query of a run sees.
    pub(crate) fn visible_end(&self, span: &Span, queries: &Range<usize>) -> usize {
        match self.kind {
            Kind::Causal => (span.kv_len + queries.end).saturating_sub(span.q_len).min(span.kv_len),
            Kind::Full | Kind::Tree => span.kv_len,
        }
    }

    /// The end of the positions that every query of a run sees: all before it.
    pub(crate) fn common_end(&self, span: &Span, queries: &Range<usize>) -> usize {
        match self.kind {
            Kind::Full => span.kv_len,
            Kind::Causal => {
                (span.kv_len + queries.start + 1).saturating_sub(span.q_len).min(span.kv_len)
            }
            Kind::Tree => span.kv_len - span.q_len,
        }
    }

    /// True if query `t` sees any position.
    pub(crate) fn sees_any(&self, span: &Span, t: usize) -> bool {
        self.visible_end(span, &(t..t + 1)) > 0
    }

    /// The positions `first .. first + 64` that query `t` sees, the first in the lowest bit.
    pub(crate) fn bits(&self, span: &Span, t: usize, first: usize) -> u64 {
        let prefix = low_bits(self.common_end(span, &(t..t + 1)).saturating_sub(first));
        if self.kind != Kind::Tree {
            return prefix;
        }
        let (word, shift) = (first / WORD, first % WORD);
        let low = self.draft_bits(span, t, word) >> shift;
        let high = if shift > 0 { self.draft_bits(span, t, word + 1) << (WORD - shift) } else { 0 };
        prefix | low | high
    }

    /// The draft tokens among the positions of word `word` that query `t` sees.
    fn draft_bits(&self, span: &Span, t: usize, word: usize) -> u64 {
        let prefix = span.kv_len - span.q_len;
        let mut token = t;
        loop {
            let Path { word: bits, earlier } = self.paths[span.q_start + token];
            match ((prefix + token) / WORD).cmp(&word) {
                Ordering::Equal => return bits,
                Ordering::Less => return 0,
                Ordering::Greater => match usize::try_from(earlier) {
                    Ok(ancestor) => token = ancestor,
                    Err(_) => return 0,
                },
            }
        }
    }
}

/// The lowest `count` bits of a word, or all of them.
pub(crate) fn low_bits(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use grouped_attention::MaskKind;

    /// Every form agrees with the definition.
    fn check(mask: Mask, q_len: usize, kv_len: usize) {
        let mut visibility = Visibility::default();
        let span = Span { q_start: 0, q_len, kv_len, page_start: 0 };
        visibility.write(&mask, &[span]);
        for t in 0..q_len {
            let sees = |j| mask.sees(0, q_len, kv_len, t, j);
            assert_eq!(visibility.sees_any(&span, t), (0..kv_len).any(sees));
            for first in (0..kv_len).step_by(23) {
                let bits = visibility.bits(&span, t, first);
                for j in first..kv_len.min(first + 64) {
                    assert_eq!(bits >> (j - first) & 1 == 1, sees(j), "{mask:?} t {t} j {j}");
                }
            }
        }
        for start in 0..q_len {
            for end in start + 1..=q_len {
                let sees = |t, j| mask.sees(0, q_len, kv_len, t, j);
                let common = visibility.common_end(&span, &(start..end));
                assert!((0..common).all(|j| (start..end).all(|t| sees(t, j))));
                let visible = visibility.visible_end(&span, &(start..end));
                assert!((visible..kv_len).all(|j| (start..end).all(|t| !sees(t, j))));
            }
        }
    }

    // [S-3.7] [S-3.8] [S-3.9] [S-3.12]
    #[test]
    fn ends_and_bits_are_the_mask() {
        for (q_len, kv_len) in
            [(1, 0), (1, 1), (4, 2), (3, 64), (5, 66), (2, 200), (70, 130), (150, 190)]
        {
            check(Mask::Causal, q_len, kv_len);
            check(Mask::Full, q_len, kv_len);
            if q_len <= kv_len {
                let parents: Vec<i32> =
                    (0..q_len).map(|t| (t as i32 - 1) / 2 - (t % 3 == 0) as i32).collect();
                let parents: Vec<i32> =
                    parents.iter().enumerate().map(|(t, &p)| p.clamp(-1, t as i32 - 1)).collect();
                let chain: Vec<i32> = (0..q_len).map(|t| t as i32 - 1).collect();
                for parents in [parents, chain] {
                    check(Mask::new(MaskKind::Tree(&parents), [q_len]).unwrap(), q_len, kv_len);
                }
            }
        }
    }
}
