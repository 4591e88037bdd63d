//! What is asked of memory beside the products of tiles.

/// Asks for so many pairs of lines, whose addresses stand at `f`.
macro_rules! ask {
    (0) => {
        "/* {f} {x} */\n"
    };
    (1) => {
        "mov {x}, [{f}]\nadd {f}, 8\nprefetcht1 [{x}]\nprefetcht1 [{x} + 64]\n"
    };
    (2) => {
        concat!(ask!(1), ask!(1))
    };
    (3) => {
        concat!(ask!(2), ask!(1))
    };
    (4) => {
        concat!(ask!(2), ask!(2))
    };
    (5) => {
        concat!(ask!(3), ask!(2))
    };
    (6) => {
        concat!(ask!(3), ask!(3))
    };
    (7) => {
        concat!(ask!(4), ask!(3))
    };
    (8) => {
        concat!(ask!(4), ask!(4))
    };
}

/// The loop, a macro, that asks for so many pairs with each four products: how many with each of the four come after what
/// is passed on. These rates are what [`Asked::rate`] answers.
macro_rules! at_rate {
    ($rate:expr, $loop:ident $(, $passed:ident)*) => {
        match $rate {
            0 => $loop!($($passed,)* 0, 0, 0, 0),
            1 => $loop!($($passed,)* 1, 0, 0, 0),
            2 => $loop!($($passed,)* 1, 0, 1, 0),
            3 => $loop!($($passed,)* 1, 1, 1, 0),
            4 => $loop!($($passed,)* 1, 1, 1, 1),
            5 => $loop!($($passed,)* 2, 1, 1, 1),
            6 => $loop!($($passed,)* 2, 1, 2, 1),
            7 => $loop!($($passed,)* 2, 2, 2, 1),
            8 => $loop!($($passed,)* 2, 2, 2, 2),
            9 => $loop!($($passed,)* 3, 2, 2, 2),
            10 => $loop!($($passed,)* 3, 2, 3, 2),
            11 => $loop!($($passed,)* 3, 3, 3, 2),
            12 => $loop!($($passed,)* 3, 3, 3, 3),
            14 => $loop!($($passed,)* 4, 3, 4, 3),
            16 => $loop!($($passed,)* 4, 4, 4, 4),
            20 => $loop!($($passed,)* 5, 5, 5, 5),
            24 => $loop!($($passed,)* 6, 6, 6, 6),
            28 => $loop!($($passed,)* 7, 7, 7, 7),
            32 => $loop!($($passed,)* 8, 8, 8, 8),
            _ => unreachable!("a rate of `Asked::rate`"),
        }
    };
}

/// Stores a tile's rows over each other where a result goes that is stored later, for what [`Tiles::keep_awake`] says: with
/// steps whose count, which runs down to 1, is odd (`jz`, 1) or a multiple of eight (`jnz`, 7).
macro_rules! keep_awake {
    ($jump:literal, $bits:literal, $to:literal, $tile:literal) => {
        concat!(
            "test {n:e}, ",
            $bits,
            "\n",
            $jump,
            " 9f\ntilestored [{",
            $to,
            "}], ",
            $tile,
            "\n9:\n"
        )
    };
}

/// Pairs of neighbouring cache lines to ask for while tiles are multiplied, to the second-level cache: so many with each
/// four products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// Where the first of each pair is.
    pairs: &'a [usize],
    rate: usize,
}

impl<'a> Asked<'a> {
    pub(crate) const NOTHING: Asked<'static> = Asked { pairs: &[], rate: 0 };

    /// Of all pairs as many as are due with so many times four products, or somewhat more, and those that are left.
    pub(crate) fn split(all: &'a [usize], pairs: usize, fours: usize) -> (Asked<'a>, &'a [usize]) {
        let rate = Asked::rate(pairs.div_ceil(fours)).min(Asked::rate_within(all.len() / fours));
        let (pairs, rest) = all.split_at(rate * fours);
        (Asked { pairs, rate }, rest)
    }

    /// The least rate that is no less, or the greatest.
    fn rate(pairs: usize) -> usize {
        match pairs {
            ..=12 => pairs,
            13..=14 => 14,
            15..=32 => pairs.next_multiple_of(4),
            _ => 32,
        }
    }

    /// The greatest rate that is no more.
    fn rate_within(pairs: usize) -> usize {
        match pairs {
            ..=12 => pairs,
            14..=15 => 14,
            13..=32 => pairs / 4 * 4,
            _ => 32,
        }
    }

    /// Where the addresses begin, of so many products' pairs.
    pub(super) fn start(self, products: usize) -> *const usize {
        assert!(products / 4 * self.rate <= self.pairs.len(), "pairs for each product");
        self.pairs.as_ptr()
    }

    pub(super) fn each_four(self) -> usize {
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_that_loops_have() {
        macro_rules! sum {
            ($a:tt, $b:tt, $c:tt, $d:tt) => {
                $a + $b + $c + $d
            };
        }
        for pairs in 0..40 {
            let (up, down) = (Asked::rate(pairs), Asked::rate_within(pairs));
            assert!((up >= pairs || up == 32) && down <= pairs, "{up} and {down} for {pairs}");
            for rate in [up, down] {
                assert_eq!(at_rate!(rate, sum), rate);
                assert_eq!((Asked::rate(rate), Asked::rate_within(rate)), (rate, rate));
            }
        }
    }

    #[test]
    fn what_is_asked_for_is_enough_and_there() {
        let all: Vec<usize> = (0..100).collect();
        let split = |all, pairs, fours| {
            let (asked, rest) = Asked::split(all, pairs, fours);
            (asked.rate, asked.pairs.len(), rest.len())
        };
        assert_eq!(split(&all, 10, 4), (3, 12, 88));
        assert_eq!(split(&all, 13, 1), (14, 14, 86));
        assert_eq!(split(&all, 100, 4), (24, 96, 4), "no more than there are, in whole fours");
        assert_eq!(split(&all, 100, 1), (32, 32, 68), "no more than loops can");
        assert_eq!(split(&all[..3], 3, 4), (0, 0, 3));
        assert_eq!(split(&[], 0, 4), (0, 0, 0));
    }
}
