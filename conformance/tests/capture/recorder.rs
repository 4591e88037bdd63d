//! The reference engine, remembering what it is asked and given.

use grouped_attention::{
    Append, Arithmetic, Attend, Backend, CacheLayout, CopyRows, Dtype, EngineError, HostTensor,
    Identity, Merge, Planning, Problem, ReadRows, Reference, ReferenceCache, ReferencePlan,
    ReferenceTensor, Status, Unsupported, Update, Upload,
};
use std::sync::Mutex;

/// One layer's step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// `[tokens, h_q, width_k]`.
    pub(crate) q: Vec<f64>,
    /// Keys or states.
    pub(crate) first: Vec<f64>,
    /// Values or rope keys.
    pub(crate) second: Vec<f64>,
}

/// The engine.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Mutex<Vec<Seen>>);

impl Recorder {
    /// What it has seen, layer after layer.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.0.lock().expect("no panic while recording"))
    }
}

const CHECKED: &str = "arguments that this call was checked for";

impl Backend for Recorder {
    type Tensor = ReferenceTensor;
    type Cache = ReferenceCache;
    type Plan = ReferencePlan;

    fn append(&self, call: Append<'_, Self>) -> Result<(), EngineError> {
        let values = |tensor: &ReferenceTensor| tensor.values().to_vec();
        let seen = Seen {
            q: Vec::new(),
            first: values(call.first),
            second: call.second.map(values).unwrap_or_default(),
        };
        self.0.lock().expect(CHECKED).push(seen);
        let call = Append::new(call.plan, call.cache, call.first, call.second);
        Reference.append(call.expect(CHECKED))
    }

    fn attend(&self, call: Attend<'_, Self>) -> Result<(), EngineError> {
        if let Some(seen) = self.0.lock().expect(CHECKED).last_mut() {
            seen.q = call.q.values().to_vec();
        }
        let call = Attend::new(call.plan, call.q, call.cache, call.o, call.lse);
        Reference.attend(call.expect(CHECKED))
    }

    fn identity(&self) -> Identity {
        Reference.identity()
    }

    fn supports(&self, problem: &Problem) -> Result<(), Unsupported> {
        Reference.supports(problem)
    }

    fn arithmetic(&self, problem: &Problem) -> Arithmetic {
        Reference.arithmetic(problem)
    }

    fn allocate(&self, dtype: Dtype, shape: &[usize]) -> Result<ReferenceTensor, EngineError> {
        Reference.allocate(dtype, shape)
    }

    fn upload(&self, call: Upload<'_, Self>) -> Result<(), EngineError> {
        Reference.upload(Upload::new(call.tensor, call.host).expect(CHECKED))
    }

    fn download(&self, tensor: &ReferenceTensor) -> Result<HostTensor, EngineError> {
        Reference.download(tensor)
    }

    fn create_cache(&self, layout: CacheLayout) -> Result<ReferenceCache, EngineError> {
        Reference.create_cache(layout)
    }

    fn plan(&self, call: Planning<'_>) -> Result<ReferencePlan, EngineError> {
        Reference.plan(call)
    }

    fn update(&self, call: Update<'_, Self>) -> Result<(), EngineError> {
        Reference.update(Update::new(call.plan, call.step).expect(CHECKED))
    }

    fn copy_rows(&self, call: CopyRows<'_, Self>) -> Result<(), EngineError> {
        Reference.copy_rows(CopyRows::new(call.cache, call.copies).expect(CHECKED))
    }

    fn read_rows(&self, call: ReadRows<'_, Self>) -> Result<[HostTensor; 2], EngineError> {
        Reference.read_rows(ReadRows::new(call.cache, call.slots).expect(CHECKED))
    }

    fn merge(&self, call: Merge<'_, Self>) -> Result<(), EngineError> {
        let call = Merge::new(call.o, call.lse, call.other_o, call.other_lse);
        Reference.merge(call.expect(CHECKED))
    }

    fn status(&self, plan: &ReferencePlan) -> Result<Status, EngineError> {
        Reference.status(plan)
    }

    fn synchronize(&self) -> Result<(), EngineError> {
        Reference.synchronize()
    }
}
