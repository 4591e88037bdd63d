//! Page tables under any operations, against a model that is a list of tokens a sequence.
//!
//! The model knows no pages. Every token has a number of its own, which is written to the cell that
//! the tables name; after every operation each sequence must read its own numbers back, so a page
//! that is handed out twice, a copy that is forgotten or a page that is freed too early shows.
#![no_main]

use arbitrary::Arbitrary;
use grouped_attention::{MaskKind, PageTables, RowCopy, SequenceId, Slot};
use libfuzzer_sys::fuzz_target;
use std::collections::HashMap;

#[derive(Arbitrary, Debug)]
struct Input {
    page_size: u8,
    pages: u8,
    operations: Vec<Operation>,
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Insert,
    Remove(u8),
    Extend(u8, u8),
    ExtendAbsurdly(u8, usize),
    Truncate(u8, u8),
    Keep { sequence: u8, draft: u8, path: Vec<u8> },
    Fork(u8),
    Step(Vec<(u8, u8)>),
}

struct Model {
    tables: PageTables,
    /// What every sequence should hold.
    tokens: Vec<(SequenceId, Vec<u64>)>,
    /// What every cell holds.
    cells: HashMap<Slot, u64>,
    written: u64,
}

impl Model {
    fn pick(&self, index: u8) -> Option<usize> {
        (!self.tokens.is_empty()).then(|| usize::from(index) % self.tokens.len())
    }

    fn slot(&self, id: SequenceId, position: usize) -> Slot {
        let size = self.tables.page_size();
        let pages = self.tables.pages(id).expect("a live sequence");
        Slot { page: pages[position / size], row: position % size }
    }

    fn copy(&mut self, copies: &[RowCopy]) {
        for copy in copies {
            for row in 0..copy.rows {
                let at = |slot: Slot| Slot { row: slot.row + row, ..slot };
                assert!(at(copy.from).row < self.tables.page_size());
                assert!(at(copy.to).row < self.tables.page_size());
                let value =
                    self.cells.get(&at(copy.from)).copied().expect("a copied row was written");
                self.cells.insert(at(copy.to), value);
            }
        }
    }

    fn apply(&mut self, operation: &Operation) {
        let before = self.tables.clone();
        match operation {
            Operation::Insert => {
                let id = self.tables.insert();
                self.tokens.push((id, Vec::new()));
            }
            Operation::Remove(index) => {
                let Some(at) = self.pick(*index) else { return };
                let (id, _) = self.tokens.remove(at);
                self.tables.remove(id).expect("a live sequence can be removed");
                assert!(self.tables.len(id).is_err());
            }
            Operation::Extend(index, tokens) => self.extend(*index, usize::from(*tokens), &before),
            Operation::ExtendAbsurdly(index, tokens) => {
                if *tokens > 1 << 16 {
                    let Some(at) = self.pick(*index) else { return };
                    let refused = self.tables.extend(self.tokens[at].0, *tokens);
                    assert!(refused.is_err());
                    self.unchanged(&before);
                }
            }
            Operation::Truncate(index, len) => {
                let Some(at) = self.pick(*index) else { return };
                let len = usize::from(*len);
                let (id, tokens) = &mut self.tokens[at];
                match self.tables.truncate(*id, len) {
                    Ok(()) => tokens.truncate(len),
                    Err(_) => assert!(len > tokens.len()),
                }
            }
            Operation::Keep { sequence, draft, path } => {
                self.keep(*sequence, usize::from(*draft), path, &before);
            }
            Operation::Fork(index) => {
                let Some(at) = self.pick(*index) else { return };
                match self.tables.fork(self.tokens[at].0) {
                    Ok((id, copies)) => {
                        self.copy(&copies);
                        self.tokens.push((id, self.tokens[at].1.clone()));
                    }
                    Err(_) => self.unchanged(&before),
                }
            }
            Operation::Step(queries) => self.step(queries),
        }
    }

    fn extend(&mut self, index: u8, count: usize, before: &PageTables) {
        let Some(at) = self.pick(index) else { return };
        let id = self.tokens[at].0;
        let needed = self.tables.pages_needed(id, count).expect("a live sequence");
        match self.tables.extend(id, count) {
            Err(_) => {
                assert!(needed > before.free_pages());
                self.unchanged(before);
            }
            Ok(copies) => {
                assert_eq!(before.free_pages() - self.tables.free_pages(), needed);
                self.copy(&copies);
                for _ in 0..count {
                    let slot = self.slot(id, self.tokens[at].1.len());
                    assert_eq!(self.tables.users(slot.page), Some(1), "written while shared");
                    self.written += 1;
                    self.cells.insert(slot, self.written);
                    self.tokens[at].1.push(self.written);
                }
            }
        }
    }

    fn keep(&mut self, index: u8, draft: usize, path: &[u8], before: &PageTables) {
        let Some(at) = self.pick(index) else { return };
        let path: Vec<usize> = path.iter().map(|&token| token.into()).collect();
        let id = self.tokens[at].0;
        match self.tables.keep(id, draft, &path) {
            Err(_) => self.unchanged(before),
            Ok(copies) => {
                self.copy(&copies);
                let tokens = &mut self.tokens[at].1;
                let prefix = tokens.len() - draft;
                let kept: Vec<u64> = path.iter().map(|&token| tokens[prefix + token]).collect();
                tokens.truncate(prefix);
                tokens.extend(kept);
            }
        }
    }

    fn step(&mut self, queries: &[(u8, u8)]) {
        let queries: Vec<(SequenceId, usize)> = queries
            .iter()
            .filter_map(|&(index, q_len)| Some((self.tokens[self.pick(index)?].0, q_len.into())))
            .collect();
        if let Ok(step) = self.tables.step(&queries, MaskKind::Causal) {
            for write in step.writes() {
                assert_eq!(
                    self.tables.users(write.slot.page),
                    Some(1),
                    "a step writes what is shared"
                );
            }
        }
    }

    fn unchanged(&self, before: &PageTables) {
        assert_eq!(self.tables.free_pages(), before.free_pages());
        for (id, _) in &self.tokens {
            assert_eq!(self.tables.pages(*id), before.pages(*id));
            assert_eq!(self.tables.len(*id), before.len(*id));
        }
    }

    /// Every sequence reads its own tokens, and pages are counted right.
    fn check(&self) {
        let mut users: HashMap<_, usize> = HashMap::new();
        let size = self.tables.page_size();
        for (id, tokens) in &self.tokens {
            assert_eq!(self.tables.len(*id), Ok(tokens.len()));
            let pages = self.tables.pages(*id).expect("a live sequence");
            assert_eq!(pages.len(), tokens.len().div_ceil(size));
            pages.iter().for_each(|page| *users.entry(*page).or_default() += 1);
            for (position, token) in tokens.iter().enumerate() {
                assert_eq!(self.cells.get(&self.slot(*id, position)), Some(token));
            }
        }
        for (page, count) in &users {
            assert_eq!(self.tables.users(*page), Some(*count));
        }
        assert_eq!(self.tables.free_pages() + users.len(), self.tables.pages_total());
    }
}

fuzz_target!(|input: Input| {
    let Ok(tables) =
        PageTables::new(usize::from(input.page_size % 9), usize::from(input.pages % 40))
    else {
        assert_eq!(input.page_size % 9, 0);
        return;
    };
    let mut model = Model { tables, tokens: Vec::new(), cells: HashMap::new(), written: 0 };
    for operation in input.operations.iter().take(64) {
        model.apply(operation);
        model.check();
    }
});
