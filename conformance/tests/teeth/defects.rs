//! Engines that are wrong in one way each.

use crate::flash::{Bend, RIGHT};
use grouped_attention::{
    Arithmetic, Dtype, Geometry, Mask, PageId, Row, RowCopy, Sequence, Slot, Span, Step, Write,
};

/// Every broken engine: what is wrong, and the right engine with that replaced.
pub(crate) fn defects() -> Vec<(&'static str, Bend)> {
    [masks(), heads(), pages(), lengths(), rows(), softmax(), precision(), caches(), limits()]
        .concat()
}

fn masks() -> Vec<(&'static str, Bend)> {
    vec![
        (
            "drops the last token",
            Bend { sees: |s, p, t, j| s.sees(p, t, j) && j + 1 < p.kv_len, ..RIGHT },
        ),
        ("drops the first token", Bend { sees: |s, p, t, j| s.sees(p, t, j) && j > 0, ..RIGHT }),
        (
            "sees one position too many",
            Bend { sees: |s, p, t, j| s.sees(p, t, j.saturating_sub(1)), ..RIGHT },
        ),
        (
            "does not see itself",
            Bend { sees: |s, p, t, j| s.sees(p, t, j) && j + p.q_len != p.kv_len + t, ..RIGHT },
        ),
        ("aligns the mask at the top left", Bend { sees: top_left, ..RIGHT }),
        (
            "takes a tree for a chain",
            Bend { sees: |_, p, t, j| j + p.q_len <= p.kv_len + t, ..RIGHT },
        ),
        ("sees siblings", Bend { sees: siblings, ..RIGHT }),
        ("sees only its parent and itself", Bend { sees: parent_only, ..RIGHT }),
        ("takes the wrong ancestor", Bend { sees: wrong_ancestor, ..RIGHT }),
        ("takes parents for indices of the batch", Bend { sees: batch_parents, ..RIGHT }),
        (
            "keeps ancestors in 32 bits",
            Bend {
                sees: |s, p, t, j| s.sees(p, t, j) && (!is_tree(s) || j + p.q_len < p.kv_len + 32),
                ..RIGHT
            },
        ),
        (
            "keeps the last position of a tile to itself",
            Bend { sees: |s, p, t, j| s.sees(p, t, j) && j % 64 != 63, ..RIGHT },
        ),
        ("multiplies masked values by zero", Bend { masked: Some(0.0), ..RIGHT }),
    ]
}

fn is_tree(step: &Step) -> bool {
    matches!(step.mask(), Mask::Tree(_))
}

fn top_left(step: &Step, span: &Span, t: usize, j: usize) -> bool {
    if *step.mask() == Mask::Causal { j <= t } else { step.sees(span, t, j) }
}

fn siblings(step: &Step, span: &Span, t: usize, j: usize) -> bool {
    let Mask::Tree(tree) = step.mask() else { return step.sees(span, t, j) };
    let local = (j + span.q_len).checked_sub(span.kv_len);
    let parent = |t: usize| tree.parents()[span.q_start + t];
    step.sees(span, t, j) || local.is_some_and(|other| parent(other) == parent(t))
}

fn parent_only(step: &Step, span: &Span, t: usize, j: usize) -> bool {
    let Mask::Tree(tree) = step.mask() else { return step.sees(span, t, j) };
    let Some(local) = (j + span.q_len).checked_sub(span.kv_len) else { return true };
    local == t || tree.parents()[span.q_start + t] == local as i32
}

fn wrong_ancestor(step: &Step, span: &Span, t: usize, j: usize) -> bool {
    let Mask::Tree(tree) = step.mask() else { return step.sees(span, t, j) };
    let Some(local) = (j + span.q_len).checked_sub(span.kv_len) else { return true };
    // The token before each ancestor.
    local == t || tree.path(span.q_start, t).skip(1).any(|ancestor| ancestor == local + 1)
}

fn batch_parents(step: &Step, span: &Span, t: usize, j: usize) -> bool {
    let Mask::Tree(tree) = step.mask() else { return step.sees(span, t, j) };
    let Some(local) = (j + span.q_len).checked_sub(span.kv_len) else { return true };
    local == t || tree.parents()[span.q_start + t] == (span.q_start + local) as i32
}

fn heads() -> Vec<(&'static str, Bend)> {
    vec![
        ("interleaves groups", Bend { head: |g, i| i % g.heads(), ..RIGHT }),
        (
            "rounds the group up to a power of two",
            Bend { head: |g, i| i / g.group().next_power_of_two(), ..RIGHT },
        ),
        (
            "reads the neighbouring head's value",
            Bend { value: |g, head, a, b| (RIGHT.value)(g, (head + 1) % g.heads(), a, b), ..RIGHT },
        ),
        (
            "scales by the width of the key",
            Bend { scale: |p| 1.0 / (p.geometry().width_k() as f32).sqrt(), ..RIGHT },
        ),
        (
            "scales by the width of the value",
            Bend { scale: |p| 1.0 / (p.geometry().width_v() as f32).sqrt(), ..RIGHT },
        ),
        ("forgets the scale", Bend { scale: |_| 1.0, ..RIGHT }),
        ("takes the rope half from its own head", Bend { key: rope_from_state, ..RIGHT }),
        ("puts the rope key first", Bend { key: rope_first, ..RIGHT }),
        ("leaves the rope key out", Bend { key: without_rope, ..RIGHT }),
        ("takes the whole state for key", Bend { key: whole_state, ..RIGHT }),
        ("returns only the key's part of the value", Bend { value: key_part, ..RIGHT }),
        (
            "pads the key's width down to four",
            Bend {
                key: |g, h, a, b| {
                    let mut key = (RIGHT.key)(g, h, a, b);
                    let whole = key.len() / 4 * 4;
                    key[whole..].fill(0.0);
                    key
                },
                ..RIGHT
            },
        ),
    ]
}

fn rope_from_state(geometry: &Geometry, head: usize, first: &[f32], second: &[f32]) -> Vec<f32> {
    match geometry.row() {
        Row::Tied { s, n, r, .. } if n + r <= s => first[head * s..][..n + r].to_vec(),
        _ => (RIGHT.key)(geometry, head, first, second),
    }
}

fn rope_first(geometry: &Geometry, head: usize, first: &[f32], second: &[f32]) -> Vec<f32> {
    match geometry.row() {
        Row::Tied { s, n, .. } => [second, &first[head * s..][..n]].concat(),
        Row::Separate { .. } => (RIGHT.key)(geometry, head, first, second),
    }
}

fn without_rope(geometry: &Geometry, head: usize, first: &[f32], second: &[f32]) -> Vec<f32> {
    match geometry.row() {
        Row::Tied { s, n, .. } => first[head * s..][..n].to_vec(),
        Row::Separate { .. } => (RIGHT.key)(geometry, head, first, second),
    }
}

fn whole_state(geometry: &Geometry, head: usize, first: &[f32], second: &[f32]) -> Vec<f32> {
    match geometry.row() {
        Row::Tied { s, .. } => [&first[head * s..][..s], second].concat(),
        Row::Separate { .. } => (RIGHT.key)(geometry, head, first, second),
    }
}

fn key_part(geometry: &Geometry, head: usize, first: &[f32], second: &[f32]) -> Vec<f32> {
    let mut value = (RIGHT.value)(geometry, head, first, second);
    if let Row::Tied { n, .. } = geometry.row() {
        value[n..].fill(0.0);
    }
    value
}

fn pages() -> Vec<(&'static str, Bend)> {
    vec![
        ("swaps the first two pages", Bend { slot: swapped, ..RIGHT }),
        ("takes pages for contiguous", Bend { slot: contiguous, ..RIGHT }),
        ("rounds the page size up to a power of two", Bend { slot: power_of_two, ..RIGHT }),
        ("reads the row before", Bend { slot: |s, p, j| s.slot(p, j.saturating_sub(1)), ..RIGHT }),
        ("reads the last page's first row for its last", Bend { slot: last_page, ..RIGHT }),
        (
            "reads at 32-bit offsets",
            Bend { offset: |token, width| (token * width) as i32 as i64 as u64, ..RIGHT },
        ),
        (
            "reads the rest of the last page",
            Bend {
                kv_len: |s, b| s.pages(&s.spans()[b]).len() * s.page_size(),
                slot: page_end,
                sees: |s, p, t, j| j >= p.kv_len || s.sees(p, t, j),
                ..RIGHT
            },
        ),
        (
            "keeps the old tables when a plan is updated",
            Bend { update: |old, _| old.clone(), ..RIGHT },
        ),
        ("keeps the old pages when a plan is updated", Bend { update: old_pages, ..RIGHT }),
    ]
}

fn swapped(step: &Step, span: &Span, j: usize) -> Slot {
    let (pages, size) = (step.pages(span), step.page_size());
    let page = match j / size {
        page @ (0 | 1) if pages.len() > 1 => 1 - page,
        page => page,
    };
    Slot { page: pages[page], row: j % size }
}

fn contiguous(step: &Step, span: &Span, j: usize) -> Slot {
    let size = step.page_size();
    Slot { page: PageId(step.pages(span)[0].0 + (j / size) as u32), row: j % size }
}

fn power_of_two(step: &Step, span: &Span, j: usize) -> Slot {
    let size = step.page_size().next_power_of_two();
    let pages = step.pages(span);
    Slot { page: pages[(j / size).min(pages.len() - 1)], row: (j % size).min(step.page_size() - 1) }
}

fn last_page(step: &Step, span: &Span, j: usize) -> Slot {
    let slot = step.slot(span, j);
    if j + 1 == span.kv_len { Slot { row: 0, ..slot } } else { slot }
}

/// The slot of a position that may lie behind the length, in the last page.
fn page_end(step: &Step, span: &Span, j: usize) -> Slot {
    Slot { page: step.pages(span)[j / step.page_size()], row: j % step.page_size() }
}

/// The new step over the old step's pages, as far as there are enough.
fn old_pages(old: &Step, new: &Step) -> Step {
    rebuilt(new, |index, pages| {
        let Some(span) = old.spans().get(index) else { return pages.to_vec() };
        let old = old.pages(span);
        if old.len() >= pages.len() { old.to_vec() } else { pages.to_vec() }
    })
}

/// A step with other pages.
fn rebuilt(step: &Step, pages: impl Fn(usize, &[PageId]) -> Vec<PageId>) -> Step {
    let spans = step.spans().iter().enumerate();
    let tables: Vec<Vec<PageId>> = spans.map(|(b, span)| pages(b, step.pages(span))).collect();
    let sequences: Vec<Sequence<'_>> = step
        .spans()
        .iter()
        .zip(&tables)
        .map(|(span, pages)| Sequence { q_len: span.q_len, kv_len: span.kv_len, pages })
        .collect();
    let new = Step::new(step.page_size(), &sequences, step.mask().clone());
    let new = new.and_then(|new| new.writing(step.writes().to_vec()));
    new.expect("other pages or fewer sequences of a legal step are one")
}

fn lengths() -> Vec<(&'static str, Bend)> {
    vec![
        (
            "uses the neighbour's length",
            Bend {
                kv_len: |s, b| {
                    let spans = s.spans();
                    spans[b].kv_len.min(spans[(b + 1) % spans.len()].kv_len)
                },
                ..RIGHT
            },
        ),
        ("stops at 2048 tokens", Bend { kv_len: |s, b| s.spans()[b].kv_len.min(2048), ..RIGHT }),
        (
            "stops at whole tiles",
            Bend {
                kv_len: |s, b| {
                    let len = s.spans()[b].kv_len;
                    if len > 64 { len / 64 * 64 } else { len }
                },
                ..RIGHT
            },
        ),
        (
            "loses the last split",
            Bend { splits: |splits| if splits > 1 { splits - 1 } else { splits }, ..RIGHT },
        ),
        ("loses every split but the first", Bend { splits: |splits| splits.min(1), ..RIGHT }),
    ]
}

fn rows() -> Vec<(&'static str, Bend)> {
    vec![
        (
            "writes one row too many",
            Bend { rows: |rows| if rows > 0 { rows + 1 } else { 0 }, ..RIGHT },
        ),
        ("leaves the last row as it was", Bend { rows: |rows| rows.saturating_sub(1), ..RIGHT }),
        ("leaves the last column as it was", Bend { columns: |columns| columns - 1, ..RIGHT }),
        (
            "exchanges neighbouring heads",
            Bend {
                row: |row, _, heads| {
                    let other = row / heads * heads + ((row % heads) ^ 1);
                    if (row % heads) ^ 1 < heads { other } else { row }
                },
                ..RIGHT
            },
        ),
        (
            "writes tokens in reverse",
            Bend {
                row: |row, rows, heads| rows - heads - row / heads * heads + row % heads,
                ..RIGHT
            },
        ),
        ("gives empty rows NaN", Bend { empty: (f32::NAN, f32::NEG_INFINITY), ..RIGHT }),
        ("gives empty rows an lse of +inf", Bend { empty: (0.0, f32::INFINITY), ..RIGHT }),
        ("gives empty rows an lse of -1e30", Bend { empty: (0.0, -1e30), ..RIGHT }),
        ("gives empty rows an lse of 0", Bend { empty: (0.0, 0.0), ..RIGHT }),
    ]
}

fn softmax() -> Vec<(&'static str, Bend)> {
    vec![
        ("does not rescale the numerator", Bend { rescale: |factor| (1.0, factor), ..RIGHT }),
        ("does not rescale the normaliser", Bend { rescale: |factor| (factor, 1.0), ..RIGHT }),
        ("does not rescale at all", Bend { rescale: |_| (1.0, 1.0), ..RIGHT }),
        (
            "rescales with base e",
            Bend {
                rescale: |factor| {
                    let f = factor.powf(std::f32::consts::LOG2_E);
                    (f, f)
                },
                ..RIGHT
            },
        ),
        ("exponentiates with base e", Bend { exp: f32::exp, ..RIGHT }),
        ("subtracts no maximum below 0", Bend { lowest: 0.0, ..RIGHT }),
        ("clamps exponents at -20", Bend { exp: |x| x.max(-20.0).exp2(), ..RIGHT }),
        ("returns lse in base 2", Bend { lse: |max, sum| max + sum.log2(), ..RIGHT }),
        ("returns lse without the maximum", Bend { lse: |_, sum| sum.ln(), ..RIGHT }),
        (
            "returns the maximum for lse",
            Bend { lse: |max, _| max * std::f32::consts::LN_2, ..RIGHT },
        ),
        (
            "merges with base 2",
            Bend {
                merge: |a, b| {
                    let max = a.max(b);
                    let lse = max + ((a - max).exp2() + (b - max).exp2()).log2();
                    ((a - lse).exp2(), (b - lse).exp2(), lse)
                },
                ..RIGHT
            },
        ),
        ("merges halves", Bend { merge: |a, b| (0.5, 0.5, (RIGHT.merge)(a, b).2), ..RIGHT }),
        (
            "merges with the parts exchanged",
            Bend {
                merge: |a, b| {
                    let (x, y, lse) = (RIGHT.merge)(a, b);
                    (y, x, lse)
                },
                ..RIGHT
            },
        ),
    ]
}

fn precision() -> Vec<(&'static str, Bend)> {
    vec![
        ("rounds probabilities to bf16 and says f32", Bend { rounded: bf16, ..RIGHT }),
        (
            "rounds probabilities to f16 and says f32",
            Bend { rounded: |p| Dtype::F16.round(f64::from(p)) as f32, ..RIGHT },
        ),
        (
            "truncates probabilities to bf16",
            Bend {
                rounded: |p| f32::from_bits(p.to_bits() & 0xffff_0000),
                declared: bf16_probabilities,
                ..RIGHT
            },
        ),
        ("sums in bf16 and says f32", Bend { summed: bf16, ..RIGHT }),
        (
            "sums in f16 and says f32",
            Bend { summed: |x| Dtype::F16.round(f64::from(x)) as f32, ..RIGHT },
        ),
        (
            "has an exponential good to twelve bits",
            Bend { exp: |x| x.exp2() * (1.0 + 2.0_f32.powi(-12) * (x * 1000.0).sin()), ..RIGHT },
        ),
        ("truncates outputs", Bend { store: truncated, ..RIGHT }),
        (
            "flushes f16 subnormals",
            Bend {
                load: |dtype, x| {
                    if dtype == Dtype::F16 && f64::from(x.abs()) < dtype.min_normal() {
                        0.0
                    } else {
                        x
                    }
                },
                ..RIGHT
            },
        ),
        (
            "depends on the batch and says not",
            Bend { split: |sequences| 64 * sequences.clamp(1, 4), ..RIGHT },
        ),
        (
            "declares no batch invariance where it is asked for",
            Bend {
                declared: || Arithmetic { batch_invariant: false, ..(RIGHT.declared)() },
                ..RIGHT
            },
        ),
    ]
}

fn bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

pub(crate) fn bf16_probabilities() -> Arithmetic {
    Arithmetic { probability: Dtype::Bf16.unit_roundoff(), ..(RIGHT.declared)() }
}

/// Towards zero instead of to nearest.
fn truncated(dtype: Dtype, x: f64) -> f64 {
    match dtype {
        Dtype::Bf16 => f64::from(f32::from_bits((x as f32).to_bits() & 0xffff_0000)),
        _ => dtype.round(x),
    }
}

fn caches() -> Vec<(&'static str, Bend)> {
    vec![
        ("never overwrites a row", Bend { overwrites: |old| old.is_nan() || old == 0.0, ..RIGHT }),
        (
            "rotates by the place in the page",
            Bend { write: |w| Write { position: w.slot.row as i64, ..*w }, ..RIGHT },
        ),
        (
            "rotates one position further",
            Bend { write: |w| Write { position: w.position + 1, ..*w }, ..RIGHT },
        ),
        ("does not rotate", Bend { turns: |_| (false, false), ..RIGHT }),
        ("rotates the other part of the row", Bend { turns: other_part, ..RIGHT }),
        (
            "appends to the row before",
            Bend {
                write: |w| Write {
                    slot: Slot { row: w.slot.row.saturating_sub(1), ..w.slot },
                    ..*w
                },
                ..RIGHT
            },
        ),
        ("forgets copies", Bend { copies: |_| Vec::new(), ..RIGHT }),
        (
            "copies one row too few",
            Bend {
                copies: |all| all.iter().map(|c| RowCopy { rows: c.rows - 1, ..*c }).collect(),
                ..RIGHT
            },
        ),
        (
            "copies in reverse order",
            Bend { copies: |all| all.iter().rev().copied().collect(), ..RIGHT },
        ),
        (
            "copies the wrong way",
            Bend {
                copies: |all| {
                    all.iter().map(|c| RowCopy { from: c.to, to: c.from, rows: c.rows }).collect()
                },
                ..RIGHT
            },
        ),
        ("reads queries at the place of the sequence", Bend { step: without_empty, ..RIGHT }),
        (
            "panics without a sequence",
            Bend {
                step: |s| {
                    assert!(!s.spans().is_empty() || !s.writes().is_empty(), "no sequence");
                    s.clone()
                },
                ..RIGHT
            },
        ),
    ]
}

fn other_part(geometry: &Geometry) -> (bool, bool) {
    // Where the other part is not as wide as a rotation, turn nothing: it is wrong all the same.
    match geometry.row() {
        Row::Tied { s, r, .. } if r > 0 && s % r == 0 => (true, false),
        _ => (false, false),
    }
}

/// Sequences without tokens take no place, as if their rows were not there.
fn without_empty(step: &Step) -> Step {
    rebuilt_spans(step, |span| span.kv_len > 0 || span.q_len == 0)
}

fn rebuilt_spans(step: &Step, keep: impl Fn(&Span) -> bool) -> Step {
    if is_tree(step) || step.spans().iter().all(&keep) {
        return step.clone();
    }
    let kept = step.spans().iter().filter(|span| keep(span));
    let sequences: Vec<Sequence<'_>> = kept
        .map(|span| Sequence { q_len: span.q_len, kv_len: span.kv_len, pages: step.pages(span) })
        .collect();
    let new = Step::new(step.page_size(), &sequences, step.mask().clone());
    let new = new.and_then(|new| new.writing(step.writes().to_vec()));
    new.expect("other pages or fewer sequences of a legal step are one")
}

/// Limits that kernels build in: right up to some size, and wrong past it.
fn limits() -> Vec<(&'static str, Bend)> {
    vec![
        (
            "keeps paths of sixteen tokens",
            Bend { sees: |s, p, t, j| s.sees(p, t, j) && near_ancestor(s, p, t, j), ..RIGHT },
        ),
        (
            "keeps ancestors in 128 bits",
            Bend {
                sees: |s, p, t, j| s.sees(p, t, j) && (!is_tree(s) || j + p.q_len < p.kv_len + 128),
                ..RIGHT
            },
        ),
        ("takes 4096 tokens", Bend { sees: |s, p, t, j| s.sees(p, t, j) && j < 4096, ..RIGHT }),
        (
            "takes 64 sequences",
            Bend { kv_len: |s, b| if b < 64 { (RIGHT.kv_len)(s, b) } else { 0 }, ..RIGHT },
        ),
        (
            "takes keys of 128 elements",
            Bend {
                key: |g, h, a, b| {
                    let mut key = (RIGHT.key)(g, h, a, b);
                    if matches!(g.row(), Row::Separate { .. }) && key.len() > 128 {
                        key[128..].fill(0.0);
                    }
                    key
                },
                ..RIGHT
            },
        ),
        (
            "takes four cached heads where they have groups",
            Bend {
                head: |g, i| {
                    if g.group() > 1 { g.cached_head(i) % 4 } else { g.cached_head(i) }
                },
                ..RIGHT
            },
        ),
        ("writes 65535 rows", Bend { rows: |rows| rows.min(65_535), ..RIGHT }),
        (
            "turns by positions of 16 bits",
            Bend { write: |w| Write { position: i64::from(w.position as i16), ..*w }, ..RIGHT },
        ),
        (
            "appends after an update where it did before",
            Bend {
                update: |old, new| {
                    new.clone().writing(old.writes().to_vec()).expect("legal once, legal again")
                },
                ..RIGHT
            },
        ),
    ]
}

fn near_ancestor(step: &Step, span: &Span, t: usize, j: usize) -> bool {
    let Mask::Tree(tree) = step.mask() else { return true };
    let Some(local) = (j + span.q_len).checked_sub(span.kv_len) else { return true };
    tree.path(span.q_start, t).take(16).any(|ancestor| ancestor == local)
}
