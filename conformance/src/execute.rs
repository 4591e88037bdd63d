//! Driving an engine through a script, and bringing back what it computed.

use crate::script::{Capacity, Op, Script};
use grouped_attention::{
    AnyBackend, AnyPlan, AnyTensor, Append, Attend, Backend, CopyRows, Dtype, Error, HostTensor,
    Merge, PlanInfo, Planning, ReadRows, Status, TensorInfo, Update, Upload,
};

/// Rows that one attention or merge wrote, as numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// `[total_q, h_q, width_v]`.
    pub o: Vec<f64>,
    /// `[total_q, h_q]`; absent where it was not asked for.
    pub lse: Option<Vec<f64>>,
}

/// What one operation of a script brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An attention's output.
    Attended {
        /// Which question it answers.
        question: usize,
        /// What the engine said.
        output: Output,
    },
    /// Two parts as the engine computed them, and as it merged them.
    Merged {
        /// The part before.
        part: Output,
        /// The part after.
        other: Output,
        /// Both.
        merged: Output,
    },
    /// What the audited cells hold, both parts of each row, `[slots, _]`.
    Audited {
        /// Keys or states.
        first: Vec<f64>,
        /// Values or rope keys.
        second: Vec<f64>,
    },
}

/// Why a script did not run to its end.
#[derive(Clone, Debug, PartialEq)]
pub enum Halt {
    /// The library or the engine refused.
    Refused(Error),
    /// A row that the engine was not asked for has changed.
    Overwritten {
        /// `o` or `lse`.
        tensor: &'static str,
        /// Row of the tensor.
        row: usize,
        /// What it holds now.
        now: f64,
    },
    /// The engine found its own metadata wrong.
    Status(Status),
}

impl<E: Into<Error>> From<E> for Halt {
    fn from(error: E) -> Halt {
        Halt::Refused(error.into())
    }
}

/// Runs a script.
///
/// # Errors
/// What the engine refuses, rows it overwrites, a status that is not ok.
pub fn execute(engine: &AnyBackend, script: &Script) -> Result<Vec<Event>, Halt> {
    let layers = 0..script.case.scenario.layers();
    let mut caches =
        layers.map(|_| engine.create_cache(script.layout)).collect::<Result<Vec<_>, _>>()?;
    let mut layer = 0;
    let mut plan: Option<AnyPlan> = None;
    let mut events = Vec::new();
    for op in &script.ops {
        match op {
            Op::Plan { step, capacity } => {
                let call = match capacity {
                    None => Planning::new(&script.problem, step),
                    Some(Capacity { extent, replayed: false }) => {
                        Planning::with_capacity(&script.problem, step, *extent)?
                    }
                    Some(Capacity { extent, replayed: true }) => {
                        Planning::replayed(&script.problem, step, *extent)?
                    }
                };
                plan = Some(engine.plan(call)?);
            }
            Op::Update { step } => engine.update(Update::new(current(&mut plan), step)?)?,
            Op::Layer(to) => layer = *to,
            Op::Append { first, second, rotating } => {
                let first = uploaded(engine, first)?;
                let second = second.as_ref().map(|host| uploaded(engine, host)).transpose()?;
                let (plan, second) = (&*current(&mut plan), second.as_ref());
                let cache = &mut caches[layer];
                engine.append(if *rotating {
                    Append::rotating(plan, cache, &first, second)?
                } else {
                    Append::new(plan, cache, &first, second)?
                })?;
            }
            Op::Copy(copies) => engine.copy_rows(CopyRows::new(&mut caches[layer], copies)?)?,
            Op::Attend { q, question } => {
                let plan = current(&mut plan);
                let q = uploaded(engine, q)?;
                let mut room = Room::new(engine, script, q.shape()[0])?;
                let Room { o, lse, .. } = &mut room;
                let lse = (!script.case.no_lse).then_some(lse);
                engine.attend(Attend::new(plan, &q, &caches[layer], o, lse)?)?;
                let output = room.read(engine, plan.planned().extent().total_q)?;
                events.push(Event::Attended { question: *question, output });
            }
            Op::Merge => events.push(merge(engine, script, &events)?),
        }
    }
    let [first, second] = engine.read_rows(ReadRows::new(&caches[layer], &script.audit.slots)?)?;
    events.push(Event::Audited { first: first.to_f64(), second: second.to_f64() });
    if let Some(plan) = &plan {
        match engine.status(plan)? {
            Status::Ok => {}
            status => return Err(Halt::Status(status)),
        }
    }
    engine.synchronize()?;
    Ok(events)
}

fn current(plan: &mut Option<AnyPlan>) -> &mut AnyPlan {
    plan.as_mut().expect("a script plans before it uses a plan")
}

pub(crate) fn uploaded(engine: &AnyBackend, host: &HostTensor) -> Result<AnyTensor, Error> {
    let mut tensor = engine.allocate(host.dtype(), host.shape())?;
    engine.upload(Upload::new(&mut tensor, host)?)?;
    Ok(tensor)
}

/// Output tensors, marked so that rows left out and rows written by mistake both show.
struct Room {
    o: AnyTensor,
    lse: AnyTensor,
    with_lse: bool,
}

/// What rows behind the output hold: small integers, which every format has, never alike nearby.
fn mark(index: usize) -> f64 {
    (index % 251 + 1) as f64
}

impl Room {
    fn new(engine: &AnyBackend, script: &Script, rows: usize) -> Result<Room, Error> {
        let geometry = script.problem.geometry();
        let marked = |dtype: Dtype, shape: &[usize]| {
            let elements: usize = shape.iter().product();
            let marks: Vec<f64> = (0..elements).map(mark).collect();
            uploaded(engine, &HostTensor::from_f64(dtype, shape, &marks)?)
        };
        let (h_q, width_v) = (geometry.h_q(), geometry.width_v());
        Ok(Room {
            o: marked(script.problem.output(), &[rows, h_q, width_v])?,
            lse: marked(Dtype::F32, &[rows, h_q])?,
            with_lse: !script.case.no_lse,
        })
    }

    fn read(&self, engine: &AnyBackend, total_q: usize) -> Result<Output, Halt> {
        let read = |name: &'static str, tensor: &AnyTensor, written: usize| {
            let shape = tensor.shape().to_vec();
            let width: usize = shape[1..].iter().product();
            let mut values = engine.download(tensor)?.to_f64();
            for (index, &now) in values.iter().enumerate().skip(written * width) {
                if now.to_bits() != mark(index).to_bits() {
                    return Err(Halt::Overwritten { tensor: name, row: index / width, now });
                }
            }
            values.truncate(written * width);
            Ok(values)
        };
        let o = read("o", &self.o, total_q)?;
        // An lse that was not asked for stays as it was, all of it.
        let lse = read("lse", &self.lse, if self.with_lse { total_q } else { 0 })?;
        Ok(Output { o, lse: self.with_lse.then_some(lse) })
    }
}

/// Merges the last two outputs on the engine.
fn merge(engine: &AnyBackend, script: &Script, events: &[Event]) -> Result<Event, Halt> {
    let [.., Event::Attended { output: part, .. }, Event::Attended { output: other, .. }] = events
    else {
        unreachable!("a script attends twice before it merges");
    };
    let geometry = script.problem.geometry();
    let (h_q, width_v) = (geometry.h_q(), geometry.width_v());
    let rows = part.o.len() / (h_q * width_v);
    let upload = |dtype, shape: &[usize], values: &[f64]| {
        uploaded(engine, &HostTensor::from_f64(dtype, shape, values)?)
    };
    let tensors = |output: &Output| -> Result<(AnyTensor, AnyTensor), Error> {
        let lse = output.lse.as_ref().expect("a merging script asks for lse");
        let o = upload(script.problem.output(), &[rows, h_q, width_v], &output.o)?;
        Ok((o, upload(Dtype::F32, &[rows, h_q], lse)?))
    };
    let (mut o, mut lse) = tensors(part)?;
    let (other_o, other_lse) = tensors(other)?;
    engine.merge(Merge::new(&mut o, &mut lse, &other_o, &other_lse)?)?;
    let merged =
        Output { o: engine.download(&o)?.to_f64(), lse: Some(engine.download(&lse)?.to_f64()) };
    Ok(Event::Merged { part: part.clone(), other: other.clone(), merged })
}
