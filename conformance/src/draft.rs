//! Masks as cases describe them: causal, full, or a drafted tree of some shape.

use crate::case::Lens;
use crate::noise::Noise;
use grouped_attention::MaskKind;
use std::fmt;
use std::str::FromStr;

/// Who sees what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MaskShape {
    /// Aligned at the bottom right.
    Causal,
    /// Every cached position.
    Full,
    /// The prefix, and in the draft a token's own ancestors.
    Tree(Draft),
}

/// How the draft tokens of a sequence hang together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Draft {
    /// Each token follows the one before: causal, written as a tree.
    Chain,
    /// Every token is a root and sees the prefix and itself.
    Roots,
    /// Token t follows token `(t - 1) / 2`.
    Binary,
    /// Each token follows one before it, or none, as the seed decides.
    Random,
    /// Parents as given, `[total_q]`.
    Explicit(Vec<i32>),
}

impl Draft {
    /// Parents of one sequence's draft, `[q_len]`.
    ///
    /// # Panics
    /// For [`Draft::Explicit`], which is given for the batch: see [`MaskShape::parents`].
    pub(crate) fn parents(&self, q_len: usize, seed: u64, sequence: usize) -> Vec<i32> {
        let mut noise = Noise::new(seed, &[0x7265_6564, sequence as u64]);
        let parent = |t: usize| match self {
            Draft::Chain => t as i32 - 1,
            Draft::Roots => -1,
            // -1 / 2 would round to 0 and make the root its own parent.
            Draft::Binary if t == 0 => -1,
            Draft::Binary => (t as i32 - 1) / 2,
            Draft::Random => noise.below(t + 1) as i32 - 1,
            Draft::Explicit(_) => unreachable!("explicit parents belong to the batch"),
        };
        (0..q_len).map(parent).collect()
    }
}

impl MaskShape {
    /// Parents of every draft token of a batch, `[total_q]`; `None` where the mask is no tree.
    ///
    /// A draft is named by its sequence's number in the case, so that a sequence has the same tree
    /// wherever in a batch it stands, and its number of tokens.
    pub fn parents(&self, drafts: &[(usize, usize)], seed: u64) -> Option<Vec<i32>> {
        match self {
            MaskShape::Causal | MaskShape::Full => None,
            MaskShape::Tree(Draft::Explicit(parents)) => Some(parents.clone()),
            MaskShape::Tree(draft) => {
                let of = |&(sequence, q_len): &(usize, usize)| draft.parents(q_len, seed, sequence);
                Some(drafts.iter().flat_map(of).collect())
            }
        }
    }

    /// The mask of a batch whose draft tokens have these parents.
    pub(crate) fn kind<'a>(&self, parents: Option<&'a [i32]>) -> MaskKind<'a> {
        match (self, parents) {
            (_, Some(parents)) => MaskKind::Tree(parents),
            (MaskShape::Causal, None) => MaskKind::Causal,
            (MaskShape::Full | MaskShape::Tree(_), None) => MaskKind::Full,
        }
    }

    /// Pairs of a query and a position it sees, in a sequence with these parents.
    pub(crate) fn visible(&self, lens: Lens, parents: &[i32]) -> usize {
        let Lens { q, kv } = lens;
        match self {
            MaskShape::Full => q * kv,
            MaskShape::Causal => (0..q).map(|t| (kv + t + 1).saturating_sub(q).min(kv)).sum(),
            MaskShape::Tree(_) => {
                let mut depths = Vec::with_capacity(q);
                for &parent in parents {
                    let above = usize::try_from(parent).map_or(0, |parent| depths[parent]);
                    depths.push(above + 1);
                }
                depths.iter().map(|depth| kv.saturating_sub(q) + depth).sum()
            }
        }
    }
}

impl fmt::Display for MaskShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaskShape::Causal => f.write_str("causal"),
            MaskShape::Full => f.write_str("full"),
            MaskShape::Tree(draft) => write!(f, "tree:{draft}"),
        }
    }
}

impl fmt::Display for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Draft::Chain => f.write_str("chain"),
            Draft::Roots => f.write_str("roots"),
            Draft::Binary => f.write_str("binary"),
            Draft::Random => f.write_str("random"),
            Draft::Explicit(parents) => {
                let parents: Vec<String> = parents.iter().map(i32::to_string).collect();
                f.write_str(&parents.join(","))
            }
        }
    }
}

impl FromStr for MaskShape {
    type Err = ();

    fn from_str(text: &str) -> Result<MaskShape, ()> {
        match text.split_once(':') {
            None if text == "causal" => Ok(MaskShape::Causal),
            None if text == "full" => Ok(MaskShape::Full),
            Some(("tree", draft)) => Ok(MaskShape::Tree(match draft {
                "chain" => Draft::Chain,
                "roots" => Draft::Roots,
                "binary" => Draft::Binary,
                "random" => Draft::Random,
                "" => Draft::Explicit(Vec::new()),
                list => {
                    let parents = list.split(',').map(str::parse).collect::<Result<_, _>>();
                    Draft::Explicit(parents.map_err(|_| ())?)
                }
            })),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_parents_they_name() {
        assert_eq!(Draft::Chain.parents(3, 0, 0), [-1, 0, 1]);
        assert_eq!(Draft::Binary.parents(5, 0, 0), [-1, 0, 0, 1, 1]);
        assert_eq!(Draft::Roots.parents(2, 0, 0), [-1, -1]);
        let random = Draft::Random.parents(50, 3, 1);
        assert!(random.iter().enumerate().all(|(t, &parent)| parent < t as i32 && parent >= -1));
    }

    // [S-3.11]
    #[test]
    fn a_chain_sees_what_causal_sees() {
        let lens = Lens { q: 4, kv: 9 };
        let chain = Draft::Chain.parents(4, 0, 0);
        let tree = MaskShape::Tree(Draft::Chain).visible(lens, &chain);
        assert_eq!(tree, MaskShape::Causal.visible(lens, &[]));
    }
}
