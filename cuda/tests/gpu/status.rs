//! Page ids that only the device knows: an illegal one is found, reported and harms nobody else.
//! [S-4.22]

use crate::driver::Driver;
use crate::layer::{Case, Results, families, upload};
use crate::{Outcome, expect};
use grouped_attention::{
    Append, Backend, Extent, Mask, PageId, Planning, Slot, Status, Step, Update, Write,
};
use grouped_attention_cuda::CudaBackend;

const LENS: [(usize, usize); 3] = [(1, 1000), (2, 300), (1, 40)];

pub(crate) fn bad_page(engine: &CudaBackend) -> Outcome {
    let driver = Driver::new(engine.ordinal())?;
    families()?.iter().try_for_each(|case| bad_page_of(engine, &driver, case))
}

fn bad_page_of(engine: &CudaBackend, driver: &Driver, case: &Case) -> Outcome {
    let pages = case.pages(&LENS);
    let cache = case.filled(engine, pages, &LENS, 0, 3)?;
    let step = case.step(&LENS, 0, Mask::Causal)?;
    let q = upload(engine, &case.queries(step.total_q())?)?;
    let mut plan = engine.plan(Planning::new(&case.problem, &step))?;
    let mut results = Results::new(engine, &case.problem, step.total_q())?;
    results.attend(engine, &mut plan, &q, &cache)?;
    expect(engine.status(&plan)? == Status::Ok, "a legal step has a status")?;
    let good = results.bits(engine)?;

    let tables = plan.device_tables();
    for bad in [pages as i32, i32::MAX, -1, i32::MIN] {
        // The third page of the second sequence.
        let entry = tables.page_table + 4 * (tables.row_stride as u64 + 2);
        driver.write(engine, entry, &[bad])?;
        results.attend(engine, &mut plan, &q, &cache)?;
        let status = engine.status(&plan)?;
        expect(status == Status::PageOutOfRange, format!("{case}: page {bad} passes"))?;
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
            expect(fits, format!("{case}, page {bad}: query {query} is wrong"))?;
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
    let case = &families()?[0];
    let slot = Slot { page: PageId(0), row: 3 };
    let step =
        Step::new(case.page_size, &[], Mask::Causal)?.writing(vec![Write { slot, position: 0 }])?;
    let plan = engine.plan(Planning::new(&case.problem, &step))?;
    let mut cache = case.cache(engine, 1)?;
    let rows = case.rows(1, 1)?;
    let (first, second) = (upload(engine, &rows[0])?, upload(engine, &rows[1])?);
    let driver = Driver::new(engine.ordinal())?;
    driver.write(engine, plan.device_tables().writes, &[7, 3])?;
    engine.append(Append::new(&plan, &mut cache, &first, Some(&second))?)?;
    expect(engine.status(&plan)? == Status::PageOutOfRange, "an illegal write passes")
}

/// Lengths that only the device knows and that the plan has no room for: nothing is computed.
pub(crate) fn long_sequence(engine: &CudaBackend) -> Outcome {
    let driver = Driver::new(engine.ordinal())?;
    for case in families()? {
        let cache = case.filled(engine, case.pages(&LENS), &LENS, 0, 3)?;
        let step = case.step(&LENS, 0, Mask::Full)?;
        let capacity = Extent { max_kv_len: 4000, ..*step.extent() };
        let q = upload(engine, &case.queries(step.total_q())?)?;
        let mut plan = engine.plan(Planning::replayed(&case.problem, &step, capacity)?)?;
        let mut results = Results::new(engine, &case.problem, step.total_q())?;
        for kv_len in [1 << 20, i32::MAX] {
            driver.write(engine, plan.device_tables().kv_lens, &[kv_len])?;
            engine.reschedule(&mut plan)?;
            results.attend(engine, &mut plan, &q, &cache)?;
            // Without a schedule the first entry past the table is a page that is not there.
            let reported = engine.status(&plan) != Ok(Status::Ok);
            expect(reported, format!("{case}: a length of {kv_len} passes"))?;
            engine.update(Update::new(&mut plan, &step)?)?;
            results.attend(engine, &mut plan, &q, &cache)?;
            let status = engine.status(&plan)?;
            expect(status == Status::Ok, format!("{case}: an update keeps the old status"))?;
        }
    }
    Ok(())
}
