//! The numbers as Markdown, so that a page shows what the program prints.

use crate::roofline::device::NamedDevice;
use crate::roofline::shape::{Shape, Unsplittable};
use grouped_attention::{Dtype, Sharding, cost};
use std::fmt::Write;

/// Cache bytes and arithmetic intensity of one shape over degrees of tensor parallelism.
///
/// # Errors
/// A degree that does not split every variant.
pub fn markdown(
    shape: &Shape,
    device: &NamedDevice,
    degrees: &[usize],
    q_len: usize,
) -> Result<String, Unsplittable> {
    let shardings = shape.over(degrees)?;
    let mut text = format!("**{}, bf16.** ", shape.title);
    text.push_str("Cache bytes per token and layer on each device:\n\n");
    let bytes = |sharding: &Sharding| sharding.bytes_per_token(Dtype::Bf16).to_string();
    text.push_str(&rows(shape, degrees, &shardings, bytes));
    let ridge = device.device.ridge();
    let queries = if q_len == 1 { "query" } else { "queries" };
    let _ = write!(
        text,
        "\nFLOPs per byte of cache read, {q_len} {queries} per sequence (bold: bound by compute on \
         {}, ridge {ridge:.0}):\n\n",
        device.name,
    );
    let intensity = |sharding: &Sharding| {
        let intensity = cost::intensity(&sharding.device(), Dtype::Bf16, q_len);
        if intensity > ridge { format!("**{intensity:.1}**") } else { format!("{intensity:.1}") }
    };
    text.push_str(&rows(shape, degrees, &shardings, intensity));
    Ok(text)
}

/// One row per variant, one column per degree.
fn rows(
    shape: &Shape,
    degrees: &[usize],
    shardings: &[Vec<Sharding>],
    cell: impl Fn(&Sharding) -> String,
) -> String {
    let mut text = String::from("| |");
    for degree in degrees {
        let _ = write!(text, " TP {degree} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(degrees.len()));
    text.push('\n');
    for (variant, row) in shape.variants.iter().zip(shardings) {
        let _ = write!(text, "| {} |", variant.name);
        for sharding in row {
            let _ = write!(text, " {} |", cell(sharding));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    // [S-6.6] [S-6.11]
    #[test]
    fn a_table_has_the_numbers_of_the_specification() {
        let shape = Shape::deepseek().unwrap();
        let h100 = "h100".parse().unwrap();
        let text = markdown(&shape, &h100, &[1, 2], 2).unwrap();
        assert!(text.contains("| MLA | 1152 | 1152 |\n"), "{text}");
        assert!(text.contains("| GLA-2 | 1152 | 640 |\n"), "{text}");
        assert!(text.contains("| MLA | **483.6** | 241.8 |\n"), "{text}");
        assert!(text.contains("| GLA-2 | 256.0 | 230.4 |\n"), "{text}");
    }
}
