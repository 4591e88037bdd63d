//! What engines promise beside attention: tensors, merges, refusals.

use crate::execute::uploaded;
use grouped_attention::{
    AnyBackend, AnyTensor, Backend, Dtype, EngineError, Extension, Geometry, HostTensor, Merge,
    Planning, Problem, Step, TensorInfo, Unsupported, merge_row,
};

/// A promise, and the check of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clause {
    pub(crate) name: &'static str,
    pub(crate) check: fn(&AnyBackend) -> Result<(), String>,
}

pub(crate) const CLAUSES: [Clause; 6] = [
    Clause { name: "tensors-keep-their-bits", check: tensors_keep_their_bits },
    Clause { name: "tensors-begin-as-zeros", check: tensors_begin_as_zeros },
    Clause { name: "too-large-is-out-of-memory", check: too_large_is_out_of_memory },
    Clause { name: "extensions-are-refused", check: extensions_are_refused },
    Clause { name: "foreign-handles-are-refused", check: foreign_handles_are_refused },
    Clause { name: "merging-with-nothing-changes-nothing", check: merging_with_nothing },
];

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Formats that the engine has tensors of.
fn formats(engine: &AnyBackend) -> impl Iterator<Item = Dtype> {
    Dtype::ALL.into_iter().filter(|&dtype| {
        let tensor = engine.allocate(dtype, &[1]);
        !matches!(tensor, Err(EngineError::Unsupported(Unsupported::Dtype { .. })))
    })
}

/// Every kind of number survives the way in and out, rows of no element included [S-1.5].
fn tensors_keep_their_bits(engine: &AnyBackend) -> Result<(), String> {
    for dtype in formats(engine) {
        let (tiny, max) = (dtype.min_subnormal(), dtype.max());
        let odd = [0.0, -0.0, 1.0, -tiny, tiny, dtype.min_normal(), max, -max];
        let odd = odd.into_iter().chain([f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 0.1]);
        let values: Vec<f64> = odd.map(|x| dtype.round(x)).collect();
        for shape in [&[values.len()][..], &[2, 3, 2], &[0], &[3, 0, 5]] {
            let elements: usize = shape.iter().product();
            let host = HostTensor::from_f64(dtype, shape, &values[..elements]).map_err(said)?;
            let tensor = uploaded(engine, &host).map_err(said)?;
            let back = engine.download(&tensor).map_err(said)?;
            let (there, here) = (back.to_f64(), host.to_f64());
            let bits = |values: &[f64]| -> Vec<u64> {
                values.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect()
            };
            if bits(&there) != bits(&here) || back.shape() != shape || back.dtype() != dtype {
                return Err(format!("{dtype} {shape:?}: {here:?} came back as {there:?}"));
            }
        }
    }
    Ok(())
}

fn tensors_begin_as_zeros(engine: &AnyBackend) -> Result<(), String> {
    for dtype in formats(engine) {
        let tensor = engine.allocate(dtype, &[3, 5]).map_err(said)?;
        let values = engine.download(&tensor).map_err(said)?.to_f64();
        if values != [0.0; 15] {
            return Err(format!("{dtype}: {values:?}"));
        }
    }
    Ok(())
}

/// Sizes that no memory has are an error, and the engine lives on.
fn too_large_is_out_of_memory(engine: &AnyBackend) -> Result<(), String> {
    for shape in [&[1_usize << 61][..], &[1 << 40, 1 << 40], &[usize::MAX, 2]] {
        match engine.allocate(Dtype::F32, shape) {
            Err(EngineError::OutOfMemory { .. }) => {}
            other => return Err(format!("{shape:?}: {:?}", other.map(|_| "a tensor"))),
        }
    }
    tensors_begin_as_zeros(engine)
}

/// What nothing here defines is unsupported, in `supports` and in `plan` alike [S-3.22].
fn extensions_are_refused(engine: &AnyBackend) -> Result<(), String> {
    let geometry = Geometry::gqa(4, 2, 64).map_err(said)?;
    let window = Extension::SlidingWindow { window: 4 };
    for extension in [window, Extension::SoftCap { cap: 30.0 }, Extension::Sinks] {
        let problem = Problem::new(geometry, Dtype::F32, 0.125).map_err(said)?.extended(extension);
        let step = Step::new(16, &[], grouped_attention::Mask::Causal).map_err(said)?;
        let supports = engine.supports(&problem);
        let plan = engine.plan(Planning::new(&problem, &step)).map(|_| ());
        let refused = matches!(plan, Err(EngineError::Unsupported(_)));
        if supports.is_ok() || !refused {
            return Err(format!("{extension:?}: supports {supports:?}, plan {plan:?}"));
        }
    }
    Ok(())
}

/// A tensor that no engine made.
#[derive(Debug)]
struct Stranger;

impl TensorInfo for Stranger {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &[1]
    }
}

/// A handle of another engine is an error, never a panic.
fn foreign_handles_are_refused(engine: &AnyBackend) -> Result<(), String> {
    match engine.download(&AnyTensor::new(Stranger)) {
        Err(EngineError::Foreign { .. }) => Ok(()),
        other => Err(format!("{:?}", other.map(|_| "downloaded"))),
    }
}

/// Rows with an empty part keep the other's bits; far-apart parts do not overflow [S-3.16].
fn merging_with_nothing(engine: &AnyBackend) -> Result<(), String> {
    const NOTHING: f64 = f64::NEG_INFINITY;
    // (lse, other lse) of rows over o = 1.5 and 0.25.
    let pairs = [(0.3, NOTHING), (NOTHING, -7.0), (NOTHING, NOTHING), (1e30, -1e30), (-3e38, 3e38)];
    for dtype in formats(engine) {
        let rows = pairs.len();
        let of = |lse: f64, o: f64| if lse == NOTHING { 0.0 } else { o };
        let o: Vec<f64> = pairs.iter().map(|pair| of(pair.0, 1.5)).collect();
        let other_o: Vec<f64> = pairs.iter().map(|pair| of(pair.1, 0.25)).collect();
        let round = |x: f64| Dtype::F32.round(x);
        let lse: Vec<f64> = pairs.iter().map(|pair| round(pair.0)).collect();
        let other_lse: Vec<f64> = pairs.iter().map(|pair| round(pair.1)).collect();
        let upload = |dtype, shape: &[usize], values: &[f64]| {
            let host = HostTensor::from_f64(dtype, shape, values).map_err(said)?;
            uploaded(engine, &host).map_err(said)
        };
        let mut merged_o = upload(dtype, &[rows, 1, 1], &o)?;
        let mut merged_lse = upload(Dtype::F32, &[rows, 1], &lse)?;
        let theirs =
            (upload(dtype, &[rows, 1, 1], &other_o)?, upload(Dtype::F32, &[rows, 1], &other_lse)?);
        let call = Merge::new(&mut merged_o, &mut merged_lse, &theirs.0, &theirs.1);
        engine.merge(call.map_err(said)?).map_err(said)?;
        let got_o = engine.download(&merged_o).map_err(said)?.to_f64();
        let got_lse = engine.download(&merged_lse).map_err(said)?.to_f64();
        for row in 0..rows {
            let (mut o, mut lse) = ([o[row]], lse[row]);
            merge_row(&mut o, &mut lse, &[other_o[row]], other_lse[row]);
            if got_o[row] != o[0] || got_lse[row] != lse {
                let got = (got_o[row], got_lse[row]);
                return Err(format!("{dtype} {:?}: {got:?}, not {:?}", pairs[row], (o[0], lse)));
            }
        }
    }
    Ok(())
}
