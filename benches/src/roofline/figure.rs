//! The figures, as SVG text.

use crate::roofline::axis::Axis;
use crate::roofline::canvas::{self, Canvas, DrawError, Side};
use crate::roofline::device::{NamedDevice, in_units};
use crate::roofline::ink;
use crate::roofline::lanes::Lanes;
use crate::roofline::shape::{Shape, Unsplittable};
use grouped_attention::{Dtype, Sharding, cost};

pub(crate) const WIDTH: i32 = 760;
pub(crate) const LEFT: i32 = 84;
pub(crate) const RIGHT: i32 = WIDTH - 28;
pub(crate) const TITLE: i32 = 20;
pub(crate) const TOP: i32 = 58;
/// Height of the roofline above the lanes.
pub(crate) const ROOF: i32 = 250;
/// Below the lanes: tick labels and the axis title.
pub(crate) const BOTTOM: i32 = 56;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum FigureError {
    /// A degree that does not split every variant.
    #[error(transparent)]
    Degree(#[from] Unsplittable),
    /// A stroke that the drawing library refused.
    #[error(transparent)]
    Draw(#[from] DrawError),
}

/// Cache bytes per token, layer and device against tensor parallelism.
///
/// # Errors
/// A degree that does not split every variant.
pub fn bytes(shape: &Shape, degrees: &[usize]) -> Result<String, FigureError> {
    let values = each(shape, degrees, |sharding| sharding.bytes_per_token(Dtype::Bf16) as f64)?;
    let (least, most) = range(&values);
    let lanes = Lanes { shape, degrees, values: &values, labelled: true };
    let axis = Axis { from: least / 1.5, to: most * 1.5, start: LEFT, end: RIGHT };
    let bottom = TOP + lanes.height();
    Ok(canvas::draw(size(bottom), |canvas| {
        let title = format!("{}: cache bytes per token and layer", shape.title);
        titles(canvas, &title, degrees)?;
        grid(
            canvas,
            &axis,
            &axis.ticks(2.0, &[1.0]),
            (TOP, bottom),
            "bytes on each device (bf16)",
        )?;
        lanes.draw(canvas, &axis, TOP)
    })?)
}

/// Arithmetic intensity against tensor parallelism, under the roofline of a device.
///
/// # Errors
/// A degree that does not split every variant.
pub fn roofline(
    shape: &Shape,
    device: &NamedDevice,
    degrees: &[usize],
    q_len: usize,
) -> Result<String, FigureError> {
    let values =
        each(shape, degrees, |shard| cost::intensity(&shard.device(), Dtype::Bf16, q_len))?;
    let (least, most) = range(&values);
    let most = most.max(device.device.ridge());
    let axis = Axis { from: least / 1.6, to: most * 1.8, start: LEFT, end: RIGHT };
    let lanes = Lanes { shape, degrees, values: &values, labelled: false };
    let top = TOP + ROOF + 14;
    let bottom = top + lanes.height();
    Ok(canvas::draw(size(bottom), |canvas| {
        let title = format!("{}, q_len {q_len}, on {}", shape.title, device.name);
        titles(canvas, &title, degrees)?;
        grid(
            canvas,
            &axis,
            &axis.ticks(10.0, &[1.0, 2.0, 5.0]),
            (TOP, bottom),
            "FLOPs per byte of cache read (bf16)",
        )?;
        roof(canvas, device, &axis, bottom, &[])?;
        lanes.draw(canvas, &axis, top)?;
        dots_on_roof(canvas, device, &axis, &lanes)
    })?)
}

/// `[variants][degrees]` of one quantity.
fn each(
    shape: &Shape,
    degrees: &[usize],
    quantity: impl Fn(&Sharding) -> f64,
) -> Result<Vec<Vec<f64>>, Unsplittable> {
    let shardings = shape.over(degrees)?;
    Ok(shardings.iter().map(|row| row.iter().map(&quantity).collect()).collect())
}

fn range(values: &[Vec<f64>]) -> (f64, f64) {
    let all = values.iter().flatten().copied();
    (all.clone().fold(f64::INFINITY, f64::min), all.fold(0.0, f64::max))
}

pub(crate) fn size(bottom: i32) -> (u32, u32) {
    (WIDTH.unsigned_abs(), (bottom + BOTTOM).unsigned_abs())
}

fn titles(canvas: &Canvas<'_>, title: &str, degrees: &[usize]) -> Result<(), DrawError> {
    canvas.text(title, (LEFT, TITLE), 16, Side::Right)?;
    let degrees: Vec<String> = degrees.iter().map(ToString::to_string).collect();
    let key =
        format!("The number over a dot is the tensor-parallel degree: {}.", degrees.join(", "));
    canvas.text(&key, (LEFT, TITLE + 19), 12, Side::Right)
}

/// Vertical lines at the ticks, and the axis below them.
pub(crate) fn grid(
    canvas: &Canvas<'_>,
    axis: &Axis,
    ticks: &[f64],
    (top, bottom): (i32, i32),
    title: &str,
) -> Result<(), DrawError> {
    for &tick in ticks {
        let x = axis.at(tick);
        canvas.faint_line((x, top), (x, bottom))?;
        canvas.text(&tick.to_string(), (x, bottom + 6), 12, Side::Below)?;
    }
    canvas.line(vec![(axis.start, bottom), (axis.end, bottom)], 1)?;
    canvas.text(title, ((axis.start + axis.end) / 2, bottom + 28), 13, Side::Below)
}

/// Attainable FLOP/s, with pixels for the rates that the roof and what was measured need.
pub(crate) fn rates(device: &NamedDevice, axis: &Axis, measured: &[f64]) -> Axis {
    let floor = axis.from * device.device.bandwidth();
    let least = measured.iter().copied().fold(floor, f64::min);
    Axis { from: least / 1.3, to: device.device.flops() * 2.2, start: TOP + ROOF, end: TOP }
}

pub(crate) fn roof(
    canvas: &Canvas<'_>,
    device: &NamedDevice,
    axis: &Axis,
    bottom: i32,
    measured: &[f64],
) -> Result<(), DrawError> {
    let (rates, ridge) = (rates(device, axis, measured), device.device.ridge());
    for tick in rates.ticks(10.0, &[1.0]) {
        let y = rates.at(tick);
        canvas.faint_line((axis.start, y), (axis.end, y))?;
        canvas.text(&in_units(tick, "FLOP/s"), (axis.start - 8, y), 11, Side::Left)?;
    }
    let peak = rates.at(device.device.flops());
    let start = (axis.start, rates.at(axis.from * device.device.bandwidth()));
    let corner = (axis.at(ridge), peak);
    canvas.line(vec![start, corner, (axis.end, peak)], 2)?;
    canvas.dashes(corner.0, (peak, bottom))?;
    let below = (corner.0 - 8, TOP + ROOF - 10);
    canvas.text(&format!("ridge at {ridge:.0}"), below, 12, Side::Left)?;
    let middle = ((start.0 + corner.0) / 2, (start.1 + corner.1) / 2);
    canvas.text(&device.bandwidth(), (middle.0 - 10, middle.1 - 8), 12, Side::Left)?;
    canvas.text(&device.flops(), ((corner.0 + axis.end) / 2, peak - 5), 12, Side::Above)
}

fn dots_on_roof(
    canvas: &Canvas<'_>,
    device: &NamedDevice,
    axis: &Axis,
    lanes: &Lanes<'_>,
) -> Result<(), DrawError> {
    let rates = rates(device, axis, &[]);
    let (bandwidth, peak) = (device.device.bandwidth(), device.device.flops());
    for (variant, values) in lanes.shape.variants.iter().zip(lanes.values) {
        for &intensity in values {
            let at = (axis.at(intensity), rates.at((intensity * bandwidth).min(peak)));
            canvas.dot(at, 4, ink::of(variant.geometry.variant()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_name_every_variant_and_take_the_colour_of_the_page() {
        let (shape, device) = (Shape::deepseek().unwrap(), "h100".parse().unwrap());
        let figures = [
            bytes(&shape, &[1, 2, 4, 8]).unwrap(),
            roofline(&shape, &device, &[1, 2, 4, 8], 1).unwrap(),
        ];
        for svg in &figures {
            for variant in &shape.variants {
                assert!(svg.contains(&format!("\n{}\n", variant.name)), "{svg}");
            }
            assert!(svg.contains("currentColor") && !svg.contains("#010203"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn one_degree_is_a_figure_too() {
        let (shape, device) = (Shape::llama().unwrap(), "box:30e9:6e12".parse().unwrap());
        assert!(bytes(&shape, &[8]).is_ok());
        assert!(roofline(&shape, &device, &[1], 1).is_ok());
    }
}
