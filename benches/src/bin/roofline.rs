//! Prints and draws what attention variants cost against tensor-parallel degree and a device.

use clap::Parser;
use grouped_attention_benches::results::Results;
use grouped_attention_benches::roofline::device::{NamedDevice, UnknownDevice};
use grouped_attention_benches::roofline::measured::Measured;
use grouped_attention_benches::roofline::shape::Shape;
use grouped_attention_benches::roofline::{figure, table, this};
use std::error::Error;
use std::fmt::Display;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

/// Arithmetic intensity and cache bytes per token of every variant, per tensor-parallel device.
#[derive(Debug, Parser)]
struct Options {
    /// h100, h200, a100, this (measured now), or NAME:BYTES_PER_S:FLOP_PER_S
    #[arg(long, default_value = "h100")]
    device: Choice,
    /// Tensor-parallel degrees
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    tp: Vec<usize>,
    /// New tokens of a sequence in one step
    #[arg(long, default_value = "1")]
    q_len: NonZeroUsize,
    /// Write the figures into this folder
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Print and draw what `decode --json` measured, under the roof of the same run
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device", "tp", "q_len"])]
    bench: Option<PathBuf>,
}

/// The device as it is asked for.
#[derive(Clone, Debug)]
enum Choice {
    This,
    Named(NamedDevice),
}

impl FromStr for Choice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Choice, UnknownDevice> {
        if text == "this" { Ok(Choice::This) } else { text.parse().map(Choice::Named) }
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("roofline: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    if let Some(path) = &options.bench {
        let measured = Measured::new(&Results::read(path)?)?;
        writeln!(std::io::stdout(), "{}", measured.markdown().trim_end())?;
        let figures = [("speed", measured.speed()?), ("roofline-measured", measured.roofline()?)];
        return write(options, figures);
    }
    let device = match &options.device {
        Choice::This => this::measured()?,
        Choice::Named(device) => device.clone(),
    };
    writeln!(std::io::stdout(), "{device}; ridge {:.1} FLOP/byte", device.device.ridge())?;
    for shape in [Shape::llama()?, Shape::deepseek()?] {
        let (degrees, q_len) = (&options.tp, options.q_len.get());
        let text = table::markdown(&shape, &device, degrees, q_len)?;
        writeln!(std::io::stdout(), "\n{}", text.trim_end())?;
        let bytes = figure::bytes(&shape, degrees)?;
        let roofline = figure::roofline(&shape, &device, degrees, q_len)?;
        let key = shape.key;
        write(options, [(format!("bytes-{key}"), bytes), (format!("roofline-{key}"), roofline)])?;
    }
    Ok(())
}

/// Writes figures by name, if a folder is asked for.
fn write<N: Display>(options: &Options, figures: [(N, String); 2]) -> Result<(), Box<dyn Error>> {
    let Some(folder) = &options.svg else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for (name, svg) in figures {
        let path = folder.join(format!("{name}.svg"));
        std::fs::write(&path, svg).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
