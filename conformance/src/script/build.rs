//! Writing the script of a case, and the oracle's record beside it.

use super::pool::{Pool, Queried};
use super::{
    Arrangement, Audit, Capacity, Op, Question, Rotation, SPARE_ROWS, Script, StoredRow, maxima,
};
use crate::case::{Case, InvalidCase, Lens};
use crate::draft::{Draft, MaskShape};
use crate::fill::{Filler, Token, TokenRow};
use crate::noise::Noise;
use crate::scenario::Scenario;
use crate::states::States;
use grouped_attention::{
    CacheLayout, Extent, HostTensor, Mask, MaskKind, PageId, Problem, ReferenceCache, Rope,
    RopeStyle, Row, Sequence, SequenceId, Slot, Step, Write,
};
use std::collections::HashSet;
use std::rc::Rc;

/// A token that a sequence should hold.
#[derive(Clone, Debug)]
struct Held {
    /// As it is given to the engine.
    row: Rc<TokenRow>,
    /// What a rotating append turns its key by.
    position: i64,
}

/// A sequence as the oracle sees it: its tokens, whatever the pages do.
#[derive(Clone, Debug)]
struct Live {
    id: SequenceId,
    /// Which stream of content it draws from.
    content: usize,
    lens: Lens,
    tokens: Vec<Held>,
}

/// Writes a script.
pub(super) struct Builder<'a> {
    case: &'a Case,
    arrangement: Arrangement,
    problem: Problem,
    filler: Filler,
    pool: Pool,
    live: Vec<Live>,
    ops: Vec<Op>,
    questions: Vec<Question>,
    /// Cells that hold NaN still.
    poisoned: HashSet<Slot>,
}

/// One sequence of an attention: an index into `live`, its queries, and its cached positions.
#[derive(Clone, Copy, Debug)]
struct Asking {
    live: usize,
    q_len: usize,
    first: usize,
    end: usize,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        case: &'a Case,
        arrangement: Arrangement,
    ) -> Result<Builder<'a>, InvalidCase> {
        let refused =
            |reason| Err(InvalidCase::Scenario { scenario: case.scenario.to_string(), reason });
        if case.scenario.appends() && case.lens.iter().any(|lens| lens.q > lens.kv) {
            return refused("more queries than cached tokens, which are to be appended");
        }
        if case.scenario == Scenario::Merge && case.no_lse {
            return refused("a merge needs the lse");
        }
        let explicit = matches!(&case.mask, MaskShape::Tree(Draft::Explicit(_)));
        let one_mask = matches!(
            case.scenario,
            Scenario::Attend | Scenario::Append | Scenario::Merge | Scenario::Rotate(_)
        );
        if explicit && !one_mask {
            return refused("explicit parents fit one attention, and this has several");
        }
        let rearranged =
            matches!(case.scenario, Scenario::Attend | Scenario::Append | Scenario::Rotate(_));
        if case.invariant && (explicit || case.shared || !rearranged) {
            return refused("sequences here have other content alone than in this batch");
        }
        let copies = if case.scenario == Scenario::Fork { 2 } else { 1 };
        let room = |lens: &Lens| lens.kv + lens.q + arrangement.page_size;
        let tokens: Vec<usize> = (0..copies).flat_map(|_| case.lens.iter().map(room)).collect();
        Ok(Builder {
            case,
            problem: case.problem()?,
            filler: Filler::new(case, States::for_case(case)?),
            pool: Pool::new(case, &arrangement, &tokens)?,
            arrangement,
            live: Vec::new(),
            ops: Vec::new(),
            questions: Vec::new(),
            poisoned: HashSet::new(),
        })
    }

    pub(super) fn build(mut self) -> Result<Script, InvalidCase> {
        self.poison()?;
        self.begin()?;
        match self.case.scenario {
            Scenario::Attend => self.attend(0, false)?,
            Scenario::Append | Scenario::Rotate(_) => {
                self.grow_all(0)?;
                self.attend(0, true)?;
            }
            Scenario::Truncate => self.truncate()?,
            Scenario::Keep => self.keep()?,
            Scenario::Fork => self.fork()?,
            Scenario::Merge => self.merge()?,
            Scenario::Update => self.update(false)?,
            Scenario::Replay => self.update(true)?,
        }
        Ok(Script {
            audit: self.audit()?,
            case: self.case.clone(),
            problem: self.problem,
            layout: self.pool.layout,
            ops: self.ops,
            questions: self.questions,
        })
    }

    /// NaN into every cell, so that reading one that no token is written to shows.
    fn poison(&mut self) -> Result<(), InvalidCase> {
        let cells = self.pool.all_cells();
        let [first, second] = self.problem.geometry().row().parts();
        let nan = TokenRow { first: vec![f64::NAN; first], second: vec![f64::NAN; second] };
        let rows = vec![&nan; cells.len()];
        let append = self.append_op(&rows, false)?;
        self.poisoned.extend(&cells);
        let writes = cells.into_iter().map(|slot| Write { slot, position: 0 }).collect();
        let step = Step::new(self.arrangement.page_size, &[], Mask::Full)?.writing(writes)?;
        self.ops.push(Op::Plan { step, capacity: None });
        self.ops.push(append);
        Ok(())
    }

    /// Tokens in their cells, and NaN where nothing was ever written.
    fn audit(&self) -> Result<Audit, InvalidCase> {
        let mut audit = Audit { slots: Vec::new(), rows: Vec::new() };
        let mut seen = HashSet::new();
        for live in &self.live {
            for (position, token) in live.tokens.iter().enumerate() {
                let slot = self.pool.slot(live.id, position)?;
                if seen.insert(slot) {
                    audit.slots.push(slot);
                    audit.rows.push(self.stored(token));
                }
            }
        }
        let mut untouched: Vec<Slot> = self.poisoned.iter().copied().collect();
        untouched.sort_unstable();
        audit.slots.extend(untouched);
        Ok(audit)
    }

    fn stored(&self, token: &Held) -> StoredRow {
        let rotation = self.problem.rope().map(|rope| {
            let pairs = |key: &[f64]| -> Vec<f64> {
                let other = |c: usize| key[partner(rope.style(), c, key.len())];
                let of = |(c, x): (usize, &f64)| 4.0 * (x.abs() + other(c).abs());
                key.iter().enumerate().map(of).collect()
            };
            let TokenRow { first, second } = &*token.row;
            match self.problem.geometry().row() {
                Row::Separate { d_k, .. } => TokenRow {
                    first: first.chunks_exact(d_k).flat_map(pairs).collect(),
                    second: vec![0.0; second.len()],
                },
                Row::Tied { .. } => {
                    TokenRow { first: vec![0.0; first.len()], second: pairs(second) }
                }
            }
        });
        StoredRow { row: self.rotated(token), rotation }
    }

    /// Sequences with the tokens they begin with.
    fn begin(&mut self) -> Result<(), InvalidCase> {
        let mut cells = Vec::new();
        for index in 0..self.arrangement.sequences.len() {
            let content = self.arrangement.sequences[index];
            let lens = self.case.lens[content];
            let len = lens.kv - if self.case.scenario.appends() { lens.q } else { 0 };
            let mut live = self.beginning(content, lens, len)?;
            let common = live.tokens.len();
            self.pool.tables.extend(live.id, len - common)?;
            for position in common..len {
                live.tokens.push(self.token(&live, position, 0));
                cells.push((index, position));
            }
            self.live.push(live);
        }
        let step = Step::new(self.arrangement.page_size, &[], Mask::Full)?;
        let step = step.writing(self.writes(&cells)?)?;
        self.ops.push(Op::Plan { step, capacity: None });
        self.push_append(&cells)
    }

    /// A sequence with what it shares with the first one: nothing, or whole pages.
    fn beginning(&mut self, content: usize, lens: Lens, len: usize) -> Result<Live, InvalidCase> {
        let Some(first) = self.live.first().filter(|_| self.case.shared) else {
            let id = self.pool.tables.insert();
            return Ok(Live { id, content, lens, tokens: Vec::new() });
        };
        let page = self.arrangement.page_size;
        let common = len.min(first.tokens.len()) / page * page;
        let tokens = first.tokens[..common].to_vec();
        // Nothing is written yet, so the copy of a fork's last page has nothing to copy.
        let (id, _) = self.pool.tables.fork(first.id)?;
        self.pool.tables.truncate(id, common)?;
        Ok(Live { id, content, lens, tokens })
    }

    fn token(&self, live: &Live, position: usize, draft: u64) -> Held {
        let token = Token { sequence: live.content, position, draft };
        let row = Rc::new(self.filler.row(token, live.lens));
        // Gaps, and offsets that differ by sequence: nothing may be taken from the cache position.
        let rotated_by = 3 * position as i64 + 1_001 * live.content as i64 - 50;
        Held { row, position: rotated_by }
    }

    /// Cells of `(live, position)` pairs.
    fn writes(&mut self, cells: &[(usize, usize)]) -> Result<Vec<Write>, InvalidCase> {
        let write = |&(live, position): &(usize, usize)| {
            let live = &self.live[live];
            let slot = self.pool.slot(live.id, position)?;
            self.poisoned.remove(&slot);
            Ok(Write { slot, position: live.tokens[position].position })
        };
        cells.iter().map(write).collect()
    }

    /// Appends the tokens at `(live, position)` pairs by the current plan.
    fn push_append(&mut self, cells: &[(usize, usize)]) -> Result<(), InvalidCase> {
        let held = cells.iter().map(|&(live, at)| Rc::clone(&self.live[live].tokens[at].row));
        let held: Vec<Rc<TokenRow>> = held.collect();
        let rows: Vec<&TokenRow> = held.iter().map(|row| &**row).collect();
        let rotating = matches!(self.case.scenario, Scenario::Rotate(_));
        let append = self.append_op(&rows, rotating)?;
        self.ops.push(append);
        Ok(())
    }

    fn append_op(&self, rows: &[&TokenRow], rotating: bool) -> Result<Op, InvalidCase> {
        let (row, dtype) = (self.problem.geometry().row(), self.problem.dtype());
        let heads = row.heads();
        let (first_tail, second_tail) = match row {
            Row::Separate { d_k, d_v, .. } => ([heads, d_k], vec![heads, d_v]),
            Row::Tied { s, r, .. } => ([heads, s], vec![r]),
        };
        let count = rows.len() + SPARE_ROWS;
        let tensor = |part: fn(&TokenRow) -> &[f64], tail: &[usize]| {
            let width: usize = tail.iter().product();
            let mut values: Vec<f64> = rows.iter().flat_map(|row| part(row)).copied().collect();
            values.resize(count * width, f64::NAN);
            HostTensor::from_f64(dtype, &[&[count], tail].concat(), &values)
        };
        let first = tensor(|row| &row.first, &first_tail)?;
        // Without a rope key the second part may be left out, and then it is.
        let second = match second_tail.as_slice() {
            [0] => None,
            tail => Some(tensor(|row| &row.second, tail)?),
        };
        Ok(Op::Append { first, second, rotating })
    }

    /// Lengthens a sequence by its next `count` tokens.
    fn grow(&mut self, live: usize, count: usize, draft: u64) -> Result<(), InvalidCase> {
        let copies = self.pool.tables.extend(self.live[live].id, count)?;
        self.push_copies(&copies);
        let old = self.live[live].tokens.len();
        for position in old..old + count {
            let token = self.token(&self.live[live], position, draft);
            self.live[live].tokens.push(token);
        }
        Ok(())
    }

    fn grow_all(&mut self, draft: u64) -> Result<(), InvalidCase> {
        for live in 0..self.live.len() {
            self.grow(live, self.live[live].lens.q, draft)?;
        }
        Ok(())
    }

    fn push_copies(&mut self, copies: &[grouped_attention::RowCopy]) {
        if copies.is_empty() {
            return;
        }
        let placed = self.pool.placed(copies);
        for copy in &placed {
            for row in copy.to.row..copy.to.row + copy.rows {
                self.poisoned.remove(&Slot { row, ..copy.to });
            }
        }
        self.ops.push(Op::Copy(placed));
    }

    /// Every sequence with its case's number of queries at its end.
    fn everyone(&self) -> Vec<Asking> {
        let asking = |(live, of): (usize, &Live)| Asking {
            live,
            q_len: of.lens.q,
            first: 0,
            end: of.tokens.len(),
        };
        self.live.iter().enumerate().map(asking).collect()
    }

    /// All sequences attend under the case's mask; their own tokens are appended first if
    /// `appending`.
    fn attend(&mut self, draft: u64, appending: bool) -> Result<(), InvalidCase> {
        let asking = self.everyone();
        let parents = self.parents(&asking);
        self.plan(&asking, parents.as_deref(), appending, None)?;
        self.ask(&asking, parents.as_deref(), draft, 0)
    }

    fn parents(&self, asking: &[Asking]) -> Option<Vec<i32>> {
        let draft = |asking: &Asking| (self.live[asking.live].content, asking.q_len);
        let drafts: Vec<(usize, usize)> = asking.iter().map(draft).collect();
        self.case.mask.parents(&drafts, self.case.seed)
    }

    fn mask_kind<'m>(&self, parents: Option<&'m [i32]>) -> MaskKind<'m> {
        match (&self.case.mask, parents) {
            (_, Some(parents)) => MaskKind::Tree(parents),
            (MaskShape::Causal, None) => MaskKind::Causal,
            (MaskShape::Full | MaskShape::Tree(_), None) => MaskKind::Full,
        }
    }

    fn step(&self, asking: &[Asking], mask: MaskKind<'_>) -> Result<Step, InvalidCase> {
        let queried = asking.iter().map(|asking| Queried {
            id: self.live[asking.live].id,
            q_len: asking.q_len,
            first: asking.first,
            end: asking.end,
        });
        self.pool.step(&queried.collect::<Vec<_>>(), mask)
    }

    /// Plans an attention of `asking` and, if `appending`, appends the queries' own tokens.
    fn plan(
        &mut self,
        asking: &[Asking],
        parents: Option<&[i32]>,
        appending: bool,
        capacity: Option<Capacity>,
    ) -> Result<(), InvalidCase> {
        let mut step = self.step(asking, self.mask_kind(parents))?;
        let own = |asking: &Asking| {
            let (live, end) = (asking.live, asking.end);
            (end - asking.q_len.min(end)..end).map(move |position| (live, position))
        };
        let cells: Vec<(usize, usize)> = asking.iter().flat_map(own).collect();
        if appending {
            step = step.writing(self.writes(&cells)?)?;
        }
        self.ops.push(Op::Plan { step, capacity });
        if appending { self.push_append(&cells) } else { Ok(()) }
    }

    /// Attends by the current plan, and asks the oracle the same. `spare` rows of the query tensor
    /// belong to the plan's capacity.
    fn ask(
        &mut self,
        asking: &[Asking],
        parents: Option<&[i32]>,
        draft: u64,
        spare: usize,
    ) -> Result<(), InvalidCase> {
        let mask = self.mask_kind(parents);
        self.ask_under(asking, mask, draft, spare)
    }

    fn ask_under(
        &mut self,
        asking: &[Asking],
        mask: MaskKind<'_>,
        draft: u64,
        spare: usize,
    ) -> Result<(), InvalidCase> {
        let geometry = *self.problem.geometry();
        let mut q = Vec::new();
        for asking in asking {
            let content = self.live[asking.live].content;
            for t in 0..asking.q_len {
                q.extend(self.filler.query(content, t, draft));
            }
        }
        let question = self.question(asking, mask, q)?;
        let rows = question.step.total_q() + spare + SPARE_ROWS;
        let shape = [rows, geometry.h_q(), geometry.width_k()];
        let mut padded = question.q.clone();
        padded.resize(shape.iter().product(), f64::NAN);
        let q = HostTensor::from_f64(self.problem.dtype(), &shape, &padded)?;
        self.ops.push(Op::Attend { q, question: self.questions.len() });
        self.questions.push(question);
        Ok(())
    }

    /// The oracle's cache: one token a page, sequence after sequence.
    fn question(
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

    /// A token as the cache should hold it.
    fn rotated(&self, token: &Held) -> TokenRow {
        let mut row = (*token.row).clone();
        if let Some(rope) = self.problem.rope() {
            match self.problem.geometry().row() {
                Row::Separate { d_k, .. } => {
                    row.first
                        .chunks_exact_mut(d_k)
                        .for_each(|key| rope.rotate(key, token.position));
                }
                Row::Tied { .. } => rope.rotate(&mut row.second, token.position),
            }
        }
        row
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
                    let (x, y, nope) = key_parts(geometry.row(), head, &token.row, &rotated);
                    let q = &q[row * width + nope..][..x.len()];
                    let (mut relative, mut stored) = (0.0, 0.0);
                    for (c, (q, y)) in q.iter().zip(y).enumerate() {
                        let pair = x[c].abs() + x[partner(rope.style(), c, x.len())].abs();
                        relative += q.abs() * 4.0 * pair * (1.0 + dtype.unit_roundoff());
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

    /// Append a draft, attend, take the second half of it back, append something else, attend.
    fn truncate(&mut self) -> Result<(), InvalidCase> {
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
    fn keep(&mut self) -> Result<(), InvalidCase> {
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
    fn fork(&mut self) -> Result<(), InvalidCase> {
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
    fn merge(&mut self) -> Result<(), InvalidCase> {
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
    fn update(&mut self, replayed: bool) -> Result<(), InvalidCase> {
        let first = self.everyone();
        let smaller = |(index, asking): (usize, &Asking)| {
            let end = asking.end - asking.end / 3;
            // Every third sequence pads the batch, as a captured graph would have it.
            let q_len = if index % 3 == 1 { 0 } else { asking.q_len.min(end) };
            Asking { q_len, end, ..*asking }
        };
        let second: Vec<Asking> = first.iter().rev().enumerate().map(smaller).collect();
        let parents = [self.parents(&first), self.parents(&second)];
        let extent = *self.step(&first, self.mask_kind(parents[0].as_deref()))?.extent();
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
            let step = self.step(asking, self.mask_kind(parents.as_deref()))?;
            let spare = spare(&step);
            self.ops.push(Op::Update { step });
            self.ask(asking, parents.as_deref(), draft, spare)?;
        }
        Ok(())
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

/// The other element of the pair that element `c` of `width` is in.
fn partner(style: RopeStyle, c: usize, width: usize) -> usize {
    match style {
        RopeStyle::HalfSplit => (c + width / 2) % width,
        RopeStyle::Interleaved => c ^ 1,
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
