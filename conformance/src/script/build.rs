//! Writing the script of a case, and the oracle's record beside it.

mod courses;
mod question;

use super::pool::{Pool, Queried};
use super::{Arrangement, Audit, Capacity, Op, Question, SPARE_ROWS, Script, StoredRow};
use crate::case::{Case, InvalidCase, Lens};
use crate::draft::{Draft, MaskShape};
use crate::fill::{Filler, Token, TokenRow};
use crate::scenario::Scenario;
use crate::states::States;
use grouped_attention::{
    HostTensor, Mask, MaskKind, Problem, Rope, RopeStyle, Row, SequenceId, Slot, Step, Write,
};
use std::collections::HashSet;
use std::rc::Rc;

/// A token that a sequence should hold.
#[derive(Clone, Debug)]
struct Held {
    /// As it is given to the engine, in each layer.
    rows: Vec<Rc<TokenRow>>,
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
    /// Whose cache operations and questions are about.
    layer: usize,
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

impl Asking {
    /// Where the queries' own tokens go: sequence and position.
    fn own(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (live, end) = (self.live, self.end);
        (end - self.q_len.min(end)..end).map(move |position| (live, position))
    }
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
            layer: 0,
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
            Scenario::Serve => self.serve()?,
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
        for layer in 0..self.case.scenario.layers() {
            self.turn_to(layer);
            self.ops.push(append.clone());
        }
        Ok(())
    }

    fn turn_to(&mut self, layer: usize) {
        if layer != self.layer {
            self.layer = layer;
            self.ops.push(Op::Layer(layer));
        }
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
            let magnitude = magnitude(rope);
            let pairs = |key: &[f64]| -> Vec<f64> {
                let other = |c: usize| key[partner(rope.style(), c, key.len())];
                let of = |(c, x): (usize, &f64)| 4.0 * magnitude * (x.abs() + other(c).abs());
                key.iter().enumerate().map(of).collect()
            };
            let TokenRow { first, second } = &*token.rows[self.layer];
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
        for layer in 0..self.case.scenario.layers() {
            self.turn_to(layer);
            self.push_append(&cells)?;
        }
        Ok(())
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
        // Layers differ as drafts do.
        let row = |layer: usize| {
            let draft = draft + 1_000 * layer as u64;
            let token = Token { sequence: live.content, position, draft };
            Rc::new(self.filler.row(token, live.lens))
        };
        let rows = (0..self.case.scenario.layers()).map(row).collect();
        // Gaps, and offsets that differ by sequence: nothing may be taken from the cache position.
        let rotated_by = 3 * position as i64 + 1_001 * live.content as i64 - 50;
        Held { rows, position: rotated_by }
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
        let held =
            cells.iter().map(|&(live, at)| Rc::clone(&self.live[live].tokens[at].rows[self.layer]));
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
        for layer in 0..self.case.scenario.layers() {
            self.turn_to(layer);
            self.ops.push(Op::Copy(placed.clone()));
        }
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
        let mut step = self.step(asking, self.case.mask.kind(parents))?;
        let cells: Vec<(usize, usize)> = asking.iter().flat_map(Asking::own).collect();
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
        let mask = self.case.mask.kind(parents);
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

    /// A token as the cache should hold it.
    fn rotated(&self, token: &Held) -> TokenRow {
        let mut row = (*token.rows[self.layer]).clone();
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
}

/// The factor on cosine and sine.
fn magnitude(rope: &Rope) -> f64 {
    rope.cos_sin(0).next().map_or(1.0, |(cos, _)| cos)
}

/// The other element of the pair that element `c` of `width` is in.
fn partner(style: RopeStyle, c: usize, width: usize) -> usize {
    match style {
        RopeStyle::HalfSplit => (c + width / 2) % width,
        RopeStyle::Interleaved => c ^ 1,
    }
}
