//! Where pages really lie: page tables over a pool whose ids are shuffled and mostly not adjacent.

use super::Arrangement;
use crate::case::{Case, InvalidCase};
use crate::noise::Noise;
use grouped_attention::{
    CacheLayout, Mask, MaskKind, PageId, PageTables, RowCopy, Sequence, SequenceId, Slot, Step,
};

/// Pages that no table ever holds, so that some cells stay poisoned throughout.
const IDLE_PAGES: usize = 3;
/// Elements past which an offset does not fit 32 bits.
const FAR_ELEMENTS: usize = 1 << 31;
/// Slots behind each table that hold ids of no page `[S-4.4]`.
const IMPOSSIBLE: [PageId; 3] = [PageId(u32::MAX), PageId(2_147_480_000), PageId(1 << 31)];

/// Page tables, and the random places that their pages have in the cache.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) tables: PageTables,
    pub(super) layout: CacheLayout,
    /// Page of the cache for each page of the tables.
    places: Vec<PageId>,
    noise: Noise,
}

impl Pool {
    /// Room for `tokens` tokens a sequence, as many times as `tokens` lists.
    pub(super) fn new(
        case: &Case,
        arrangement: &Arrangement,
        tokens: &[usize],
    ) -> Result<Pool, InvalidCase> {
        let mut noise = Noise::new(case.seed, &[0x6c6f_6f70, arrangement.places]);
        let page_size = arrangement.page_size;
        let page = page_size.max(1);
        let pages: usize = tokens.iter().map(|&tokens| tokens.div_ceil(page)).sum();
        let near = pages + IDLE_PAGES;
        let mut places: Vec<PageId> = (0..near as u32).map(PageId).collect();
        let mut total = near;
        if case.far {
            let row = case.geometry.row().parts().into_iter().max().unwrap_or(1);
            let first_far = FAR_ELEMENTS.div_ceil(page * row);
            total = first_far + near;
            // Every other page lies past the limit, so that both sides of it are read.
            for place in places.iter_mut().step_by(2) {
                place.0 += first_far as u32;
            }
        }
        // Places are given for the case's own page size.
        if case.places.is_empty() || arrangement.places != 0 {
            noise.shuffle(&mut places);
        } else {
            put_first(&mut places, &case.places)?;
        }
        Ok(Pool {
            tables: PageTables::new(page_size, pages)?,
            layout: CacheLayout::new(case.geometry, case.dtype, page_size, total)?,
            places,
            noise,
        })
    }

    /// Every cell that a table may use or an idle page has, each once, in random order.
    pub(super) fn all_cells(&mut self) -> Vec<Slot> {
        let rows = 0..self.tables.page_size();
        let of = |&page: &PageId| rows.clone().map(move |row| Slot { page, row });
        let mut cells: Vec<Slot> = self.places.iter().flat_map(of).collect();
        self.noise.shuffle(&mut cells);
        cells
    }

    fn place(&self, page: PageId) -> PageId {
        self.places[page.0 as usize]
    }

    pub(super) fn slot(&self, id: SequenceId, position: usize) -> Result<Slot, InvalidCase> {
        let size = self.tables.page_size();
        let page = self.tables.pages(id)?[position / size];
        Ok(Slot { page: self.place(page), row: position % size })
    }

    /// A copy list as the caches see it.
    pub(super) fn placed(&self, copies: &[RowCopy]) -> Vec<RowCopy> {
        let slot = |slot: Slot| Slot { page: self.place(slot.page), ..slot };
        copies
            .iter()
            .map(|copy| RowCopy { from: slot(copy.from), to: slot(copy.to), rows: copy.rows })
            .collect()
    }

    /// A step over some positions of some sequences, `(id, q_len, positions)`; the positions start
    /// at a page boundary.
    pub(super) fn step(
        &self,
        queries: &[Queried],
        mask: MaskKind<'_>,
    ) -> Result<Step, InvalidCase> {
        let mut tables = Vec::with_capacity(queries.len());
        for queried in queries {
            let size = self.tables.page_size();
            let pages = &self.tables.pages(queried.id)?[queried.first / size..];
            let placed = pages.iter().map(|&page| self.place(page));
            tables.push(placed.chain(IMPOSSIBLE).collect::<Vec<PageId>>());
        }
        let sequences: Vec<Sequence<'_>> = queries
            .iter()
            .zip(&tables)
            .map(|(queried, pages)| {
                // Only whole pages may follow the length: the ids behind are for no one to read.
                let used = (queried.end - queried.first).div_ceil(self.tables.page_size());
                debug_assert!(used + IMPOSSIBLE.len() <= pages.len());
                Sequence { q_len: queried.q_len, kv_len: queried.end - queried.first, pages }
            })
            .collect();
        let mask = Mask::new(mask, queries.iter().map(|queried| queried.q_len))?;
        Ok(Step::new(self.tables.page_size(), &sequences, mask)?)
    }
}

/// Moves the pages that `first` names to the front, in its order.
fn put_first(places: &mut [PageId], first: &[u32]) -> Result<(), InvalidCase> {
    for (index, &page) in first.iter().enumerate() {
        let at = places.iter().skip(index).position(|place| place.0 == page);
        let Some(at) = at else {
            return Err(InvalidCase::Places { places: first.to_vec(), pages: places.len() });
        };
        places[index..=index + at].rotate_right(1);
    }
    Ok(())
}

/// One sequence of a step: its last `q_len` tokens ask, and positions `first..end` are cached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queried {
    pub(super) id: SequenceId,
    pub(super) q_len: usize,
    pub(super) first: usize,
    pub(super) end: usize,
}
