//! RMSNorm against answers a person can check `[S-5.9]`.

use approx::assert_relative_eq;
use grouped_attention::{InvalidNorm, RmsNorm};

#[test]
fn a_vector_is_divided_by_its_root_mean_square() {
    // The mean square of (1, 7) is 25.
    let norm = RmsNorm::new(vec![1.0, 1.0], 1e-300).unwrap();
    let mut x = [1.0, 7.0, -7.0, 1.0];
    norm.apply(&mut x);
    assert_eq!(x, [0.2, 1.4, -1.4, 0.2]);
}

#[test]
fn eps_is_inside_the_root() {
    let norm = RmsNorm::new(vec![1.0, 2.0], 24.0).unwrap();
    assert_eq!((norm.width(), norm.eps()), (2, 24.0));
    let mut x = [1.0, 1.0];
    norm.apply(&mut x);
    assert_eq!(x, [0.2, 0.4]);
    let mut zero = [0.0, 0.0];
    norm.apply(&mut zero);
    assert_eq!(zero, [0.0, 0.0]);
}

#[test]
fn the_scale_of_a_vector_does_not_matter() {
    let norm = RmsNorm::new(vec![0.5, -2.0, 3.0], 1e-200).unwrap();
    let mut x = [0.3, -0.1, 0.7];
    let mut y = x.map(|x| 1e30 * x);
    norm.apply(&mut x);
    norm.apply(&mut y);
    for (x, y) in x.into_iter().zip(y) {
        assert_relative_eq!(x, y, max_relative = 1e-15);
    }
}

#[test]
fn bad_parameters_are_named() {
    assert_eq!(RmsNorm::new(vec![], 1e-6), Err(InvalidNorm::WidthZero));
    for eps in [0.0, -1e-6, f64::INFINITY] {
        assert_eq!(RmsNorm::new(vec![1.0], eps), Err(InvalidNorm::Eps { eps }));
    }
    assert!(matches!(RmsNorm::new(vec![1.0], f64::NAN), Err(InvalidNorm::Eps { .. })));
}
