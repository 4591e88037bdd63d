//! Identities between layers, and between the two forms of one layer.

mod cached;

use cached::attend;
use grouped_attention::layers::{
    Gla, GlaWeights, Gqa, GqaWeights, Gta, GtaWeights, InputRule, LatentWidths, Layer, LayerError,
    Linear, Mla, MlaWeights, QueryProjection, Rows,
};
use grouped_attention::{Geometry, RmsNorm, Rope, RopeScaling, RopeStyle};
use proptest::prelude::*;

const EPS: f64 = 1e-6;

/// Numbers in [-1, 1) that look random, so that a case is its sizes and a seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.0 >> 11) as f64) / (1_u64 << 52) as f64 - 1.0
    }

    fn vector(&mut self, length: usize) -> Vec<f64> {
        (0..length).map(|_| self.next()).collect()
    }

    fn linear(&mut self, outputs: usize, inputs: usize, bias: bool) -> Linear {
        let weight = self.vector(outputs * inputs);
        let bias = bias.then(|| self.vector(outputs));
        Linear::new(inputs, outputs, weight, bias).expect("a legal map")
    }

    fn norm(&mut self, width: usize) -> RmsNorm {
        let weight = self.vector(width).into_iter().map(|x| x + 2.0).collect();
        RmsNorm::new(weight, EPS).expect("a legal norm")
    }
}

fn rope(width: usize, style: RopeStyle) -> Rope {
    Rope::new(style, width, 10_000.0, RopeScaling::None).expect("a legal rope")
}

/// The sizes of a random layer; biases everywhere or nowhere.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    widths: LatentWidths,
    model: usize,
    rank: Option<usize>,
    bias: bool,
    style: RopeStyle,
}

fn gla_weights(sizes: &Sizes, numbers: &mut Numbers) -> GlaWeights {
    let Sizes { widths: LatentWidths { h_q, h_c, d_c, d_h, d_r, d_v }, model, bias, .. } = *sizes;
    GlaWeights {
        query: match sizes.rank {
            None => QueryProjection::Direct(numbers.linear(h_q * (d_h + d_r), model, bias)),
            Some(rank) => QueryProjection::LowRank {
                down: numbers.linear(rank, model, bias),
                norm: numbers.norm(rank),
                up: numbers.linear(h_q * (d_h + d_r), rank, bias),
            },
        },
        down: numbers.linear(h_c * d_c + d_r, model, bias),
        norms: (0..h_c).map(|_| numbers.norm(d_c)).collect(),
        ups: (0..h_c).map(|_| numbers.linear(h_q / h_c * (d_h + d_v), d_c, bias)).collect(),
        o: numbers.linear(model, h_q * d_v, bias),
    }
}

fn gla(sizes: &Sizes, numbers: &mut Numbers) -> Layer {
    let weights = gla_weights(sizes, numbers);
    let rope = rope(sizes.widths.d_r, sizes.style);
    Gla::new(sizes.widths, weights, rope).expect("a legal layer").into()
}

/// The MLA layer of a GLA layer's weights with one latent head.
fn mla_of(widths: LatentWidths, weights: GlaWeights, rope: Rope) -> Layer {
    let GlaWeights { query, down, norms, ups, o } = weights;
    let ([norm], [up]) = (
        <[RmsNorm; 1]>::try_from(norms).expect("one latent head"),
        <[Linear; 1]>::try_from(ups).expect("one latent head"),
    );
    let weights = MlaWeights { query, down, norm, up, o };
    Mla::new(widths, weights, rope).expect("a legal layer").into()
}

fn mla(sizes: &Sizes, numbers: &mut Numbers) -> Layer {
    let weights = gla_weights(sizes, numbers);
    mla_of(sizes.widths, weights, rope(sizes.widths.d_r, sizes.style))
}

fn gta(sizes: &Sizes, n: usize, numbers: &mut Numbers) -> Layer {
    let Sizes { widths: LatentWidths { h_q, h_c, d_c: s, d_r: r, .. }, model, bias, .. } = *sizes;
    let geometry = Geometry::tied(h_q, h_c, s, n, r).expect("a legal geometry");
    let weights = GtaWeights {
        q: numbers.linear(h_q * (n + r), model, bias),
        kv: numbers.linear(h_c * s, model, bias),
        rope_k: numbers.linear(r, model, bias),
        o: numbers.linear(model, h_q * s, bias),
    };
    Gta::new(geometry, weights, rope(r, sizes.style)).expect("a legal layer").into()
}

fn gqa(sizes: &Sizes, numbers: &mut Numbers) -> Layer {
    let Sizes { widths: LatentWidths { h_q, h_c, d_r, d_v, .. }, model, bias, .. } = *sizes;
    let d_k = d_r.max(2);
    let geometry = Geometry::separate(h_q, h_c, d_k, d_v).expect("a legal geometry");
    let weights = GqaWeights {
        q: numbers.linear(h_q * d_k, model, bias),
        k: numbers.linear(h_c * d_k, model, bias),
        v: numbers.linear(h_c * d_v, model, bias),
        o: numbers.linear(model, h_q * d_v, bias),
    };
    Gqa::new(geometry, weights, rope(d_k, sizes.style)).expect("a legal layer").into()
}

/// Largest difference over the largest element.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(f64::MIN_POSITIVE, |max, x| max.max(x.abs()));
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs() / largest);
    // Not f64::max, which drops a NaN.
    differences.fold(0.0, |max, x| if max.is_nan() || x <= max { max } else { x })
}

/// What an engine and the cache make of whole sequences.
fn decode(layer: &Layer, hidden: &[f64], positions: &[i64], length: usize) -> Vec<f64> {
    let projected = layer.project(hidden, positions).expect("lengths that fit");
    let attended = attend(layer, &projected.queries, &projected.rows, length);
    layer.output(&attended).expect("lengths that fit")
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let counts = (1..4_usize, 1..4_usize, 1..6_usize, 1..6_usize, 0..4_usize, 1..6_usize);
    let rest = (1..7_usize, prop::option::of(1..5_usize), any::<bool>(), any::<bool>());
    (counts, rest).prop_map(|((h_c, group, d_c, d_h, pairs, d_v), (model, rank, bias, half))| {
        let (h_q, d_r) = (h_c * group, 2 * pairs);
        let style = if half { RopeStyle::HalfSplit } else { RopeStyle::Interleaved };
        let widths = LatentWidths { h_q, h_c, d_c, d_h, d_r, d_v };
        Sizes { widths, model, rank, bias, style }
    })
}

/// Positions of `batch * length` tokens with gaps, repeats and negative ones.
fn positions(batch: usize, length: usize) -> Vec<i64> {
    (0..batch * length).map(|t| (t * t % 11) as i64 * 5 - 7).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The forms are one function, biases included [S-5.19].
    #[test]
    fn what_decodes_is_what_was_trained(
        sizes in sizes(),
        n in 0..6_usize,
        batch in 1..3_usize,
        length in 1..5_usize,
        seed in any::<u64>(),
    ) {
        let mut numbers = Numbers(seed);
        let one = Sizes { widths: LatentWidths { h_c: 1, ..sizes.widths }, ..sizes };
        // n + r must not be 0, and n is part of a state of d_c.
        let n = n.min(sizes.widths.d_c).max(usize::from(sizes.widths.d_r == 0));
        let layers = [
            gqa(&sizes, &mut numbers),
            gta(&sizes, n, &mut numbers),
            mla(&one, &mut numbers),
            gla(&sizes, &mut numbers),
        ];
        let hidden = numbers.vector(batch * length * sizes.model);
        let positions = positions(batch, length);
        for layer in layers {
            let forward = layer.forward_causal(&hidden, &positions, length).unwrap();
            let decoded = decode(&layer, &hidden, &positions, length);
            let difference = difference(&decoded, &forward.output);
            prop_assert!(difference < 1e-10, "{}: {difference:e}", layer.geometry());
            let projected = layer.project(&hidden, &positions).unwrap();
            prop_assert_eq!(projected.rows, forward.rows);
        }
    }

    /// A token's query and row do not depend on its neighbours, so decoding token by token
    /// appends the rows of the whole sequence, bit by bit [S-5.20].
    #[test]
    fn a_token_alone_projects_as_in_a_sequence(sizes in sizes(), seed in any::<u64>()) {
        let mut numbers = Numbers(seed);
        let layers = [gqa(&sizes, &mut numbers), gla(&sizes, &mut numbers)];
        let hidden = numbers.vector(4 * sizes.model);
        let positions = positions(1, 4);
        for layer in layers {
            let whole = layer.project(&hidden, &positions).unwrap();
            let tokens: Vec<_> = hidden
                .chunks_exact(sizes.model)
                .zip(&positions)
                .map(|(hidden, &position)| layer.project(hidden, &[position]).unwrap())
                .collect();
            let queries = tokens.iter().flat_map(|token| token.queries.clone());
            prop_assert_eq!(queries.collect::<Vec<_>>(), whole.queries);
            for part in 0..2 {
                let rows = tokens.iter().flat_map(|token| token.rows.parts()[part].to_vec());
                prop_assert_eq!(rows.collect::<Vec<_>>(), whole.rows.parts()[part]);
            }
        }
    }

    /// GLA with one latent head is MLA [S-2.8].
    #[test]
    fn gla_of_one_latent_head_is_mla(sizes in sizes(), seed in any::<u64>()) {
        let widths = LatentWidths { h_c: 1, ..sizes.widths };
        let sizes = Sizes { widths, ..sizes };
        let (gla, mla) = (gla(&sizes, &mut Numbers(seed)), mla(&sizes, &mut Numbers(seed)));
        let hidden = Numbers(!seed).vector(6 * sizes.model);
        let positions = positions(2, 3);
        prop_assert_eq!(gla.geometry().row(), mla.geometry().row());
        prop_assert_eq!(gla.scale(), mla.scale());
        prop_assert_eq!(
            gla.forward_causal(&hidden, &positions, 3),
            mla.forward_causal(&hidden, &positions, 3)
        );
        prop_assert_eq!(gla.project(&hidden, &positions), mla.project(&hidden, &positions));
    }

    /// A GLA layer is the sum of one MLA layer per latent head: what tensor parallelism relies on.
    #[test]
    fn gla_is_a_sum_of_mla_layers(sizes in sizes(), seed in any::<u64>()) {
        let sizes = Sizes { bias: false, rank: None, ..sizes };
        let LatentWidths { h_q, h_c, d_c, d_h, d_r, d_v } = sizes.widths;
        let group = h_q / h_c;
        let mut numbers = Numbers(seed);
        let weights = gla_weights(&sizes, &mut numbers);
        let hidden = numbers.vector(4 * sizes.model);
        let positions = positions(1, 4);
        let rope = rope(d_r, sizes.style);

        let shard = |g: usize| {
            let QueryProjection::Direct(query) = &weights.query else { unreachable!() };
            let first_query = g * group * (d_h + d_r);
            let mut down = rows(&weights.down, g * d_c, d_c);
            down.extend(rows(&weights.down, h_c * d_c, d_r));
            let o: Vec<f64> = weights
                .o
                .weight()
                .chunks_exact(h_q * d_v)
                .flat_map(|row| row[g * group * d_v..][..group * d_v].to_vec())
                .collect();
            let linear = |weight: Vec<f64>, inputs: usize| {
                Linear::new(inputs, weight.len() / inputs, weight, None).unwrap()
            };
            let weights = GlaWeights {
                query: QueryProjection::Direct(linear(
                    rows(query, first_query, group * (d_h + d_r)),
                    sizes.model,
                )),
                down: linear(down, sizes.model),
                norms: vec![weights.norms[g].clone()],
                ups: vec![weights.ups[g].clone()],
                o: linear(o, group * d_v),
            };
            mla_of(LatentWidths { h_q: group, h_c: 1, ..sizes.widths }, weights, rope.clone())
        };
        let mut sum = vec![0.0; hidden.len()];
        for g in 0..h_c {
            let part = shard(g).forward_causal(&hidden, &positions, 4).unwrap().output;
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        let whole: Layer = Gla::new(sizes.widths, weights.clone(), rope.clone()).unwrap().into();
        let whole = whole.forward_causal(&hidden, &positions, 4).unwrap().output;
        prop_assert!(difference(&sum, &whole) < 1e-10);
    }

    /// GQA is MHA whose heads share keys and values within a group [S-5.11].
    #[test]
    fn gqa_is_mha_with_repeated_heads(sizes in sizes(), seed in any::<u64>()) {
        let LatentWidths { h_q, h_c, d_r, d_v, .. } = sizes.widths;
        let d_k = d_r + 2;
        let mut numbers = Numbers(seed);
        let weights = GqaWeights {
            q: numbers.linear(h_q * d_k, sizes.model, true),
            k: numbers.linear(h_c * d_k, sizes.model, false),
            v: numbers.linear(h_c * d_v, sizes.model, false),
            o: numbers.linear(sizes.model, h_q * d_v, true),
        };
        let repeated = |linear: &Linear, width: usize| {
            let heads = (0..h_q).flat_map(|i| rows(linear, i / (h_q / h_c) * width, width));
            Linear::new(sizes.model, h_q * width, heads.collect(), None).unwrap()
        };
        let repeated = GqaWeights {
            k: repeated(&weights.k, d_k),
            v: repeated(&weights.v, d_v),
            ..weights.clone()
        };
        let layer = |heads: usize, weights: GqaWeights| -> Layer {
            let geometry = Geometry::separate(h_q, heads, d_k, d_v).unwrap();
            Gqa::new(geometry, weights, rope(d_k, sizes.style)).unwrap().into()
        };
        let hidden = numbers.vector(4 * sizes.model);
        let output = |layer: Layer| {
            layer.forward_causal(&hidden, &positions(1, 4), 4).unwrap().output
        };
        prop_assert_eq!(output(layer(h_c, weights)), output(layer(h_q, repeated)));
    }

    /// At position 0, where rope does nothing, GTA is GQA with `W_K,g = [W_KV,g[..n] | W_R]` and
    /// `W_V = W_KV` [S-5.12].
    #[test]
    fn gta_at_position_zero_is_gqa_with_tied_weights(
        heads in 1..4_usize,
        group in 1..4_usize,
        half in 1..4_usize,
        model in 1..6_usize,
        seed in any::<u64>(),
    ) {
        let (h_q, n, r, s) = (heads * group, half + half % 2, 2 * half, 3 * half);
        let d_k = n + r;
        let mut numbers = Numbers(seed);
        let weights = GtaWeights {
            q: numbers.linear(h_q * d_k, model, false),
            kv: numbers.linear(heads * s, model, false),
            rope_k: numbers.linear(r, model, false),
            o: numbers.linear(model, h_q * s, false),
        };
        let k = (0..heads)
            .flat_map(|g| [rows(&weights.kv, g * s, n), rows(&weights.rope_k, 0, r)].concat());
        let gqa: Layer = Gqa::new(
            Geometry::separate(h_q, heads, d_k, s).unwrap(),
            GqaWeights {
                q: weights.q.clone(),
                k: Linear::new(model, heads * d_k, k.collect(), None).unwrap(),
                v: weights.kv.clone(),
                o: weights.o.clone(),
            },
            rope(d_k, RopeStyle::HalfSplit),
        )
        .unwrap()
        .into();
        let geometry = Geometry::tied(h_q, heads, s, n, r).unwrap();
        let gta: Layer =
            Gta::new(geometry, weights, rope(r, RopeStyle::HalfSplit)).unwrap().into();
        let hidden = numbers.vector(5 * model);
        let output = |layer: Layer| layer.forward_causal(&hidden, &[0; 5], 5).unwrap().output;
        prop_assert_eq!(output(gta), output(gqa));
    }
}

/// Rows `first..first + count` of a map's weight, row-major.
fn rows(linear: &Linear, first: usize, count: usize) -> Vec<f64> {
    linear.weight()[first * linear.inputs()..][..count * linear.inputs()].to_vec()
}

fn identity(width: usize) -> Linear {
    let weight = (0..width * width).map(|i| f64::from(i % (width + 1) == 0)).collect();
    Linear::new(width, width, weight, None).expect("a legal map")
}

/// Two tokens, one head, every projection the identity, position 0: the second token's output is
/// `v_0 + sigmoid(score_1 - score_0) (v_1 - v_0)`.
#[test]
fn two_tokens_by_hand_s_5_11() {
    let weights = GqaWeights { q: identity(2), k: identity(2), v: identity(2), o: identity(2) };
    let geometry = Geometry::mha(1, 2).unwrap();
    let layer: Layer = Gqa::new(geometry, weights, rope(2, RopeStyle::HalfSplit)).unwrap().into();
    let output = layer.forward_causal(&[1.0, 0.0, 1.0, 2.0], &[0, 0], 2).unwrap().output;
    // Scores of token 1 are 1 and 5, over sqrt(2).
    let p = 1.0 / (1.0 + (-4.0 / 2f64.sqrt()).exp());
    assert_eq!(output[..2], [1.0, 0.0]);
    approx::assert_relative_eq!(output[2], 1.0, max_relative = 1e-15);
    approx::assert_relative_eq!(output[3], 2.0 * p, max_relative = 1e-15);
}

/// GTA by hand: one token of state [1, 2] and rope key [3, 4] at position 5 [S-5.12].
#[test]
fn a_gta_row_is_the_state_as_projected_and_the_key_rotated() {
    let column = |values: [f64; 2]| Linear::new(1, 2, values.to_vec(), None).unwrap();
    let q = Linear::new(1, 3, vec![7.0, 8.0, 9.0], None).unwrap();
    let o = Linear::new(2, 1, vec![10.0, 100.0], None).unwrap();
    let weights = GtaWeights { q, kv: column([1.0, 2.0]), rope_k: column([3.0, 4.0]), o };
    let geometry = Geometry::tied(1, 1, 2, 1, 2).unwrap();
    let layer: Layer = Gta::new(geometry, weights, rope(2, RopeStyle::Interleaved)).unwrap().into();
    let projected = layer.project(&[1.0], &[5]).unwrap();
    let (sin, cos) = 5f64.sin_cos();
    let turned = |a: f64, b: f64| [a * cos - b * sin, b * cos + a * sin];
    assert_eq!(projected.queries, [&[7.0][..], &turned(8.0, 9.0)].concat());
    let rope = turned(3.0, 4.0).to_vec();
    assert_eq!(projected.rows, Rows::Tied { state: vec![1.0, 2.0], rope });
    assert_eq!(layer.forward_causal(&[1.0], &[5], 1).unwrap().output, [210.0]);
    assert_eq!(layer.scale(), 1.0 / 3f64.sqrt());
}

/// The scale is the training scale, not that of the absorbed width [S-3.6].
#[test]
fn the_scale_is_that_of_training() {
    let yarn = RopeScaling::Yarn {
        factor: 40.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: 1.0,
        mscale_all_dim: 1.0,
        original_max_position: 4096,
        attention_factor: None,
        truncate: true,
    };
    let sizes = Sizes {
        widths: LatentWidths { h_q: 1, h_c: 1, d_c: 3, d_h: 128, d_r: 64, d_v: 1 },
        model: 1,
        rank: None,
        bias: false,
        style: RopeStyle::Interleaved,
    };
    assert_eq!(mla(&sizes, &mut Numbers(1)).scale(), 1.0 / 192f64.sqrt());
    assert_eq!(gla(&sizes, &mut Numbers(1)).scale(), 1.0 / 192f64.sqrt());
    let rope = Rope::new(RopeStyle::Interleaved, 64, 10_000.0, yarn).unwrap();
    let layer = mla_of(sizes.widths, gla_weights(&sizes, &mut Numbers(1)), rope);
    let m = 0.1 * 40f64.ln() + 1.0;
    approx::assert_relative_eq!(layer.scale(), m * m / 192f64.sqrt(), max_relative = 1e-15);
}

#[test]
fn inputs_that_are_no_whole_tokens_are_named_s_5_22() {
    let sizes = Sizes {
        widths: LatentWidths { h_q: 4, h_c: 2, d_c: 3, d_h: 2, d_r: 2, d_v: 5 },
        model: 7,
        rank: Some(3),
        bias: true,
        style: RopeStyle::HalfSplit,
    };
    let layer = gla(&sizes, &mut Numbers(1));
    let input = |what, expected, got, rule| LayerError::Input { what, expected, got, rule };
    let hidden = [0.0; 21];
    let error = input("hidden", 14, 21, InputRule::Exactly);
    assert_eq!(layer.project(&hidden, &[0, 1]).unwrap_err(), error);
    assert_eq!(layer.forward_causal(&hidden, &[0, 1], 2).unwrap_err(), error);
    assert_eq!(error.to_string(), "hidden has 21 elements, and 14 fit");
    let error = input("positions", 2, 3, InputRule::MultipleOf);
    assert_eq!(layer.forward_causal(&hidden, &[0, 1, 2], 2).unwrap_err(), error);
    let error = input("positions", 0, 3, InputRule::MultipleOf);
    assert_eq!(layer.forward_causal(&hidden, &[0, 1, 2], 0).unwrap_err(), error);
    let error = input("attended", 12, 13, InputRule::MultipleOf);
    assert_eq!(layer.output(&[0.0; 13]).unwrap_err(), error);
    assert_eq!(error.to_string(), "attended has 13 elements, and 12 make a whole");

    // No tokens are no error.
    assert!(layer.project(&[], &[]).unwrap().queries.is_empty());
    assert!(layer.output(&[]).unwrap().is_empty());
    for length in [0, 3] {
        assert!(layer.forward_causal(&[], &[], length).unwrap().output.is_empty());
    }
}

#[test]
fn parts_that_do_not_fit_are_named_s_5_22() {
    let mut numbers = Numbers(1);
    let separate = Geometry::gqa(4, 2, 6).unwrap();
    let tied = Geometry::gta(4, 2, 4).unwrap();
    let weights = GqaWeights {
        q: numbers.linear(24, 5, false),
        k: numbers.linear(12, 5, false),
        v: numbers.linear(12, 5, false),
        o: numbers.linear(5, 24, false),
    };
    let half = |width| rope(width, RopeStyle::HalfSplit);
    assert!(Gqa::new(separate, weights.clone(), half(6)).is_ok());
    assert_eq!(
        Gqa::new(tied, weights.clone(), half(6)),
        Err(LayerError::WrongRow { layer: "gqa", geometry: tied })
    );
    assert_eq!(
        Gqa::new(separate, weights.clone(), half(4)),
        Err(LayerError::Size { what: "width of the rope", expected: 6, got: 4 })
    );
    let misshapen = GqaWeights { k: numbers.linear(6, 5, false), ..weights };
    assert_eq!(
        Gqa::new(separate, misshapen, half(6)),
        Err(LayerError::Shape { tensor: "k".to_owned(), expected: vec![12, 5], got: vec![6, 5] })
    );

    let sizes = Sizes {
        widths: LatentWidths { h_q: 4, h_c: 2, d_c: 3, d_h: 2, d_r: 2, d_v: 5 },
        model: 7,
        rank: Some(3),
        bias: false,
        style: RopeStyle::HalfSplit,
    };
    let weights = gla_weights(&sizes, &mut numbers);
    let mut short = weights.clone();
    short.norms.pop();
    assert_eq!(
        Gla::new(sizes.widths, short, half(2)),
        Err(LayerError::Size { what: "norms", expected: 2, got: 1 })
    );
    let mut narrow = weights.clone();
    narrow.norms[1] = numbers.norm(2);
    assert_eq!(
        Gla::new(sizes.widths, narrow, half(2)),
        Err(LayerError::Size { what: "width of a norm", expected: 3, got: 2 })
    );
    let mut short = weights.clone();
    short.ups[1] = numbers.linear(13, 3, false);
    assert_eq!(
        Gla::new(sizes.widths, short, half(2)),
        Err(LayerError::Shape { tensor: "up".to_owned(), expected: vec![14, 3], got: vec![13, 3] })
    );
    let mut low_rank = |down, up, inputs| QueryProjection::LowRank {
        down: numbers.linear(down, 7, false),
        norm: numbers.norm(3),
        up: numbers.linear(up, inputs, false),
    };
    let queries = [
        (low_rank(4, 16, 3), "q down", [3, 7], [4, 7]),
        (low_rank(3, 15, 3), "q up", [16, 3], [15, 3]),
        (low_rank(3, 16, 4), "q up", [16, 3], [16, 4]),
        (QueryProjection::Direct(numbers.linear(15, 7, false)), "q", [16, 7], [15, 7]),
    ];
    for (query, tensor, expected, got) in queries {
        let (tensor, expected, got) = (tensor.to_owned(), expected.to_vec(), got.to_vec());
        assert_eq!(
            Gla::new(sizes.widths, GlaWeights { query, ..weights.clone() }, half(2)),
            Err(LayerError::Shape { tensor, expected, got })
        );
    }
    for widths in [
        LatentWidths { d_h: usize::MAX, ..sizes.widths },
        LatentWidths { d_v: usize::MAX / 2, ..sizes.widths },
        LatentWidths { d_c: 1 << 40, ..sizes.widths },
        LatentWidths { h_c: 3, ..sizes.widths },
        LatentWidths { d_h: 0, ..sizes.widths },
    ] {
        let error = Gla::new(widths, weights.clone(), half(2)).unwrap_err();
        assert!(matches!(error, LayerError::Geometry(_)), "{error}");
    }
    assert!(matches!(Linear::new(3, usize::MAX, vec![], None), Err(LayerError::Shape { .. })));
    assert!(matches!(Linear::new(0, 0, vec![], None), Err(LayerError::Size { .. })));
}
