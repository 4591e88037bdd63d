//! Page tables against a model in which every sequence is a plain vector of token ids.
//!
//! A store of token ids stands for a layer's cache: copies that the tables ask for are carried out
//! in it, new tokens are written where the tables say, and what it holds must be the model.

mod common;

use common::config;
use grouped_attention::{
    Backend, CacheLayout, CopyRows, Dtype, Geometry, MaskKind, PageError, PageId, PageTables,
    Reference, ReferenceCache, RowCopy, SequenceId, Slot,
};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// What is done to the tables; `which` picks a sequence, numbers are cut to what the tables have
/// in about half of the cases, so that legal and illegal arguments both occur.
#[derive(Clone, Debug)]
enum Op {
    Insert,
    Extend { which: usize, tokens: usize },
    Truncate { which: usize, len: usize },
    Keep { which: usize, draft: usize, path: Vec<usize> },
    Fork { which: usize },
    ForkPrefix { which: usize, len: usize },
    Remove { which: usize },
}

fn ops() -> impl Strategy<Value = Op> {
    let path = prop::collection::btree_set(0..7_usize, 0..6);
    let which = 0..8_usize;
    prop_oneof![
        2 => Just(Op::Insert),
        6 => (which.clone(), 0..8_usize).prop_map(|(which, tokens)| Op::Extend { which, tokens }),
        3 => (which.clone(), 0..20_usize).prop_map(|(which, len)| Op::Truncate { which, len }),
        4 => (which.clone(), 0..9_usize, path, any::<bool>()).prop_map(
            |(which, draft, path, reversed)| {
                let mut path: Vec<usize> = path.into_iter().collect();
                // One illegal order now and then.
                if reversed && path.len() == 5 {
                    path.reverse();
                }
                Op::Keep { which, draft, path }
            }
        ),
        2 => which.clone().prop_map(|which| Op::Fork { which }),
        2 => (which.clone(), 0..20_usize).prop_map(|(which, len)| Op::ForkPrefix { which, len }),
        1 => which.prop_map(|which| Op::Remove { which }),
    ]
}

/// The tables, the model they must agree with, and a store of token ids.
struct World {
    tables: PageTables,
    /// In the order of creation, as [`PageTables::sequences`] promises.
    model: Vec<(SequenceId, Vec<u64>)>,
    /// `[pages, page_size]`; none where nothing was written since the page was free.
    store: Vec<Option<u64>>,
    /// Only asked whether it accepts the copies.
    cache: ReferenceCache,
    next_token: u64,
}

impl World {
    fn new(page_size: usize, pages: usize) -> World {
        let geometry = Geometry::mqa(1, 1).expect("a geometry");
        let layout =
            CacheLayout::new(geometry, Dtype::F32, page_size, pages).expect("a small cache");
        World {
            tables: PageTables::new(page_size, pages).expect("a small pool"),
            model: Vec::new(),
            store: vec![None; page_size * pages],
            cache: Reference.create_cache(layout).expect("memory"),
            next_token: 0,
        }
    }

    fn at(&self, slot: Slot) -> usize {
        slot.page.0 as usize * self.tables.page_size() + slot.row
    }

    fn slot(&self, sequence: SequenceId, position: usize) -> Slot {
        let page_size = self.tables.page_size();
        let page = self.tables.pages(sequence).expect("a sequence")[position / page_size];
        Slot { page, row: position % page_size }
    }

    /// How many sequences hold the page of this position.
    fn users_at(&self, sequence: SequenceId, position: usize) -> usize {
        self.tables.users(self.slot(sequence, position).page).expect("a page of the pool")
    }

    /// Pages under `first..end` that another sequence holds too: what a write there would cost.
    fn shared_pages(&self, sequence: SequenceId, first: usize, end: usize) -> usize {
        let held = self.tables.pages(sequence).expect("a sequence").len();
        let end = end.min(held * self.tables.page_size());
        let shared = (first..end).filter(|&at| self.users_at(sequence, at) > 1);
        shared.map(|at| self.slot(sequence, at).page).collect::<BTreeSet<_>>().len()
    }

    /// Carries copies out, one complete before the next.
    fn copy(&mut self, copies: &[RowCopy]) {
        CopyRows::<Reference>::new(&mut self.cache, copies).expect("copies within pages");
        for copy in copies {
            assert!(copy.rows > 0, "{copy:?} copies nothing");
            let (from, to) = (self.at(copy.from), self.at(copy.to));
            for row in 0..copy.rows {
                assert!(self.store[from + row].is_some(), "{copy:?} copies what nobody wrote");
                self.store[to + row] = self.store[from + row];
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        let before = format!("{:?}", self.tables);
        let result = self.try_apply(op);
        if let Err(error) = result {
            // [S-4.21]: page tables hold no more than what Debug prints.
            assert_eq!(format!("{:?}", self.tables), before, "{error} after {op:?}");
        }
        self.check();
    }

    fn try_apply(&mut self, op: &Op) -> Result<(), PageError> {
        let pick = |which: &usize| *which % self.model.len().max(1);
        match op {
            Op::Insert => {
                let id = self.tables.insert();
                self.model.push((id, Vec::new()));
                Ok(())
            }
            _ if self.model.is_empty() => Ok(()),
            Op::Extend { which, tokens } => self.extend(pick(which), *tokens),
            Op::Truncate { which, len } => self.truncate(pick(which), *len),
            Op::Keep { which, draft, path } => self.keep(pick(which), *draft, path),
            Op::Fork { which } => self.fork(pick(which), None),
            Op::ForkPrefix { which, len } => self.fork(pick(which), Some(*len)),
            Op::Remove { which } => {
                let (id, _) = self.model.remove(pick(which));
                self.tables.remove(id)
            }
        }
    }

    // [S-4.6] [S-4.11]
    fn extend(&mut self, index: usize, tokens: usize) -> Result<(), PageError> {
        let (id, len) = (self.model[index].0, self.model[index].1.len());
        let page_size = self.tables.page_size();
        let grown = (len + tokens).div_ceil(page_size) - len.div_ceil(page_size);
        let needed = grown + self.shared_pages(id, len, len + tokens);
        assert_eq!(self.tables.pages_needed(id, tokens), Ok(needed));
        let free = self.tables.free_pages();
        let result = self.tables.extend(id, tokens);
        if needed > free {
            assert_eq!(result, Err(PageError::PoolExhausted { needed, free }));
        }
        let copies = result?;
        assert_eq!(self.tables.free_pages(), free - needed);
        self.copy(&copies);
        for position in len..len + tokens {
            // A write into a page with another user would change what that one reads.
            assert_eq!(self.users_at(id, position), 1);
            let at = self.at(self.slot(id, position));
            self.store[at] = Some(self.next_token);
            self.model[index].1.push(self.next_token);
            self.next_token += 1;
        }
        Ok(())
    }

    // [S-4.12] [S-4.14]
    fn truncate(&mut self, index: usize, len: usize) -> Result<(), PageError> {
        let (sequence, current) = (self.model[index].0, self.model[index].1.len());
        let result = self.tables.truncate(sequence, len);
        if len > current {
            assert_eq!(result, Err(PageError::TruncateBeyond { sequence, len, current }));
        }
        result?;
        self.model[index].1.truncate(len);
        Ok(())
    }

    // [S-4.13] [S-4.14]
    fn keep(&mut self, index: usize, draft: usize, path: &[usize]) -> Result<(), PageError> {
        let (sequence, current) = (self.model[index].0, self.model[index].1.len());
        let (free, before) = (self.tables.free_pages(), self.tables.clone());
        let result = self.tables.keep(sequence, draft, path);
        if draft > current {
            assert_eq!(result, Err(PageError::DraftBeyond { sequence, draft, current }));
            return result.map(|_| ());
        }
        let legal = path.is_sorted_by(|a, b| a < b) && path.iter().all(|&t| t < draft);
        if !legal {
            assert_eq!(result, Err(PageError::InvalidPath { draft, path: path.to_vec() }));
            return result.map(|_| ());
        }
        let prefix = current - draft;
        let end = prefix + path.len();
        let first = (prefix..end).find(|&to| path[to - prefix] != to - prefix).unwrap_or(end);
        let after = std::mem::replace(&mut self.tables, before);
        let needed = self.shared_pages(sequence, first, end);
        self.tables = after;
        if needed > free {
            assert_eq!(result, Err(PageError::PoolExhausted { needed, free }));
        }
        self.copy(&result?);
        let tokens = &mut self.model[index].1;
        let kept: Vec<u64> = path.iter().map(|&t| tokens[prefix + t]).collect();
        tokens.truncate(prefix);
        tokens.extend(kept);
        Ok(())
    }

    // [S-4.15]
    fn fork(&mut self, index: usize, prefix: Option<usize>) -> Result<(), PageError> {
        let (id, mut tokens) = self.model[index].clone();
        let current = tokens.len();
        tokens.truncate(prefix.unwrap_or(current));
        let page_size = self.tables.page_size();
        let needed = usize::from(!tokens.len().is_multiple_of(page_size));
        let free = self.tables.free_pages();
        let result = match prefix {
            None => self.tables.fork(id),
            Some(len) => self.tables.fork_prefix(id, len),
        };
        if let Some(len) = prefix.filter(|&len| len > current) {
            assert_eq!(result, Err(PageError::TruncateBeyond { sequence: id, len, current }));
        } else if needed > free {
            assert_eq!(result, Err(PageError::PoolExhausted { needed, free }));
        }
        let (fork, copies) = result?;
        assert_eq!(self.tables.free_pages(), free - needed);
        let full = tokens.len() / page_size;
        assert_eq!(self.tables.pages(fork).map(|pages| &pages[..full]), {
            self.tables.pages(id).map(|pages| &pages[..full])
        });
        self.copy(&copies);
        self.model.push((fork, tokens));
        Ok(())
    }

    /// Everything that must hold between two operations.
    fn check(&mut self) {
        let (tables, page_size) = (&self.tables, self.tables.page_size());
        let ids: Vec<SequenceId> = self.model.iter().map(|(id, _)| *id).collect();
        assert_eq!(tables.sequences().collect::<Vec<_>>(), ids);
        assert_eq!(tables.is_empty(), ids.is_empty());
        let mut users = vec![0; tables.pages_total()];
        for (id, tokens) in &self.model {
            assert_eq!(tables.len(*id), Ok(tokens.len()));
            let pages = tables.pages(*id).expect("a sequence");
            assert_eq!(pages.len(), tokens.len().div_ceil(page_size), "pages of {id}");
            assert_eq!(pages.iter().collect::<BTreeSet<_>>().len(), pages.len(), "{pages:?}");
            pages.iter().for_each(|page| users[page.0 as usize] += 1);
            for (position, token) in tokens.iter().enumerate() {
                let held = self.store[self.at(self.slot(*id, position))];
                assert_eq!(held, Some(*token), "token {position} of {id}");
            }
        }
        // [S-4.5] [S-4.16]
        for (page, &users) in users.iter().enumerate() {
            assert_eq!(tables.users(PageId(page as u32)), Some(users), "users of page {page}");
            if users == 0 {
                self.store[page * page_size..][..page_size].fill(None);
            }
        }
        assert_eq!(tables.users(PageId(users.len() as u32)), None);
        assert_eq!(tables.free_pages(), users.iter().filter(|&&users| users == 0).count());
        self.check_steps();
    }

    /// A step over the last tokens of a sequence is refused exactly where it would write into a
    /// shared page. [S-4.10]
    fn check_steps(&self) {
        for (id, tokens) in &self.model {
            for q_len in 0..=tokens.len() {
                let first = tokens.len() - q_len;
                let step = self.tables.step(&[(*id, q_len)], MaskKind::Causal);
                let shared = (first..tokens.len()).find(|&at| self.users_at(*id, at) > 1);
                if let Some(at) = shared {
                    let page = self.slot(*id, at).page;
                    assert_eq!(step, Err(PageError::SharedPage { sequence: *id, page }));
                    continue;
                }
                let step = step.expect("no page is shared");
                assert_eq!(step.pages(&step.spans()[0]), self.tables.pages(*id).expect("pages"));
                let written: Vec<_> =
                    step.writes().iter().map(|write| (write.slot, write.position)).collect();
                let expected: Vec<_> =
                    (first..tokens.len()).map(|at| (self.slot(*id, at), at as i64)).collect();
                assert_eq!(written, expected);
            }
        }
    }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn tables_agree_with_the_model(
        page_size in 1..6_usize,
        pages in 0..14_usize,
        ops in prop::collection::vec(ops(), 1..60),
    ) {
        let mut world = World::new(page_size, pages);
        ops.iter().for_each(|op| world.apply(op));
        // [S-4.16]: pages do not leak.
        while !world.model.is_empty() {
            world.apply(&Op::Remove { which: 0 });
        }
        prop_assert_eq!(world.tables.free_pages(), pages);
    }
}

fn page(id: u32) -> PageId {
    PageId(id)
}

fn slot(id: u32, row: usize) -> Slot {
    Slot { page: page(id), row }
}

// [S-4.6]: what the model cannot say is which page; the lowest free id comes first.
#[test]
fn a_fresh_pool_hands_out_ascending_ids() {
    let mut tables = PageTables::new(2, 4).unwrap();
    let (a, b) = (tables.insert(), tables.insert());
    assert_eq!(tables.extend(a, 3), Ok(vec![]));
    assert_eq!(tables.extend(b, 1), Ok(vec![]));
    assert_eq!(tables.pages(a), Ok(&[page(0), page(1)][..]));
    assert_eq!(tables.pages(b), Ok(&[page(2)][..]));
    assert_eq!((tables.page_size(), tables.pages_total(), tables.free_pages()), (2, 4, 1));
}

// [S-4.11] [S-4.12] [S-4.15]
#[test]
fn a_fork_that_backs_into_a_shared_page_copies_it_on_write() {
    let mut tables = PageTables::new(4, 8).unwrap();
    let a = tables.insert();
    tables.extend(a, 8).unwrap();
    let (b, copies) = tables.fork(a).unwrap();
    assert_eq!(copies, [], "two full pages are shared");
    assert_eq!(tables.users(page(1)), Some(2));
    tables.truncate(b, 6).unwrap();
    assert_eq!(tables.users(page(1)), Some(2), "row 4 and 5 of the second page are still shared");
    assert_eq!(tables.pages_needed(b, 1), Ok(1));
    let copies = tables.extend(b, 1).unwrap();
    assert_eq!(copies, [RowCopy { from: slot(1, 0), to: slot(2, 0), rows: 2 }]);
    assert_eq!(tables.pages(b), Ok(&[page(0), page(2)][..]));
    assert_eq!(tables.users(page(1)), Some(1));
    // Both may now write at their ends, a without another copy.
    tables.truncate(a, 6).unwrap();
    assert_eq!(tables.extend(a, 1), Ok(vec![]));
}

// [S-4.11]: growing from a page boundary leaves shared pages alone.
#[test]
fn a_fork_at_a_page_boundary_needs_no_copy() {
    let mut tables = PageTables::new(4, 4).unwrap();
    let a = tables.insert();
    tables.extend(a, 4).unwrap();
    let (b, copies) = tables.fork(a).unwrap();
    assert_eq!((copies.len(), tables.free_pages()), (0, 3));
    assert_eq!(tables.extend(b, 1), Ok(vec![]));
    assert_eq!(tables.pages(b), Ok(&[page(0), page(1)][..]));
}

// [S-4.13]
#[test]
fn keeping_a_path_moves_only_what_has_to_move() {
    let mut tables = PageTables::new(4, 4).unwrap();
    let a = tables.insert();
    tables.extend(a, 7).unwrap();
    // The example of the specification: prefix of 2, draft of 5, path [0, 1, 3].
    let copies = tables.keep(a, 5, &[0, 1, 3]).unwrap();
    assert_eq!(copies, [RowCopy { from: slot(1, 1), to: slot(1, 0), rows: 1 }]);
    assert_eq!(tables.len(a), Ok(5));
    // Accepting a prefix of the draft is truncation.
    assert_eq!(tables.keep(a, 3, &[0, 1]), Ok(vec![]));
    assert_eq!((tables.len(a), tables.free_pages()), (Ok(4), 3));
    assert_eq!(tables.keep(a, 4, &[]), Ok(vec![]));
    assert_eq!((tables.len(a), tables.free_pages()), (Ok(0), 4));
}

// [S-4.13] [S-4.11]: the draft lies in a page that the origin still reads.
#[test]
fn keeping_a_path_of_a_forked_draft_spares_the_origin() {
    let mut tables = PageTables::new(4, 3).unwrap();
    let a = tables.insert();
    tables.extend(a, 8).unwrap();
    let (b, _) = tables.fork(a).unwrap();
    let copies = tables.keep(b, 3, &[1, 2]).unwrap();
    // Row 4 of the prefix follows into the fresh page, then the path comes from the old one.
    assert_eq!(
        copies,
        [
            RowCopy { from: slot(1, 0), to: slot(2, 0), rows: 1 },
            RowCopy { from: slot(1, 2), to: slot(2, 1), rows: 1 },
            RowCopy { from: slot(1, 3), to: slot(2, 2), rows: 1 },
        ]
    );
    assert_eq!(tables.pages(a), Ok(&[page(0), page(1)][..]));
    assert_eq!(tables.pages(b), Ok(&[page(0), page(2)][..]));
    assert_eq!((tables.users(page(0)), tables.users(page(1))), (Some(2), Some(1)));
}

// [S-4.13]: nothing that moves, nothing that is copied, though the page is shared.
#[test]
fn keeping_what_stands_leaves_shared_pages_shared() {
    let mut tables = PageTables::new(4, 2).unwrap();
    let a = tables.insert();
    tables.extend(a, 8).unwrap();
    let (b, _) = tables.fork(a).unwrap();
    assert_eq!(tables.keep(b, 4, &[0, 1]), Ok(vec![]));
    assert_eq!((tables.len(b), tables.users(page(1))), (Ok(6), Some(2)));
}

// [S-4.20] [S-4.21]
#[test]
fn an_exhausted_pool_refuses_and_recovers() {
    let mut tables = PageTables::new(2, 2).unwrap();
    let (a, b) = (tables.insert(), tables.insert());
    tables.extend(a, 4).unwrap();
    let refused = PageError::PoolExhausted { needed: 1, free: 0 };
    assert_eq!(tables.extend(b, 1), Err(refused));
    assert_eq!(tables.extend(b, 0), Ok(vec![]), "no token needs no page");
    tables.truncate(a, 2).unwrap();
    assert_eq!(tables.extend(b, 2), Ok(vec![]));
    assert_eq!(tables.pages(b), Ok(&[page(1)][..]));
}

// [S-4.16]: a handle that was removed is unknown for good.
#[test]
fn handles_are_not_reused() {
    let mut tables = PageTables::new(2, 2).unwrap();
    let a = tables.insert();
    tables.remove(a).unwrap();
    let b = tables.insert();
    assert_ne!(a, b);
    assert_eq!((a.to_string(), b.to_string()), ("#0".into(), "#1".into()));
    assert_eq!(tables.len(a), Err(PageError::UnknownSequence { sequence: a }));
}

// [S-4.8] [S-3.9]: rope positions of a drafted tree are depths, cells are places.
#[test]
fn steps_of_a_tree_turn_by_depth() {
    let mut tables = PageTables::new(4, 4).unwrap();
    let (a, b) = (tables.insert(), tables.insert());
    tables.extend(a, 5).unwrap();
    tables.extend(b, 3).unwrap();
    let parents = [-1, 0, 0, 2, -1, 0];
    let step = tables.step(&[(a, 4), (b, 2)], MaskKind::Tree(&parents)).unwrap();
    let writes: Vec<_> = step.writes().iter().map(|write| (write.slot, write.position)).collect();
    let in_a = [(slot(0, 1), 1), (slot(0, 2), 2), (slot(0, 3), 2), (slot(1, 0), 3)];
    let in_b = [(slot(2, 1), 1), (slot(2, 2), 2)];
    assert_eq!(writes, [&in_a[..], &in_b[..]].concat());
    assert_eq!(step.pages_required(), 3);
    assert_eq!(step.extent().writes, 6);
}
