//! Which cached positions a query may see: [`Mask`].

/// A mask as it is asked for: which cached positions j a query t may see.
///
/// ```text
/// causal                causal                tree
/// q_len 3, kv_len 5     q_len 3, kv_len 2     q_len 4, parents [-1, 0, 0, 2]
///      j 0 1 2 3 4           j 0 1                 j 0 1 2 3 4 5
/// t 0    x x x . .      t 0    . .   empty    t 0    x x x . . .
/// t 1    x x x x .      t 1    x .            t 1    x x x x . .
/// t 2    x x x x x      t 2    x x            t 2    x x x . x .
///                                             t 3    x x x . x x
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskKind<'a> {
    /// Query t sees `j <= kv_len - q_len + t`: aligned at the bottom right `[S-3.7]`.
    Causal,
    /// Every query sees every cached position.
    Full,
    /// Query t sees the committed prefix, its ancestors in the draft, and itself `[S-3.9]`.
    ///
    /// One parent per query token of the batch, `[total_q]`: an index local to the sequence's own
    /// draft, smaller than the child's, or -1 for a root.
    Tree(&'a [i32]),
}

/// A legal mask over the queries of a step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// As [`MaskKind::Causal`].
    Causal,
    /// As [`MaskKind::Full`].
    Full,
    /// As [`MaskKind::Tree`].
    Tree(Tree),
}

/// Parents of every draft token of a batch, each smaller than its child.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tree {
    /// `[total_q]`; -1 marks a root.
    parents: Vec<i32>,
}

impl Tree {
    /// `[total_q]`, local to each sequence's draft, -1 for a root.
    pub fn parents(&self) -> &[i32] {
        &self.parents
    }

    /// Tokens between a draft token and its root, the root counted: 1 for a root.
    ///
    /// `draft` is the first query of the sequence in the batch, `t` the token local to it.
    ///
    /// # Panics
    /// If `draft + t` is not a query of the batch.
    pub fn depth(&self, draft: usize, t: usize) -> usize {
        self.path(draft, t).count()
    }

    /// [`depth`](Self::depth) of every token of a draft, in one pass: parents come before their
    /// children.
    pub(crate) fn depths(&self, draft: usize, q_len: usize) -> Vec<usize> {
        let mut depths: Vec<usize> = Vec::with_capacity(q_len);
        for &parent in &self.parents[draft..draft + q_len] {
            depths.push(usize::try_from(parent).map_or(1, |parent| depths[parent] + 1));
        }
        depths
    }

    /// `t` and its ancestors, from the token up to its root, local to the draft.
    ///
    /// # Panics
    /// While iterating, if `draft + t` is not a query of the batch.
    pub fn path(&self, draft: usize, t: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(t), move |&t| usize::try_from(self.parents[draft + t]).ok())
    }

    /// Checks that the parents are drafts of these lengths, one after another.
    pub(crate) fn check(&self, q_lens: impl IntoIterator<Item = usize>) -> Result<(), InvalidMask> {
        let given = self.parents.len();
        let mut draft = 0_usize;
        for (sequence, q_len) in q_lens.into_iter().enumerate() {
            // Lengths past the parents, or past usize, only have to leave the sum wrong.
            let end = draft.saturating_add(q_len);
            let own = &self.parents[draft.min(given)..end.min(given)];
            for (token, &parent) in own.iter().enumerate() {
                // A smaller index both rules out cycles and lets one pass form every path.
                if parent < -1 || i64::from(parent) >= token as i64 {
                    return Err(InvalidMask::Parent { sequence, token, parent });
                }
            }
            draft = end;
        }
        if draft != given {
            return Err(InvalidMask::ParentCount { expected: draft, got: given });
        }
        Ok(())
    }
}

impl Mask {
    /// Checks a mask against the query lengths of a batch.
    ///
    /// # Errors
    /// A parent count other than the sum of the lengths; a parent that is not smaller than its
    /// child, or below -1.
    pub fn new(
        kind: MaskKind<'_>,
        q_lens: impl IntoIterator<Item = usize>,
    ) -> Result<Mask, InvalidMask> {
        let parents = match kind {
            MaskKind::Causal => return Ok(Mask::Causal),
            MaskKind::Full => return Ok(Mask::Full),
            MaskKind::Tree(parents) => parents,
        };
        let tree = Tree { parents: parents.to_vec() };
        tree.check(q_lens)?;
        Ok(Mask::Tree(tree))
    }

    /// True if query `t` of a sequence may see cached position `j < kv_len`.
    ///
    /// `draft` is the first query of the sequence in the batch. This is the definition; engines
    /// find faster ways to the same answer.
    ///
    /// # Panics
    /// If a tree is asked about a query that it does not have, or about more queries than tokens.
    pub fn sees(&self, draft: usize, q_len: usize, kv_len: usize, t: usize, j: usize) -> bool {
        match self {
            Mask::Full => true,
            // j <= kv_len - q_len + t, without the subtraction that could go below 0.
            Mask::Causal => j + q_len <= kv_len + t,
            Mask::Tree(tree) => {
                let prefix = kv_len - q_len;
                j < prefix || tree.path(draft, t).any(|ancestor| prefix + ancestor == j)
            }
        }
    }
}

/// Why parents are not a tree mask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMask {
    /// One parent per query token is needed.
    #[error("a tree mask over {expected} queries has {got} parents")]
    ParentCount {
        /// Queries of the batch.
        expected: usize,
        /// Parents given.
        got: usize,
    },
    /// A parent must come before its child.
    #[error(
        "token {token} of sequence {sequence}'s draft has parent {parent}: expected -1 or an \
         index below {token}"
    )]
    Parent {
        /// Sequence of the batch.
        sequence: usize,
        /// Token local to the draft.
        token: usize,
        /// Its parent as given.
        parent: i32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(mask: &Mask, q_len: usize, kv_len: usize) -> Vec<String> {
        let row =
            |t| (0..kv_len).map(move |j| if mask.sees(0, q_len, kv_len, t, j) { 'x' } else { '.' });
        (0..q_len).map(|t| row(t).collect()).collect()
    }

    // [S-3.7] [S-3.8] [S-3.12]
    #[test]
    fn causal_is_aligned_at_the_bottom_right() {
        assert_eq!(drawn(&Mask::Causal, 3, 5), ["xxx..", "xxxx.", "xxxxx"]);
        assert_eq!(drawn(&Mask::Causal, 3, 2), ["..", "x.", "xx"]);
        assert_eq!(drawn(&Mask::Causal, 2, 2), ["x.", "xx"]);
        assert_eq!(drawn(&Mask::Full, 2, 3), ["xxx", "xxx"]);
    }

    // [S-3.9] [S-3.11]
    #[test]
    fn a_tree_sees_prefix_ancestors_and_itself() {
        let tree = Mask::new(MaskKind::Tree(&[-1, 0, 0, 2]), [4]).unwrap();
        assert_eq!(drawn(&tree, 4, 6), ["xxx...", "xxxx..", "xxx.x.", "xxx.xx"]);
        let chain = Mask::new(MaskKind::Tree(&[-1, 0, 1]), [3]).unwrap();
        assert_eq!(drawn(&chain, 3, 5), drawn(&Mask::Causal, 3, 5));
        let roots = Mask::new(MaskKind::Tree(&[-1, -1]), [2]).unwrap();
        assert_eq!(drawn(&roots, 2, 3), ["xx.", "x.x"]);
    }

    #[test]
    fn parents_are_local_to_their_sequence() {
        let mask = Mask::new(MaskKind::Tree(&[-1, 0, -1, -1, 1]), [2, 0, 3]).unwrap();
        assert!(mask.sees(2, 3, 3, 2, 1) && !mask.sees(2, 3, 3, 2, 0));
        let Mask::Tree(tree) = mask else { panic!("not a tree") };
        assert_eq!((tree.depth(2, 0), tree.depth(2, 2)), (1, 2));
        assert_eq!((tree.depths(0, 2), tree.depths(2, 3)), (vec![1, 2], vec![1, 1, 2]));
        assert_eq!(tree.parents(), [-1, 0, -1, -1, 1]);
        assert_eq!(tree.path(2, 2).collect::<Vec<_>>(), [2, 1]);
    }

    // [S-3.10]
    #[test]
    fn bad_parents_are_named() {
        let error = |parents: &[i32], q_lens: &[usize]| {
            Mask::new(MaskKind::Tree(parents), q_lens.iter().copied()).unwrap_err()
        };
        assert_eq!(error(&[-1, 1], &[2]), InvalidMask::Parent { sequence: 0, token: 1, parent: 1 });
        assert_eq!(error(&[-2], &[1]), InvalidMask::Parent { sequence: 0, token: 0, parent: -2 });
        assert_eq!(
            error(&[-1, 0, 0], &[2, 1]),
            InvalidMask::Parent { sequence: 1, token: 0, parent: 0 }
        );
        assert_eq!(error(&[-1], &[2]), InvalidMask::ParentCount { expected: 2, got: 1 });
        assert_eq!(error(&[-1, -1], &[1]), InvalidMask::ParentCount { expected: 1, got: 2 });
    }
}
