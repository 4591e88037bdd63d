//! Geometries, problems, layouts, masks and steps from any numbers: an error or a legal value, never
//! a panic, and what is legal can be computed.
#![no_main]

use arbitrary::Arbitrary;
use grouped_attention::{
    CacheLayout, Dtype, Geometry, Mask, MaskKind, PageId, Problem, ReferenceCache, Row, Sequence,
    Slot, Step, Write, attend,
};
use grouped_attention_fuzz::memory::within;
use grouped_attention_fuzz::sizes::Size;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    geometry: Numbers,
    scale: f64,
    page_size: Size,
    pages: Size,
    sequences: Vec<Asked>,
    mask: Shape,
    writes: Option<Vec<(u32, Size)>>,
}

#[derive(Arbitrary, Debug)]
enum Numbers {
    Separate { h_q: Size, heads: Size, d_k: Size, d_v: Size },
    Tied { h_q: Size, heads: Size, s: Size, n: Size, r: Size },
    Gta { h_q: Size, heads: Size, d_h: Size },
    Gla { h_q: Size, heads: Size, d_c: Size, d_r: Size },
}

#[derive(Arbitrary, Debug)]
struct Asked {
    q_len: Size,
    kv_len: Size,
    pages: Vec<u8>,
    far: Option<u32>,
}

#[derive(Arbitrary, Debug)]
enum Shape {
    Causal,
    Full,
    Tree(Vec<i8>),
    AnyTree(Vec<i32>),
}

fn geometry(numbers: &Numbers) -> Option<Geometry> {
    match *numbers {
        Numbers::Separate { h_q, heads, d_k, d_v } => {
            Geometry::separate(h_q.0, heads.0, d_k.0, d_v.0)
        }
        Numbers::Tied { h_q, heads, s, n, r } => Geometry::tied(h_q.0, heads.0, s.0, n.0, r.0),
        Numbers::Gta { h_q, heads, d_h } => Geometry::gta(h_q.0, heads.0, d_h.0),
        Numbers::Gla { h_q, heads, d_c, d_r } => Geometry::gla(h_q.0, heads.0, d_c.0, d_r.0),
    }
    .ok()
}

fn step(input: &Input) -> Option<Step> {
    let tables: Vec<Vec<PageId>> = input
        .sequences
        .iter()
        .map(|asked| asked.pages.iter().map(|&page| PageId(page.into())))
        .zip(&input.sequences)
        .map(|(pages, asked)| pages.chain(asked.far.map(PageId)).collect())
        .collect();
    let sequences: Vec<Sequence<'_>> = input
        .sequences
        .iter()
        .zip(&tables)
        .map(|(asked, pages)| Sequence { q_len: asked.q_len.0, kv_len: asked.kv_len.0, pages })
        .collect();
    let widened: Vec<i32>;
    let kind = match &input.mask {
        Shape::Causal => MaskKind::Causal,
        Shape::Full => MaskKind::Full,
        Shape::Tree(parents) => {
            widened = parents.iter().map(|&parent| parent.into()).collect();
            MaskKind::Tree(&widened)
        }
        Shape::AnyTree(parents) => MaskKind::Tree(parents),
    };
    let lens = input.sequences.iter().map(|asked| asked.q_len.0);
    let mask = Mask::new(kind, lens).ok()?;
    let step = Step::new(input.page_size.0, &sequences, mask).ok()?;
    match &input.writes {
        // A list of as many writes as there are queries is what is asked for, and not tried here.
        None if step.total_q() > 1 << 16 && step.extent().max_kv_len > 0 => Some(step),
        None => step.clone().appending().ok().or(Some(step)),
        Some(writes) => {
            let write = |&(page, row): &(u32, Size)| Write {
                slot: Slot { page: PageId(page), row: row.0 },
                position: row.0 as i64,
            };
            step.writing(writes.iter().map(write).collect()).ok()
        }
    }
}

/// What every legal step promises.
fn check_step(step: &Step) {
    let mut next = 0;
    for span in step.spans() {
        assert_eq!(span.q_start, next);
        next += span.q_len;
        assert_eq!(step.pages(span).len(), span.kv_len.div_ceil(step.page_size()));
        for position in [0, span.kv_len / 2, span.kv_len.saturating_sub(1)] {
            if position < span.kv_len {
                let slot = step.slot(span, position);
                assert!(slot.row < step.page_size());
                assert!((slot.page.0 as usize) < step.pages_required());
                if span.q_len > 0 {
                    step.sees(span, span.q_len - 1, position);
                }
            }
        }
    }
    assert_eq!(next, step.total_q());
    assert_eq!(step.writes().len(), step.extent().writes);
}

/// Attends where it is cheap: rows are o = 0, lse = -inf exactly where nothing is visible.
fn check_attention(problem: &Problem, step: &Step, layout: CacheLayout) {
    let geometry = problem.geometry();
    let kv: usize = step.spans().iter().map(|span| span.q_len * span.kv_len).sum();
    let width = geometry.width_k() + geometry.width_v();
    let rows = step.total_q() * geometry.h_q();
    let work = kv.saturating_mul(geometry.h_q()).saturating_mul(width);
    let size = rows.saturating_mul(width).saturating_add(layout.bytes());
    if work > 1 << 18 || size > 1 << 18 || step.pages_required() > layout.pages() {
        return;
    }
    let mut cache = ReferenceCache::new(layout);
    let [first, second] = geometry.row().parts();
    for span in step.spans() {
        for position in 0..span.kv_len {
            cache.write(step.slot(span, position), &vec![0.5; first], &vec![-0.25; second]);
        }
    }
    let q = vec![0.75; rows * geometry.width_k()];
    let attended = attend(problem, step, &q, &cache);
    let value = match geometry.row() {
        Row::Separate { .. } => -0.25,
        Row::Tied { .. } => 0.5,
    };
    for (row, o) in attended.rows.iter().zip(attended.o.chunks_exact(geometry.width_v())) {
        let expected = if row.visible == 0 { 0.0 } else { value };
        assert!(o.iter().all(|x: &f64| (x - expected).abs() < 1e-12), "{o:?}");
        assert_eq!(row.visible == 0, row.lse == f64::NEG_INFINITY);
    }
}

fuzz_target!(|input: Input| {
    let asked: usize = input.sequences.iter().map(|asked| asked.pages.len() + 64).sum();
    within(asked, || {
        let step = step(&input);
        if let Some(step) = &step {
            check_step(step);
        }
        let Some(geometry) = geometry(&input.geometry) else { return };
        assert!(geometry.group() * geometry.heads() == geometry.h_q());
        let layout = CacheLayout::new(geometry, Dtype::Bf16, input.page_size.0, input.pages.0);
        if let Ok(layout) = &layout {
            assert!(layout.bytes() <= isize::MAX as usize);
        }
        let problem = Problem::new(geometry, Dtype::Bf16, input.scale);
        if let (Some(step), Ok(layout), Ok(problem)) = (&step, layout, problem) {
            // A scale near the largest f32 makes scores of 1e38 and more, which IEEE arithmetic sums
            // to infinity: that is defined, and not what is checked here.
            if problem.scale() < 1e30 {
                check_attention(&problem, step, layout);
            }
        }
    });
});
