//! Model shapes in which variants are set side by side.

use grouped_attention::{Geometry, InvalidGeometry, InvalidSharding, Sharding};

/// One variant under the name that tables and figures give it; a suffix counts cached heads.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// `GLA-2`.
    pub name: &'static str,
    /// Of the whole layer.
    pub geometry: Geometry,
}

/// Layers with the same query heads, one per variant.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// For file names.
    pub key: &'static str,
    /// For titles.
    pub title: &'static str,
    /// In the order of tables and lanes.
    pub variants: Vec<Named>,
}

impl Shape {
    /// Llama-3-8B's attention and what could stand in its place: 32 query heads, d_h 128, tied
    /// widths in the paper's proportion (d_c = 4 d_h for MLA, 2 d_h for GLA; d_r = d_h / 2).
    ///
    /// # Errors
    /// None for these numbers.
    pub fn llama() -> Result<Shape, InvalidGeometry> {
        let variants = vec![
            Named { name: "MHA", geometry: Geometry::mha(32, 128)? },
            Named { name: "GQA-8", geometry: Geometry::gqa(32, 8, 128)? },
            Named { name: "MQA", geometry: Geometry::mqa(32, 128)? },
            Named { name: "GTA-8", geometry: Geometry::gta(32, 8, 128)? },
            Named { name: "MLA", geometry: Geometry::mla(32, 512, 64)? },
            Named { name: "GLA-2", geometry: Geometry::gla(32, 2, 256, 64)? },
        ];
        Ok(Shape { key: "llama", title: "Llama-3-8B shape, 32 query heads", variants })
    }

    /// DeepSeek-V3's attention and what could stand in its place: 128 query heads.
    ///
    /// # Errors
    /// None for these numbers.
    pub fn deepseek() -> Result<Shape, InvalidGeometry> {
        let variants = vec![
            Named { name: "GQA-8", geometry: Geometry::gqa(128, 8, 128)? },
            Named { name: "GTA-8", geometry: Geometry::gta(128, 8, 128)? },
            Named { name: "MLA", geometry: Geometry::mla(128, 512, 64)? },
            Named { name: "GLA-2", geometry: Geometry::gla(128, 2, 256, 64)? },
            Named { name: "GLA-4", geometry: Geometry::gla(128, 4, 256, 64)? },
            Named { name: "GLA-8", geometry: Geometry::gla(128, 8, 256, 64)? },
        ];
        Ok(Shape { key: "deepseek", title: "DeepSeek-V3 shape, 128 query heads", variants })
    }

    /// Every variant over every degree, `[variants][degrees]`.
    ///
    /// # Errors
    /// The first variant that a degree does not split, by name.
    pub fn over(&self, degrees: &[usize]) -> Result<Vec<Vec<Sharding>>, Unsplittable> {
        let split = |variant: &Named, degree| {
            Sharding::new(variant.geometry, degree).map_err(|reason| Unsplittable {
                shape: self.key,
                name: variant.name,
                reason,
            })
        };
        self.variants
            .iter()
            .map(|variant| degrees.iter().map(|&degree| split(variant, degree)).collect())
            .collect()
    }
}

/// A variant that some degree does not split.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} of the {shape} shape: {reason}")]
pub struct Unsplittable {
    /// Key of the shape.
    pub shape: &'static str,
    /// The variant.
    pub name: &'static str,
    /// Why.
    pub reason: InvalidSharding,
}

#[cfg(test)]
mod tests {
    use super::*;
    use grouped_attention::Dtype;

    // [S-6.9] [S-6.11]
    #[test]
    fn shapes_are_those_of_the_paper() {
        let degrees = [1, 2, 4, 8];
        let bytes = |shape: &Shape, name: &str| -> Vec<usize> {
            let at = shape.variants.iter().position(|variant| variant.name == name).unwrap();
            let row = &shape.over(&degrees).unwrap()[at];
            row.iter().map(|sharding| sharding.bytes_per_token(Dtype::Bf16)).collect()
        };
        let llama = Shape::llama().unwrap();
        assert_eq!(bytes(&llama, "GTA-8"), [8.5, 4.5, 2.5, 1.5].map(|x| (x * 256.0) as usize));
        assert_eq!(bytes(&llama, "MHA"), [64, 32, 16, 8].map(|x| x * 256));
        let deepseek = Shape::deepseek().unwrap();
        assert_eq!(bytes(&deepseek, "GLA-8"), [4224, 2176, 1152, 640]);
        assert_eq!(bytes(&deepseek, "MLA"), [1152; 4]);
    }

    #[test]
    fn a_degree_that_does_not_divide_is_named() {
        let error = Shape::llama().unwrap().over(&[1, 3]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "MHA of the llama shape: 3 devices do not divide 32 query heads"
        );
    }
}
