//! Lanes: one horizontal line per variant, one dot per degree, on a logarithmic axis.

use crate::roofline::axis::Axis;
use crate::roofline::canvas::{Canvas, DrawError, Side};
use crate::roofline::ink;
use crate::roofline::shape::Shape;

/// Pixels from one lane to the next.
pub(crate) const LANE: i32 = 46;

/// Dots closer than this share one label.
const APART: i32 = 16;

/// What each variant has at each degree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) degrees: &'a [usize],
    /// `[variants][degrees]`
    pub(crate) values: &'a [Vec<f64>],
    /// Whether values stand below their dots.
    pub(crate) labelled: bool,
}

#[derive(Clone, Copy, Debug)]
struct Dot {
    x: i32,
    degree: usize,
    value: f64,
}

impl Lanes<'_> {
    /// Pixels that all lanes take.
    pub(crate) fn height(&self) -> i32 {
        LANE * self.values.len() as i32
    }

    /// Draws every lane, the first with its middle half a lane below `top`.
    pub(crate) fn draw(&self, canvas: &Canvas<'_>, axis: &Axis, top: i32) -> Result<(), DrawError> {
        for (lane, (variant, values)) in self.shape.variants.iter().zip(self.values).enumerate() {
            let y = top + LANE * lane as i32 + LANE / 2;
            let colour = ink::of(variant.geometry.variant());
            canvas.faint_line((axis.start, y), (axis.end, y))?;
            canvas.text(variant.name, (axis.start - 10, y), 14, Side::Left)?;
            let mut dots: Vec<Dot> = (self.degrees.iter().zip(values))
                .map(|(&degree, &value)| Dot { x: axis.at(value), degree, value })
                .collect();
            dots.sort_by_key(|dot| dot.x);
            if let [first, .., last] = &dots[..] {
                canvas.bar((first.x, y), (last.x, y), colour)?;
            }
            for dot in &dots {
                canvas.dot((dot.x, y), 5, colour)?;
            }
            for cluster in dots.chunk_by(|a, b| b.x - a.x < APART) {
                self.label(canvas, cluster, y)?;
            }
        }
        Ok(())
    }

    /// Degrees above a cluster of dots, in their order from left to right; the value below.
    fn label(&self, canvas: &Canvas<'_>, cluster: &[Dot], y: i32) -> Result<(), DrawError> {
        let x = (cluster[0].x + cluster[cluster.len() - 1].x) / 2;
        let degrees: Vec<String> = cluster.iter().map(|dot| dot.degree.to_string()).collect();
        canvas.text(&degrees.join(" "), (x, y - 7), 12, Side::Above)?;
        if self.labelled {
            canvas.text(&cluster[0].value.to_string(), (x, y + 8), 11, Side::Below)?;
        }
        Ok(())
    }
}
