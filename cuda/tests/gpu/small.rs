//! Everything that an engine launches, once and small: what compute-sanitizer has the time for.

use crate::layer::{Case, Results, families, upload};
use crate::{Outcome, expect};
use grouped_attention::{
    Append, Backend, CopyRows, Extent, Mask, Merge, PageId, Planning, ReadRows, Rope, RopeScaling,
    RopeStyle, RowCopy, Slot, Status,
};
use grouped_attention_cuda::CudaBackend;

type Lens = [(usize, usize); 3];

/// Cut into two parts, whole, and padding.
const LENS: Lens = [(1, 700), (2, 70), (0, 30)];
/// Cut into more parts than a warp merges.
const MANY_PARTS: Lens = [(1, 2600), (2, 600), (0, 30)];

pub(crate) fn every_kernel(engine: &CudaBackend) -> Outcome {
    let cases = families()?;
    every_kernel_of(engine, &cases[0], MANY_PARTS)?;
    cases[1..].iter().try_for_each(|case| every_kernel_of(engine, case, LENS))
}

fn every_kernel_of(engine: &CudaBackend, case: &Case, lens: Lens) -> Outcome {
    // Append, rotating
    let width = case.problem.rotated_width();
    let rope = Rope::new(RopeStyle::HalfSplit, width, 10_000.0, RopeScaling::None)?;
    let problem = case.problem.clone().rotating(rope)?;
    let pages = case.pages(&lens);
    let mut cache = case.filled(engine, pages + 1, &lens, 0, 3)?;
    let step = case.step(&lens, 0, Mask::Causal)?.appending()?;
    let capacity = Extent { max_kv_len: 4000, ..*step.extent() };
    let mut plan = engine.plan(Planning::replayed(&problem, &step, capacity)?)?;
    let rows = case.rows(step.writes().len(), 1)?;
    let (first, second) = (upload(engine, &rows[0])?, upload(engine, &rows[1])?);
    engine.append(Append::rotating(&plan, &mut cache, &first, Some(&second))?)?;

    // Copies: the first rows of the first page to a page that nobody reads, and back
    let slot = |page: usize| Slot { page: PageId(page as u32), row: 0 };
    let before = engine.read_rows(ReadRows::new(&cache, &[slot(0)])?)?;
    let copy = |from, to| RowCopy { from: slot(from), to: slot(to), rows: 4 };
    engine.copy_rows(CopyRows::new(&mut cache, &[copy(0, pages), copy(pages, 0)])?)?;
    let after = engine.read_rows(ReadRows::new(&cache, &[slot(pages)])?)?;
    expect(before == after, format!("{case}: a copied row differs"))?;

    // Attention, scheduled by the host and by the device
    let q = upload(engine, &case.queries(step.total_q())?)?;
    let mut results = Results::new(engine, &problem, step.total_q())?;
    results.attend(engine, &mut plan, &q, &cache)?;
    let bits = results.bits(engine)?;
    engine.reschedule(&mut plan)?;
    let mut again = Results::new(engine, &problem, step.total_q())?;
    again.attend(engine, &mut plan, &q, &cache)?;
    expect(again.bits(engine)? == bits, format!("{case}: the device's schedule differs"))?;
    expect(engine.status(&plan)? == Status::Ok, format!("{case}: a legal step has a status"))?;

    // A merge of a result with itself, which halves and doubles
    let Results { o, lse } = &mut again;
    engine.merge(Merge::new(o, lse, &results.o, &results.lse)?)?;
    expect(again.bits(engine)?[0] == bits[0], format!("{case}: a result is not its own mean"))
}
