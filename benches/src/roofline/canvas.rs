//! The strokes that figures are made of, on an SVG of a given size.

use crate::roofline::ink::{self, INK};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A drawing in pixels, x to the right and y down.
pub(crate) struct Canvas<'a>(DrawingArea<SVGBackend<'a>, Shift>);

/// A stroke that the drawing library refused.
#[derive(Debug, thiserror::Error)]
#[error("the figure could not be drawn: {0}")]
pub struct DrawError(String);

/// On which side of its anchor a text stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    /// Centred over it.
    Above,
    /// Centred under it.
    Below,
    /// Ending at it.
    Left,
    /// Beginning at it.
    Right,
}

/// Pixels.
type Point = (i32, i32);

/// An SVG of `size`, drawn by `strokes` on a transparent ground.
pub(crate) fn draw(
    size: (u32, u32),
    strokes: impl FnOnce(&Canvas<'_>) -> Result<(), DrawError>,
) -> Result<String, DrawError> {
    let mut svg = String::new();
    let canvas = Canvas(SVGBackend::with_string(&mut svg, size).into_drawing_area());
    strokes(&canvas)?;
    canvas.0.present().map_err(|error| DrawError(error.to_string()))?;
    drop(canvas);
    Ok(ink::themed(&svg))
}

impl Canvas<'_> {
    /// An axis or a roof.
    pub(crate) fn line(&self, points: Vec<Point>, width: u32) -> Result<(), DrawError> {
        self.put(&PathElement::new(points, INK.stroke_width(width)))
    }

    /// A grid line.
    pub(crate) fn faint_line(&self, from: Point, to: Point) -> Result<(), DrawError> {
        self.put(&PathElement::new(vec![from, to], INK.mix(0.15)))
    }

    /// A line of dashes, straight down.
    pub(crate) fn dashes(&self, x: i32, (top, bottom): (i32, i32)) -> Result<(), DrawError> {
        (top..bottom).step_by(9).try_for_each(|y| {
            let end = (y + 5).min(bottom);
            self.put(&PathElement::new(vec![(x, y), (x, end)], INK.mix(0.5)))
        })
    }

    /// From one end of a lane's data to the other.
    pub(crate) fn bar(&self, from: Point, to: Point, colour: RGBColor) -> Result<(), DrawError> {
        self.put(&PathElement::new(vec![from, to], colour.stroke_width(3)))
    }

    /// A filled rectangle between two corners.
    pub(crate) fn block(
        &self,
        from: Point,
        to: Point,
        colour: RGBColor,
        opacity: f64,
    ) -> Result<(), DrawError> {
        self.put(&Rectangle::new([from, to], colour.mix(opacity).filled()))
    }

    /// A filled circle.
    pub(crate) fn dot(&self, at: Point, radius: i32, colour: RGBColor) -> Result<(), DrawError> {
        self.put(&Circle::new(at, radius, colour.filled()))
    }

    /// Text beside an anchor.
    pub(crate) fn text(
        &self,
        text: &str,
        at: Point,
        size: i32,
        side: Side,
    ) -> Result<(), DrawError> {
        let (h, v) = match side {
            Side::Above => (HPos::Center, VPos::Bottom),
            Side::Below => (HPos::Center, VPos::Top),
            Side::Left => (HPos::Right, VPos::Center),
            Side::Right => (HPos::Left, VPos::Center),
        };
        // The library takes a size for the height of a line and writes the font's as 1 / 1.24 of it.
        let line = f64::from(size) * 1.24;
        let style = ("sans-serif", line).into_font().color(&INK).pos(Pos::new(h, v));
        self.put(&Text::new(text.to_owned(), at, style))
    }

    fn put<'e, E>(&self, element: &'e E) -> Result<(), DrawError>
    where
        &'e E: plotters::element::PointCollection<'e, Point>,
        for<'b> E: plotters::element::Drawable<SVGBackend<'b>>,
    {
        self.0.draw(element).map_err(|error| DrawError(error.to_string()))
    }
}
