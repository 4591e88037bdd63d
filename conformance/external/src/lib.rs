//! Somebody else's engine: a naive f32 kernel behind the trait that the suite judges by. Tensors,
//! caches and plans are the reference's, so it moves the rows; other memory has its own types.

use grouped_attention::*;

type Done<T = ()> = Result<T, EngineError>;

/// One row: `o = sum e^s v / sum e^s`, and lse.
fn kernel(scale: f32, q: &[f64], keys: &[Vec<f64>], values: &[&[f64]], width: usize) -> Vec<f64> {
    let dot = |k: &Vec<f64>| q.iter().zip(k).map(|(q, k)| *q as f32 * *k as f32).sum::<f32>();
    let scores: Vec<f32> = keys.iter().map(|k| scale * dot(k)).collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f32 = weights.iter().sum();
    let weighted = |c: usize| weights.iter().zip(values).map(move |(w, v)| w / sum * v[c] as f32);
    (0..width).map(|c| weighted(c).sum()).chain([max + sum.ln()]).map(f64::from).collect()
}

/// Rounds numbers into the first elements of a tensor.
fn store(tensor: &mut ReferenceTensor, first: &[f64]) -> Done {
    let values = [first, &tensor.values()[first.len()..]].concat();
    let host = HostTensor::from_f64(tensor.dtype(), tensor.shape(), &values).expect("its size");
    Reference.upload(Upload::new(tensor, &host).expect("its shape"))
}

#[derive(Debug)]
pub struct Naive;

impl Backend for Naive {
    type Tensor = ReferenceTensor;
    type Cache = ReferenceCache;
    type Plan = ReferencePlan;

    fn attend(&self, call: Attend<'_, Self>) -> Done {
        let (problem, step) = (call.plan.planned().problem(), call.plan.step());
        let (g, mut o, mut lse) = (problem.geometry(), Vec::new(), Vec::new());
        for span in step.spans() {
            for row in span.q_start * g.h_q()..(span.q_start + span.q_len) * g.h_q() {
                let (t, head) = (row / g.h_q() - span.q_start, g.cached_head(row % g.h_q()));
                let seen = (0..span.kv_len).filter(|&j| step.sees(span, t, j));
                let slots: Vec<Slot> = seen.map(|j| step.slot(span, j)).collect();
                let key = |slot: &Slot| call.cache.key(*slot, head).collect();
                let keys: Vec<Vec<f64>> = slots.iter().map(key).collect();
                let value = |slot: &Slot| call.cache.value(*slot, head);
                let values: Vec<&[f64]> = slots.iter().map(value).collect();
                let q = &call.q.values()[row * g.width_k()..][..g.width_k()];
                o.extend(kernel(problem.scale() as f32, q, &keys, &values, g.width_v()));
                lse.extend(o.pop());
            }
        }
        store(call.o, &o).and_then(|()| call.lse.map_or(Ok(()), |tensor| store(tensor, &lse)))
    }
    fn identity(&self) -> Identity {
        Identity { name: "naive", kernel: "loops".into(), device: "host".into() }
    }
    fn arithmetic(&self, _: &Problem) -> Arithmetic {
        Arithmetic { batch_invariant: true, ..Arithmetic::f32(2f64.powi(-22), usize::MAX) }
    }
    fn supports(&self, problem: &Problem) -> Result<(), Unsupported> {
        Reference.supports(problem)
    }
    fn append(&self, call: Append<'_, Self>) -> Done {
        let new = if call.rotating { Append::rotating } else { Append::new };
        Reference.append(new(call.plan, call.cache, call.first, call.second).expect("checked"))
    }
    fn merge(&self, call: Merge<'_, Self>) -> Done {
        let merge = Merge::new(call.o, call.lse, call.other_o, call.other_lse);
        Reference.merge(merge.expect("checked"))
    }
    fn plan(&self, call: Planning<'_>) -> Done<ReferencePlan> {
        Reference.plan(call)
    }
    fn update(&self, call: Update<'_, Self>) -> Done {
        Reference.update(Update::new(call.plan, call.step).expect("checked"))
    }
    fn copy_rows(&self, call: CopyRows<'_, Self>) -> Done {
        Reference.copy_rows(CopyRows::new(call.cache, call.copies).expect("checked"))
    }
    fn read_rows(&self, call: ReadRows<'_, Self>) -> Done<[HostTensor; 2]> {
        Reference.read_rows(ReadRows::new(call.cache, call.slots).expect("checked"))
    }
    fn upload(&self, call: Upload<'_, Self>) -> Done {
        Reference.upload(Upload::new(call.tensor, call.host).expect("checked"))
    }
    fn download(&self, tensor: &ReferenceTensor) -> Done<HostTensor> {
        Reference.download(tensor)
    }
    fn allocate(&self, dtype: Dtype, shape: &[usize]) -> Done<ReferenceTensor> {
        Reference.allocate(dtype, shape)
    }
    fn create_cache(&self, layout: CacheLayout) -> Done<ReferenceCache> {
        Reference.create_cache(layout)
    }
    fn status(&self, plan: &ReferencePlan) -> Done<Status> {
        Reference.status(plan)
    }
    fn synchronize(&self) -> Done {
        Ok(())
    }
}
