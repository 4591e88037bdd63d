//! Page ids that only the device knows: an illegal one is found, reported and harms nobody else.

use crate::driver::Driver;
use crate::layer::{PAGE_SIZE, Results, fill, gla, queries, random, step, upload};
use crate::{Outcome, expect};
use grouped_attention::{
    Append, Backend, CacheLayout, Mask, PageId, Planning, Slot, Status, Step, Update, Write,
};
use grouped_attention_cuda::CudaBackend;

const LENS: [(usize, usize); 3] = [(1, 3000), (2, 700), (1, 40)];
const PAGES: usize = 300;

pub(crate) fn bad_page(engine: &CudaBackend) -> Outcome {
    let driver = Driver::new()?;
    let problem = gla()?;
    let layout = CacheLayout::new(*problem.geometry(), problem.dtype(), PAGE_SIZE, PAGES)?;
    let mut cache = engine.create_cache(layout)?;
    fill(engine, &problem, &mut cache, &LENS, 0, 3)?;
    let step = step(&LENS, 0, Mask::Causal)?;
    let q = queries(engine, &problem, step.total_q())?;
    let mut plan = engine.plan(Planning::new(&problem, &step))?;
    let mut results = Results::new(engine, &problem, step.total_q())?;
    results.attend(engine, &mut plan, &q, &cache)?;
    expect(engine.status(&plan)? == Status::Ok, "a legal step has a status")?;
    let good = results.bits(engine)?;

    let tables = plan.device_tables();
    for bad in [PAGES as i32, i32::MAX, -1, i32::MIN] {
        // The third page of the second sequence.
        let entry = tables.page_table + 4 * (tables.row_stride as u64 + 2);
        driver.write(entry, &[bad])?;
        results.attend(engine, &mut plan, &q, &cache)?;
        expect(engine.status(&plan)? == Status::PageOutOfRange, format!("page {bad} passes"))?;
        let [o, lse] = results.bits(engine)?;
        for (index, (bits, good)) in o.iter().chain(&lse).zip(good.iter().flatten()).enumerate() {
            let (len, index) =
                if index < o.len() { (o.len(), index) } else { (lse.len(), index - o.len()) };
            let query = index / (len / step.total_q());
            let fits = if query == 1 || query == 2 {
                f64::from_bits(*bits).is_nan()
            } else {
                bits == good
            };
            expect(fits, format!("page {bad}: query {query} is wrong"))?;
        }
        engine.update(Update::new(&mut plan, &step)?)?;
        results.attend(engine, &mut plan, &q, &cache)?;
        expect(engine.status(&plan)? == Status::Ok, "an update keeps the old status")?;
        expect(results.bits(engine)? == good, "an update does not restore the tables")?;
    }
    Ok(())
}

/// A write to a page that the cache does not have is left out.
pub(crate) fn bad_write(engine: &CudaBackend) -> Outcome {
    let problem = gla()?;
    let slot = Slot { page: PageId(0), row: 3 };
    let step =
        Step::new(PAGE_SIZE, &[], Mask::Causal)?.writing(vec![Write { slot, position: 0 }])?;
    let plan = engine.plan(Planning::new(&problem, &step))?;
    let layout = CacheLayout::new(*problem.geometry(), problem.dtype(), PAGE_SIZE, 1)?;
    let mut cache = engine.create_cache(layout)?;
    let first = upload(engine, &random(problem.dtype(), &[1, 2, 64], 1)?)?;
    let second = upload(engine, &random(problem.dtype(), &[1, 32], 2)?)?;
    let driver = Driver::new()?;
    driver.write(plan.device_tables().writes, &[7, 3])?;
    engine.append(Append::new(&plan, &mut cache, &first, Some(&second))?)?;
    expect(engine.status(&plan)? == Status::PageOutOfRange, "an illegal write passes")
}
