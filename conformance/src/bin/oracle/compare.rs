//! `oracle compare`: judges somebody's result.

use crate::arithmetic::Stated;
use crate::attend::{Rounding, read_case};
use crate::exit::{Failure, OUT_OF_BOUND, print};
use crate::files;
use clap::Args;
use grouped_attention::{Arithmetic, Attended, Dtype};
use grouped_attention_conformance::file::{CaseFile, Floats, Format, ResultFile};
use grouped_attention_conformance::tolerance::saw_finite;
use grouped_attention_conformance::{Comparison, Expected, Tolerance, compare};
use std::path::PathBuf;
use std::process::ExitCode;

/// Judges o and lse of a case against the definition, under the arithmetic that their author
/// states. The exit status is 0 where every number is in bound and 1 where one is not.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// The case, a safetensors file.
    case: PathBuf,
    /// What is judged: o, and lse if it is there.
    result: PathBuf,
    #[command(flatten)]
    stated: Stated,
    /// What q and the cache were rounded to before the kernel got them; by default they were taken
    /// as they are in the file.
    #[arg(long, value_enum)]
    dtype: Option<Rounding>,
    /// The inputs are random draws, without ties or repeats: adds the sharper statistical bound.
    #[arg(long)]
    general_position: bool,
}

impl Compare {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let case = read_case(&self.case, self.dtype)?;
        let result = ResultFile::parse(&files::read(&self.result)?, &case)
            .map_err(Failure::file(&self.result))?;
        files::note_ignored(&self.result, result.ignored());
        if result.lse.is_none() {
            eprintln!("note: {}: no lse, so only o is judged", self.result.display());
        }
        let attended = case.attend().map_err(Failure::run(&self.case))?;
        let tolerance = self.tolerance(&case, &result, self.stated.arithmetic());
        let comparison = judge(&case, &result, &attended, &tolerance);
        let unjudged = unjudged(&attended, &tolerance, case.geometry().width_v());
        if unjudged > 0 {
            eprintln!("note: {unjudged} rows are outside the domain of the bounds, and not judged");
        }
        if comparison.numbers == 0 && unjudged > 0 {
            return Err(Failure::NothingJudged);
        }
        report(&comparison)?;
        let status = if comparison.passed() { 0 } else { OUT_OF_BOUND };
        Ok(ExitCode::from(status))
    }

    fn tolerance(&self, case: &CaseFile, result: &ResultFile, arithmetic: Arithmetic) -> Tolerance {
        let [q_max, k_max] = case.largest();
        let wide = |tensor: &Floats| tensor.format == Format::F64;
        Tolerance {
            arithmetic,
            output: result.o.format.dtype().unwrap_or(Dtype::F32),
            f64_results: wide(&result.o) && result.lse.as_ref().is_none_or(wide),
            dtype: case.dtype().unwrap_or(Dtype::F32),
            width_k: case.geometry().width_k(),
            scale: case.scale(),
            q_max,
            k_max,
            general_position: self.general_position,
        }
    }
}

fn judge(
    case: &CaseFile,
    result: &ResultFile,
    attended: &Attended,
    tolerance: &Tolerance,
) -> Comparison {
    let geometry = case.geometry();
    let expected = Expected {
        attended,
        step: case.step(),
        h_q: geometry.h_q(),
        width_v: geometry.width_v(),
        score_slack: &[],
    };
    let lse = result.lse.as_ref().map(|lse| lse.values.as_slice());
    compare(&expected, &result.o.values, lse, tolerance)
}

/// Rows of finite numbers for which the stated arithmetic implies no bound `[S-7.3]`.
fn unjudged(attended: &Attended, tolerance: &Tolerance, width_v: usize) -> usize {
    let rows = attended.rows.iter().enumerate().filter(|(_, stats)| stats.visible > 0);
    let finite = rows.filter(|(row, _)| saw_finite(attended, *row, width_v));
    finite.filter(|(_, stats)| !tolerance.row(stats, 0.0).applies()).count()
}

fn report(comparison: &Comparison) -> Result<(), Failure> {
    let Comparison { rows, rows_without_numbers, numbers, violations, .. } = comparison;
    for worst in comparison.worst.iter().flatten() {
        print(format_args!("worst {worst}\n"))?;
    }
    print(format_args!("{rows} rows compared by number, {rows_without_numbers} not\n"))?;
    print(format_args!("{violations} of {numbers} numbers out of bound\n"))
}
