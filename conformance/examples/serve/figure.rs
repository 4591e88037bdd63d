//! Latency against load, drawn.

use crate::Failure;
use crate::report::Run;
use grouped_attention::layers::LayerKind;
use grouped_attention_conformance::serve::{Percentiles, Preemption, Summary};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::TextStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Lines and text: reads on white and on black.
const INK: RGBColor = RGBColor(0x80, 0x86, 0x8b);

/// Points of one curve: requests per second and a time.
type Curve = Vec<(f64, f64)>;

/// Height of a row of panels, and of the legend below each.
const PANEL: u32 = 300;
const LEGEND: u32 = 46;

/// A row for each pair of variants that the paper sets against each other: the time to the first
/// byte, and the time between bytes.
pub(crate) fn latency(runs: &[Run]) -> Result<String, Failure> {
    let pairs = [[LayerKind::Gqa, LayerKind::Gta], [LayerKind::Mla, LayerKind::Gla]];
    let of = |pair: [LayerKind; 2]| -> Vec<&Run> {
        runs.iter().filter(|run| pair.contains(&run.variant)).collect()
    };
    let rows: Vec<Vec<&Run>> = pairs.map(of).into_iter().filter(|row| !row.is_empty()).collect();
    let mut svg = String::new();
    {
        let size = (880, rows.len() as u32 * (PANEL + LEGEND));
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        for (area, runs) in area.split_evenly((rows.len(), 1)).iter().zip(&rows) {
            let (panels, legend) = area.split_vertically(PANEL);
            let panels = panels.split_evenly((1, 2));
            panel(&panels[0], "time to first byte, s", runs, 1.0, |summary| summary.ttft)?;
            panel(&panels[1], "time between bytes, ms", runs, 1e3, |summary| summary.itl)?;
            draw_legend(&legend, runs)?;
        }
        area.present()?;
    }
    Ok(svg)
}

fn panel(
    area: &Area<'_>,
    title: &str,
    runs: &[&Run],
    unit: f64,
    value: fn(&Summary) -> Option<Percentiles>,
) -> Result<(), Failure> {
    let times = || runs.iter().filter_map(|run| value(&run.summary));
    let low = times().map(|of| of.p50 * unit).fold(f64::INFINITY, f64::min);
    let high = times().map(|of| of.p99 * unit).fold(0.0, f64::max);
    if !(low > 0.0 && high.is_finite()) {
        return Err("no run has a latency to draw".into());
    }
    let busiest = runs.iter().filter_map(|run| run.rate).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .caption(title, text(19))
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..busiest * 1.08, decades(low, high).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("requests per second")
        // A label a decade: more would collide.
        .y_labels(4)
        .axis_style(INK)
        .axis_desc_style(text(16))
        .label_style(text(15))
        .bold_line_style(INK.mix(0.3))
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|value| format!("{}", (value * 1e3).round() / 1e3))
        .y_label_formatter(&|value| significant(*value))
        .draw()?;
    for (variant, preemption) in curves(runs) {
        let style = colour(variant).mix(if preemption == Preemption::Swap { 0.5 } else { 1.0 });
        let curve = |pick: fn(Percentiles) -> f64| -> Curve {
            let of = |run: &&&Run| (run.variant, run.preemption) == (variant, preemption);
            let mut points: Curve = runs
                .iter()
                .filter(of)
                .filter_map(|run| Some((run.rate?, pick(value(&run.summary)?) * unit)))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        let (median, tail) = (curve(|of| of.p50), curve(|of| of.p99));
        chart.draw_series([PathElement::new(median.clone(), style.stroke_width(2))])?;
        chart.draw_series(median.iter().map(|&at| Circle::new(at, 3, style.filled())))?;
        chart.draw_series([PathElement::new(tail.clone(), style.stroke_width(1))])?;
        chart.draw_series(tail.iter().map(|&at| Circle::new(at, 4, style.stroke_width(1))))?;
    }
    Ok(())
}

/// One entry per curve, then what the strokes mean.
fn draw_legend(area: &Area<'_>, runs: &[&Run]) -> Result<(), Failure> {
    let mut x = 66;
    for (variant, preemption) in curves(runs) {
        let style = colour(variant).mix(if preemption == Preemption::Swap { 0.5 } else { 1.0 });
        area.draw(&PathElement::new([(x, 16), (x + 22, 16)], style.stroke_width(2)))?;
        area.draw(&Circle::new((x + 11, 16), 3, style.filled()))?;
        let name = variant.name().to_uppercase();
        let name = if preemption == Preemption::Swap { format!("{name} swapping") } else { name };
        area.draw(&Text::new(name.clone(), (x + 28, 16), left(16)))?;
        x += 46 + 10 * name.len() as i32;
    }
    area.draw(&Text::new("filled: median", (x + 16, 16), left(16)))?;
    area.draw(&Text::new("hollow: 99th percentile", (x + 136, 16), left(16)))?;
    Ok(())
}

/// Each variant and policy once, in the order of the runs.
fn curves(runs: &[&Run]) -> Vec<(LayerKind, Preemption)> {
    let mut curves = Vec::new();
    for run in runs {
        let curve = (run.variant, run.preemption);
        if !curves.contains(&curve) {
            curves.push(curve);
        }
    }
    curves
}

fn colour(variant: LayerKind) -> RGBColor {
    match variant {
        LayerKind::Gqa => RGBColor(0xc9, 0x74, 0x12),
        LayerKind::Gta => RGBColor(0x1a, 0x93, 0x6f),
        LayerKind::Mla => RGBColor(0x6f, 0x72, 0xd6),
        LayerKind::Gla => RGBColor(0xd2, 0x4b, 0x86),
    }
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn left(size: u32) -> TextStyle<'static> {
    text(size).pos(Pos::new(HPos::Left, VPos::Center))
}

/// Whole powers of ten around both, with room for the label of the lower.
fn decades(low: f64, high: f64) -> Range<f64> {
    0.999 * 10f64.powf(low.log10().floor())..10f64.powf(high.log10().ceil())
}

/// As many digits as tell neighbouring ticks apart.
fn significant(value: f64) -> String {
    let digits = (1 - value.log10().floor() as i32).clamp(0, 6) as usize;
    format!("{value:.digits$}")
}
