//! What is done after the first rows are there, scenario by scenario.

use super::{Asking, Builder, Live};
use crate::case::InvalidCase;
use crate::draft::{Draft, MaskShape};
use crate::noise::Noise;
use crate::script::{Capacity, Op};
use grouped_attention::{Extent, MaskKind, Step};

impl Builder<'_> {
    /// Append a draft, attend, take the second half of it back, append something else, attend.
    pub(super) fn truncate(&mut self) -> Result<(), InvalidCase> {
        self.grow_all(0)?;
        self.attend(0, true)?;
        for live in 0..self.live.len() {
            let Live { id, lens, .. } = self.live[live];
            let accepted = lens.kv - lens.q + lens.q / 2;
            self.pool.tables.truncate(id, accepted)?;
            self.live[live].tokens.truncate(accepted);
        }
        self.grow_all(1)?;
        self.attend(1, true)
    }

    /// Append a draft, attend, keep the last token's path, append another draft, attend.
    pub(super) fn keep(&mut self) -> Result<(), InvalidCase> {
        self.grow_all(0)?;
        self.attend(0, true)?;
        let parents = self.parents(&self.everyone());
        let mut start = 0;
        for live in 0..self.live.len() {
            let Live { id, lens, .. } = self.live[live];
            let path = match &parents {
                Some(parents) => path_to_last(&parents[start..start + lens.q]),
                // Without a tree any ascending choice will do: every other token.
                None => (0..lens.q).skip(1).step_by(2).collect(),
            };
            start += lens.q;
            let copies = self.pool.tables.keep(id, lens.q, &path)?;
            self.push_copies(&copies);
            let tokens = &mut self.live[live].tokens;
            let draft = tokens.split_off(lens.kv - lens.q);
            tokens.extend(path.iter().map(|&t| draft[t].clone()));
        }
        self.grow_all(1)?;
        self.attend(1, true)
    }

    /// Fork everyone, shorten the forks into what they share, let both grow apart, attend to all.
    pub(super) fn fork(&mut self) -> Result<(), InvalidCase> {
        let parents = self.live.len();
        for live in 0..parents {
            let (id, copies) = self.pool.tables.fork(self.live[live].id)?;
            self.push_copies(&copies);
            let mut child = self.live[live].clone();
            child.id = id;
            child.content += parents;
            // Back into a full page where there is one, so that growing has to copy it.
            let back = 1 + self.arrangement.page_size / 2;
            let len = child.tokens.len().saturating_sub(back);
            self.pool.tables.truncate(id, len)?;
            child.tokens.truncate(len);
            self.live.push(child);
        }
        // Children first: what they copy on write is still shared with their parents.
        for live in (0..self.live.len()).rev() {
            self.grow(live, self.live[live].lens.q, 0)?;
        }
        self.attend(0, true)
    }

    /// Two attentions over disjoint positions, merged.
    pub(super) fn merge(&mut self) -> Result<(), InvalidCase> {
        let mut noise = Noise::new(self.case.seed, &[0x6567_7265]);
        let page = self.arrangement.page_size;
        let everyone = self.everyone();
        let cut = |asking: &Asking, noise: &mut Noise| {
            noise.below(asking.end.saturating_sub(asking.q_len) / page + 1) * page
        };
        let cuts: Vec<usize> = everyone.iter().map(|asking| cut(asking, &mut noise)).collect();
        let pairs = || everyone.iter().zip(&cuts);
        // Every query sees all positions before the cut, and the mask is aligned with the end.
        let before: Vec<Asking> =
            pairs().map(|(asking, &cut)| Asking { end: cut, ..*asking }).collect();
        let after: Vec<Asking> =
            pairs().map(|(asking, &cut)| Asking { first: cut, ..*asking }).collect();
        let step = self.step(&before, MaskKind::Full)?;
        self.ops.push(Op::Plan { step, capacity: None });
        self.ask_under(&before, MaskKind::Full, 0, 0)?;
        let parents = self.parents(&after);
        self.plan(&after, parents.as_deref(), false, None)?;
        self.ask(&after, parents.as_deref(), 0, 0)?;
        self.ops.push(Op::Merge);
        Ok(())
    }

    /// One plan for the case's step, for a smaller one in another order, and for the first again.
    pub(super) fn update(&mut self, replayed: bool) -> Result<(), InvalidCase> {
        let first = self.everyone();
        let smaller = |(index, asking): (usize, &Asking)| {
            let end = asking.end - asking.end / 3;
            // Every third sequence pads the batch, as a captured graph would have it.
            let q_len = if index % 3 == 1 { 0 } else { asking.q_len.min(end) };
            Asking { q_len, end, ..*asking }
        };
        let second: Vec<Asking> = first.iter().rev().enumerate().map(smaller).collect();
        let parents = [self.parents(&first), self.parents(&second)];
        let extent = *self.step(&first, self.case.mask.kind(parents[0].as_deref()))?.extent();
        let extent = Extent {
            total_q: extent.total_q + 3,
            max_kv_len: extent.max_kv_len + self.arrangement.page_size,
            ..extent
        };
        let spare = |step: &Step| if replayed { extent.total_q - step.total_q() } else { 0 };
        let capacity = Capacity { extent, replayed };
        self.plan(&first, parents[0].as_deref(), false, Some(capacity))?;
        self.ask(&first, parents[0].as_deref(), 0, if replayed { 3 } else { 0 })?;
        for (asking, parents, draft) in [(&second, &parents[1], 1), (&first, &parents[0], 2)] {
            let step = self.step(asking, self.case.mask.kind(parents.as_deref()))?;
            let spare = spare(&step);
            self.ops.push(Op::Update { step });
            self.ask(asking, parents.as_deref(), draft, spare)?;
        }
        Ok(())
    }
}

impl Builder<'_> {
    /// One plan, sized for all that is to come, through five steps of a batch in two layers.
    pub(super) fn serve(&mut self) -> Result<(), InvalidCase> {
        let some = self.live.len().div_ceil(2);
        for live in 0..some {
            self.grow(live, self.live[live].lens.q, 0)?;
        }
        let (mask, other) = (self.case.mask.clone(), other_mask(&self.case.mask));
        self.serve_step(some, &mask, 0, Some(self.most()))?;
        self.grow_all(1)?;
        self.serve_step(self.live.len(), &mask, 1, None)?;
        self.serve_step(0, &mask, 2, None)?;
        self.serve_step(self.live.len(), &other, 3, None)?;
        self.serve_step(some, &mask, 4, None)
    }

    /// What no step of [`serve`](Self::serve) exceeds.
    fn most(&self) -> Capacity {
        let lens = || self.live.iter().map(|live| live.lens);
        let total_q = lens().map(|lens| lens.q).sum();
        let extent = Extent {
            sequences: self.live.len(),
            total_q,
            max_q_len: lens().map(|lens| lens.q).max().unwrap_or(0),
            max_kv_len: lens().map(|lens| lens.kv + lens.q).max().unwrap_or(0),
            writes: total_q,
        };
        Capacity { extent, replayed: false }
    }

    /// The first `count` sequences attend in each layer; the first two steps append their rows.
    fn serve_step(
        &mut self,
        count: usize,
        mask: &MaskShape,
        number: u64,
        capacity: Option<Capacity>,
    ) -> Result<(), InvalidCase> {
        let asking = &self.everyone()[..count];
        let drafts: Vec<(usize, usize)> =
            asking.iter().map(|one| (self.live[one.live].content, one.q_len)).collect();
        let parents = mask.parents(&drafts, self.case.seed);
        let kind = mask.kind(parents.as_deref());
        let appending = number < 2;
        let cells: Vec<(usize, usize)> = asking.iter().flat_map(Asking::own).collect();
        let mut step = self.step(asking, kind)?;
        if appending {
            step = step.writing(self.writes(&cells)?)?;
        }
        self.ops.push(match capacity {
            Some(capacity) => Op::Plan { step, capacity: Some(capacity) },
            None => Op::Update { step },
        });
        for layer in 0..self.case.scenario.layers() {
            self.turn_to(layer);
            if appending {
                self.push_append(&cells)?;
            }
            self.ask_under(asking, kind, number, 0)?;
        }
        Ok(())
    }
}

/// A mask of another kind.
fn other_mask(mask: &MaskShape) -> MaskShape {
    match mask {
        MaskShape::Causal => MaskShape::Tree(Draft::Random),
        MaskShape::Full | MaskShape::Tree(_) => MaskShape::Causal,
    }
}

/// From a root down to the last token, which is the deepest of many drafts.
fn path_to_last(parents: &[i32]) -> Vec<usize> {
    let last = parents.len().checked_sub(1);
    let up = std::iter::successors(last, |&t| usize::try_from(parents[t]).ok());
    let mut path: Vec<usize> = up.collect();
    path.reverse();
    path
}
