//! What `decode` measured, as figures and as a table.

use crate::results::{Results, Row};
use crate::roofline::axis::Axis;
use crate::roofline::canvas::{self, Canvas, DrawError, Side};
use crate::roofline::device::{NamedDevice, in_units};
use crate::roofline::figure::{LEFT, RIGHT, ROOF, TITLE, TOP, grid, rates, roof, size};
use crate::roofline::ink;
use grouped_attention::Variant;
use grouped_attention::cost::Device;
use plotters::style::RGBColor;
use std::fmt::Write;

/// Most query tokens of a sequence that are set side by side.
const MOST_QUERIES: usize = 2;

/// Rows that differ in geometry and query tokens alone, and the device that they ran on.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    device: NamedDevice,
    engine: String,
    commit: Option<String>,
    batch: usize,
    tokens: usize,
    lanes: Vec<Lane>,
}

/// One geometry.
#[derive(Clone, Debug, PartialEq)]
struct Lane {
    name: String,
    variant: Variant,
    /// In the order of their query tokens.
    rows: Vec<Row>,
}

/// Results that cannot be drawn.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NothingToDraw {
    /// A rate is missing, or is none that a device has.
    #[error("the results have no usable read and matrix rate, and so no roof")]
    Roof,
    /// Every row is replayed, batch-invariant, of odd pages or of many queries.
    #[error("no row of the results is of pages of 64 with at most {MOST_QUERIES} queries")]
    Rows,
    /// A geometry that starts with no variant's name.
    #[error("{geometry:?} is no geometry")]
    Geometry {
        /// As the results have it.
        geometry: String,
    },
}

impl Measured {
    /// Of the rows in pages of 64, not replayed and not batch-invariant, those of the batch and
    /// length that most have.
    ///
    /// # Errors
    /// No such row; no rates to draw a roof from.
    pub fn new(results: &Results) -> Result<Measured, NothingToDraw> {
        let ceilings = &results.ceilings;
        let read = [ceilings.read, ceilings.read_prefetched].into_iter().flatten();
        let read = read.reduce(f64::max).ok_or(NothingToDraw::Roof)?;
        let matrix = ceilings.matrix.ok_or(NothingToDraw::Roof)?;
        let device = Device::new(read, matrix).map_err(|_| NothingToDraw::Roof)?;
        let plain = |row: &&Row| {
            let shown = row.page_size == 64 && (1..=MOST_QUERIES).contains(&row.q_len);
            shown && !row.graph && !row.batch_invariant
        };
        let rows: Vec<&Row> = results.rows.iter().filter(plain).collect();
        let of = |size: (usize, usize)| {
            rows.iter().filter(|row| (row.batch, row.tokens) == size).collect::<Vec<_>>()
        };
        let sizes = rows.iter().map(|row| (row.batch, row.tokens));
        let (batch, tokens) =
            sizes.max_by_key(|&size| (of(size).len(), size)).ok_or(NothingToDraw::Rows)?;
        let mut lanes: Vec<Lane> = Vec::new();
        for row in of((batch, tokens)) {
            let name = row.name.split(", B ").next().unwrap_or(&row.name);
            match lanes.iter_mut().find(|lane| lane.name == name) {
                Some(lane) => lane.rows.push((*row).clone()),
                None => lanes.push(Lane {
                    name: name.to_owned(),
                    variant: variant(&row.geometry)?,
                    rows: vec![(*row).clone()],
                }),
            }
        }
        for lane in &mut lanes {
            lane.rows.sort_by_key(|row| row.q_len);
        }
        let device = NamedDevice { name: results.device.clone(), device };
        let (engine, commit) = (results.engine.clone(), results.commit.clone());
        Ok(Measured { device, engine, commit, batch, tokens, lanes })
    }

    /// The rates that the run measured.
    pub fn device(&self) -> &NamedDevice {
        &self.device
    }

    fn batch(&self) -> String {
        let len = self.tokens / self.batch.max(1);
        format!("{} sequences of {len} cached tokens, bf16", self.batch)
    }

    /// One row a geometry and query count.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}; {}", self.engine, self.batch());
        if let Some(commit) = &self.commit {
            let _ = write!(text, "; commit {commit}");
        }
        let (read, matrix) = (self.device.bandwidth(), self.device.flops());
        let _ = write!(
            text,
            ".\nIn the same run the machine read {read} and multiplied at {matrix}.\n\n\
             | layer | bytes a token | queries | time | spread | reads | computes | of the floor |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|\n"
        );
        for (lane, row) in self.rows() {
            let of_floor =
                row.of_floor.map_or("–".into(), |share| format!("{:.0} %", 100.0 * share));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {:.0} % | {} | {} | {of_floor} |",
                lane.name,
                row.token_bytes,
                row.q_len,
                duration(row.median),
                100.0 * row.spread,
                in_units(row.bytes_per_s, "B/s"),
                in_units(row.flops_per_s, "FLOP/s"),
            );
        }
        text
    }

    fn rows(&self) -> impl Iterator<Item = (&Lane, &Row)> {
        self.lanes.iter().flat_map(|lane| lane.rows.iter().map(move |row| (lane, row)))
    }

    /// Every row as a point under the roof.
    ///
    /// # Errors
    /// A stroke that the drawing library refused.
    pub fn roofline(&self) -> Result<String, DrawError> {
        let ridge = self.device.device.ridge();
        let intensities = || self.rows().map(|(_, row)| row.intensity);
        let from = intensities().fold(ridge, f64::min) / 1.6;
        let to = intensities().fold(ridge, f64::max) * 2.6;
        let axis = Axis { from, to, start: LEFT, end: RIGHT };
        let reached: Vec<f64> = self.rows().map(|(_, row)| row.flops_per_s).collect();
        let top = TOP + ROOF + 14;
        let bottom = top + LANE * self.lanes.len() as i32;
        canvas::draw(size(bottom), |canvas| {
            self.titles(canvas, "Measured under the roof of the same run")?;
            let ticks = axis.ticks(10.0, &[1.0, 2.0, 5.0]);
            let title = "FLOPs per byte of cache read; the number under a dot is of query tokens";
            grid(canvas, &axis, &ticks, (TOP, bottom), title)?;
            roof(canvas, &self.device, &axis, bottom, &reached)?;
            let rates = rates(&self.device, &axis, &reached);
            for (index, lane) in self.lanes.iter().enumerate() {
                let (y, colour) = (top + LANE * index as i32 + LANE / 2, ink::of(lane.variant));
                canvas.faint_line((axis.start, y), (axis.end, y))?;
                canvas.text(&lane.name, (axis.start + 6, y - 12), 12, Side::Right)?;
                for row in &lane.rows {
                    let x = axis.at(row.intensity);
                    canvas.dot((x, rates.at(row.flops_per_s)), 5, colour)?;
                    canvas.dot((x, y), 5, colour)?;
                    canvas.text(&row.q_len.to_string(), (x, y + 7), 11, Side::Below)?;
                }
            }
            Ok(())
        })
    }

    fn titles(&self, canvas: &Canvas<'_>, title: &str) -> Result<(), DrawError> {
        canvas.text(title, (16, TITLE), 16, Side::Right)?;
        let run = format!("{}, {}", self.device.name, self.batch());
        canvas.text(&run, (16, TITLE + 19), 12, Side::Right)
    }

    /// Bytes of a cached token and time of a step, side by side, a lane for each geometry.
    ///
    /// # Errors
    /// A stroke that the drawing library refused.
    pub fn speed(&self) -> Result<String, DrawError> {
        let bottom = HEADS + LANE * self.lanes.len() as i32;
        let bytes = |row: &Row| row.token_bytes as f64;
        let most = |value: &dyn Fn(&Row) -> f64| {
            self.rows().map(|(_, row)| value(row)).fold(0.0, f64::max)
        };
        let (most_bytes, slowest) = (most(&bytes), most(&|row| row.median));
        canvas::draw((WIDTH, (bottom + 44).unsigned_abs()), |canvas| {
            self.titles(canvas, "What decoding reads, and how long it takes")?;
            canvas.text("cache bytes a token and layer", (BYTES.0, HEADS - 10), 13, Side::Right)?;
            canvas.text("time of a step", (TIME.0, HEADS - 10), 13, Side::Right)?;
            for (index, lane) in self.lanes.iter().enumerate() {
                let (y, colour) = (HEADS + LANE * index as i32 + LANE / 2, ink::of(lane.variant));
                canvas.text(&lane.name, (BYTES.0 - 10, y), 13, Side::Left)?;
                let Some(first) = lane.rows.first() else { continue };
                let share = bytes(first) / most_bytes;
                bar(canvas, BYTES, (y - 9, y + 9), share, colour, &first.token_bytes.to_string())?;
                for row in &lane.rows {
                    let y = y + if lane.rows.len() == 1 { -5 } else { 13 * row.q_len as i32 - 25 };
                    let share = row.median / slowest;
                    bar(canvas, TIME, (y, y + 10), share, colour, &label(row))?;
                    if let Some(floor) = row.floor {
                        let x = end(TIME, floor / slowest);
                        canvas.line(vec![(x, y - 1), (x, y + 11)], 2)?;
                    }
                }
            }
            let key = "Time for 1 and 2 query tokens of a sequence. Strokes: no engine can be faster, \
                       by what the machine read and multiplied in the same run.";
            canvas.text(key, (16, bottom + 18), 12, Side::Right)
        })
    }
}

/// Size of the speed figure, and where its two columns of bars lie.
const WIDTH: u32 = 860;
const HEADS: i32 = 84;
const LANE: i32 = 38;
const BYTES: (i32, i32) = (220, 400);
const TIME: (i32, i32) = (470, 690);

fn end((start, end): (i32, i32), share: f64) -> i32 {
    start + (share * f64::from(end - start)).round() as i32
}

fn bar(
    canvas: &Canvas<'_>,
    column: (i32, i32),
    (top, bottom): (i32, i32),
    share: f64,
    colour: RGBColor,
    label: &str,
) -> Result<(), DrawError> {
    let x = end(column, share);
    canvas.block((column.0, top), (x, bottom), colour, 0.8)?;
    canvas.text(label, (x + 6, i32::midpoint(top, bottom)), 12, Side::Right)
}

fn label(row: &Row) -> String {
    let share = row.of_floor.map_or(String::new(), |share| format!(", {:.0} %", 100.0 * share));
    format!("{}{share} of the floor", duration(row.median))
        .replace(" % of the floor", " % of floor")
}

/// Three digits, in microseconds or milliseconds.
fn duration(seconds: f64) -> String {
    match seconds {
        _ if seconds < 1e-4 => format!("{:.1} µs", seconds * 1e6),
        _ if seconds < 1e-3 => format!("{:.0} µs", seconds * 1e6),
        _ if seconds < 1e-2 => format!("{:.2} ms", seconds * 1e3),
        _ if seconds < 1e-1 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{:.0} ms", seconds * 1e3),
    }
}

fn variant(geometry: &str) -> Result<Variant, NothingToDraw> {
    let name = geometry.split(' ').next().unwrap_or_default();
    name.parse().map_err(|_| NothingToDraw::Geometry { geometry: geometry.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Ceilings;

    fn row(name: &str, geometry: &str, q_len: usize, batch: usize) -> Row {
        Row {
            name: format!("{name}, B {batch}, L 8192, q_len {q_len}"),
            geometry: geometry.into(),
            dtype: "bf16".into(),
            batch,
            tokens: batch * 8192,
            q_len,
            page_size: 64,
            batch_invariant: false,
            graph: false,
            kernel: "k".into(),
            medians: vec![0.0004],
            median: 0.0004,
            spread: 0.01,
            token_bytes: 1152,
            bytes: 1.2e9,
            flops: 3e11,
            bytes_per_s: 3e12,
            flops_per_s: 7.5e14,
            intensity: 242.0,
            ceilings: Ceilings::default(),
            floor: Some(0.00039),
            of_floor: Some(0.975),
        }
    }

    fn results() -> Results {
        let mla = "mla h_q=128 h=1 s=512 n=512 r=64";
        let gla = "gla h_q=128 h=2 s=256 n=256 r=64";
        let paged = Row { page_size: 1, ..row("GLA-2", gla, 1, 128) };
        Results {
            engine: "cuda (sm_90a) on a device".into(),
            device: "a device".into(),
            commit: Some("0123".into()),
            command: "decode".into(),
            ceilings: Ceilings { read: Some(3e12), matrix: Some(7e14), ..Ceilings::default() },
            rows: vec![
                row("GLA-2", gla, 2, 128),
                row("GLA-2", gla, 1, 128),
                row("GLA-2", gla, 4, 128),
                row("GLA-2", gla, 1, 16),
                row("MLA", mla, 1, 128),
                paged,
            ],
        }
    }

    #[test]
    fn rows_of_the_usual_batch_are_set_side_by_side() {
        let measured = Measured::new(&results()).unwrap();
        assert_eq!((measured.batch, measured.tokens), (128, 128 * 8192));
        let shape: Vec<(&str, Vec<usize>)> = (measured.lanes.iter())
            .map(|lane| (&*lane.name, lane.rows.iter().map(|row| row.q_len).collect()))
            .collect();
        assert_eq!(shape, [("GLA-2", vec![1, 2]), ("MLA", vec![1])]);
        let text = measured.markdown();
        assert!(
            text.contains("| MLA | 1152 | 1 | 400 µs | 1 % | 3 TB/s | 750 TFLOP/s | 98 % |"),
            "{text}"
        );
        assert!(text.contains("commit 0123"));
    }

    #[test]
    fn figures_take_the_colour_of_the_page() {
        let measured = Measured::new(&results()).unwrap();
        for svg in [measured.roofline().unwrap(), measured.speed().unwrap()] {
            assert!(svg.contains("currentColor") && !svg.contains("#010203"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn without_rates_or_rows_there_is_no_figure() {
        let blind = Results { ceilings: Ceilings::default(), ..results() };
        assert_eq!(Measured::new(&blind), Err(NothingToDraw::Roof));
        let empty = Results { rows: Vec::new(), ..results() };
        assert_eq!(Measured::new(&empty), Err(NothingToDraw::Rows));
    }
}
