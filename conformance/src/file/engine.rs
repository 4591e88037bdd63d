//! A case on an engine: the same calls that a serving program makes.

use super::case::CaseFile;
use super::error::RunError;
use super::format::Format;
use super::result::ResultFile;
use grouped_attention::{
    Append, Attend, Backend, Dtype, EngineError, HostTensor, Mask, Planning, Problem, Status, Step,
    TensorInfo, Unsupported, Upload, Write,
};

impl CaseFile {
    /// What an engine says, in the format of queries and cache; round the case first to choose one.
    ///
    /// # Errors
    /// Several formats, or f64; an engine that does not support the problem, or fails.
    pub fn run(&self, backend: &impl Backend) -> Result<ResultFile, RunError> {
        let dtype = self.dtype()?;
        let problem = self.problem(dtype)?;
        backend.supports(&problem).map_err(EngineError::from)?;
        let cache = self.filled(backend, &problem)?;
        let mut plan = backend.plan(Planning::new(&problem, self.step()))?;

        let geometry = problem.geometry();
        let (total_q, h_q) = (self.step().total_q(), geometry.h_q());
        let q = upload(backend, dtype, &self.q().shape, &self.q().values)?;
        let mut o = backend.allocate(problem.output(), &[total_q, h_q, geometry.width_v()])?;
        let mut lse = backend.allocate(Dtype::F32, &[total_q, h_q])?;
        backend.attend(Attend::new(&mut plan, &q, &cache, &mut o, Some(&mut lse))?)?;
        backend.synchronize()?;
        if backend.status(&plan)? != Status::Ok {
            // Every page id was checked against the cache, so this is the engine's fault.
            let message = "the engine met a page id that the case does not have".to_owned();
            return Err(EngineError::Device { message, lost: false }.into());
        }
        let (o, lse) = (backend.download(&o)?, backend.download(&lse)?);
        let [o_format, lse_format] = [format(o.dtype())?, format(lse.dtype())?];
        Ok(ResultFile::new(self, o_format, o.to_f64(), lse_format, lse.to_f64()))
    }

    /// A cache that holds every row the case uses. What its other cells hold is the engine's affair.
    fn filled<B: Backend>(&self, backend: &B, problem: &Problem) -> Result<B::Cache, RunError> {
        let dtype = problem.dtype();
        let mut cache = backend.create_cache(self.layout(dtype)?)?;
        let writes: Vec<Write> =
            self.used_slots().map(|slot| Write { slot, position: 0 }).collect();
        if writes.is_empty() {
            return Ok(cache);
        }
        let [mut first, mut second] = [Vec::new(), Vec::new()];
        for write in &writes {
            let row = self.row(write.slot);
            first.extend_from_slice(row[0]);
            second.extend_from_slice(row[1]);
        }
        let rows = writes.len();
        let step = Step::new(self.step().page_size(), &[], Mask::Causal)?.writing(writes)?;
        let plan = backend.plan(Planning::new(problem, &step))?;
        // A row of a part, without pages and tokens.
        let shapes = self.layout(dtype)?.part_shapes().map(|shape| [&[rows], &shape[2..]].concat());
        let first = upload(backend, dtype, &shapes[0], &first)?;
        let second = match second.is_empty() {
            true => None,
            false => Some(upload(backend, dtype, &shapes[1], &second)?),
        };
        backend.append(Append::new(&plan, &mut cache, &first, second.as_ref())?)?;
        backend.synchronize()?;
        Ok(cache)
    }
}

fn upload<B: Backend>(
    backend: &B,
    dtype: Dtype,
    shape: &[usize],
    values: &[f64],
) -> Result<B::Tensor, RunError> {
    let mut tensor = backend.allocate(dtype, shape)?;
    debug_assert_eq!(tensor.shape(), shape);
    let host = HostTensor::from_f64(dtype, shape, values)?;
    backend.upload(Upload::new(&mut tensor, &host)?)?;
    Ok(tensor)
}

fn format(dtype: Dtype) -> Result<Format, RunError> {
    Ok(Format::try_from(dtype).map_err(|dtype| EngineError::from(Unsupported::Dtype { dtype }))?)
}
