//! Colours that read on white and on black.
//!
//! Lines and text take the page's own colour: they are drawn in a stand-in that becomes
//! `currentColor`. A figure that stands alone, as the image of a page, has no page to ask; its style
//! then follows the reader's colour scheme. Data colours are mid-tones with a contrast of at least
//! 3 to either.

use grouped_attention::Variant;
use plotters::style::RGBColor;

/// Stands for the page's text colour; a value that no data colour has.
pub(crate) const INK: RGBColor = RGBColor(1, 2, 3);

/// One colour per variant, whatever its head count.
pub(crate) fn of(variant: Variant) -> RGBColor {
    match variant {
        Variant::Mha => RGBColor(0x80, 0x80, 0x80),
        Variant::Gqa => RGBColor(0xc9, 0x74, 0x12),
        Variant::Mqa => RGBColor(0x9a, 0x7b, 0x3c),
        Variant::Gta => RGBColor(0x1a, 0x93, 0x6f),
        Variant::Mla => RGBColor(0x6f, 0x72, 0xd6),
        Variant::Gla => RGBColor(0xd2, 0x4b, 0x86),
    }
}

/// Puts the page's colour in place of the stand-in.
pub(crate) fn themed(svg: &str) -> String {
    const STYLE: &str = "<style>.figure{color:#24292f}\
        @media(prefers-color-scheme:dark){.figure{color:#d0d7de}}</style>";
    let svg = svg.replace("#010203", "currentColor").replacen("<svg ", "<svg class=\"figure\" ", 1);
    match svg.find('>') {
        Some(end) => format!("{}\n{STYLE}{}\n", &svg[..=end], svg[end + 1..].trim_end()),
        None => svg,
    }
}
