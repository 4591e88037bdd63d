//! A logarithmic axis: values to pixels, and where its ticks stand.

/// Values `from..to` on the pixels `start..end`, both increasing or not as the axis runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) start: i32,
    pub(crate) end: i32,
}

impl Axis {
    /// The pixel of a value.
    pub(crate) fn at(&self, value: f64) -> i32 {
        let share = (value / self.from).ln() / (self.to / self.from).ln();
        self.start + (share * f64::from(self.end - self.start)).round() as i32
    }

    /// The multiples of powers of `base` that are on the axis, `multiples` in `1..base`.
    pub(crate) fn ticks(&self, base: f64, multiples: &[f64]) -> Vec<f64> {
        let powers = self.from.log(base).floor() as i32..=self.to.log(base).ceil() as i32;
        powers
            .flat_map(|power| multiples.iter().map(move |multiple| multiple * base.powi(power)))
            .filter(|tick| (self.from..=self.to).contains(tick))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_stand_at_equal_distances() {
        let axis = Axis { from: 1.0, to: 1000.0, start: 100, end: 400 };
        let ticks = axis.ticks(10.0, &[1.0]);
        let pixels: Vec<i32> = ticks.iter().map(|&tick| axis.at(tick)).collect();
        assert_eq!(pixels, [100, 200, 300, 400]);
        let narrow = Axis { from: 3.0, to: 60.0, ..axis };
        assert_eq!(narrow.ticks(10.0, &[1.0, 2.0, 5.0]), [5.0, 10.0, 20.0, 50.0]);
        let upwards = Axis { from: 1.0, to: 100.0, start: 300, end: 100 };
        assert_eq!(upwards.at(10.0), 200);
    }
}
