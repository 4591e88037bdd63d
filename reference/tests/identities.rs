//! Laws that attention obeys, over random shapes. Proptest shrinks the description of a case; the
//! numbers in it come from the description's seed.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod common;

use common::{
    Numbers, Plain, append, attended, attended_bits, bits, config, defined, filled, packed,
    row_tensors, step_over, tables, tensor, writing_all,
};
use grouped_attention::{
    Append, Attended, Backend, CacheLayout, CopyRows, Dtype, Geometry, MaskKind, PageTables,
    Planning, Problem, Reference, Rope, RopeScaling, RopeStyle, Row, RowCopy, SequenceId,
    merge_row,
};
use proptest::prelude::*;

/// Heads and widths of any kind of row, small.
fn geometries() -> impl Strategy<Value = Geometry> {
    let separate = (1..4_usize, 1..4_usize, 1..6_usize, 1..6_usize);
    let tied = (1..4_usize, 1..4_usize, 1..6_usize, 0..6_usize, 0..4_usize);
    prop_oneof![
        separate.prop_map(|(heads, group, d_k, d_v)| {
            Geometry::separate(heads * group, heads, d_k, d_v).unwrap()
        }),
        tied.prop_map(|(heads, group, s, n, r)| {
            let n = n.min(s);
            let r = if n == 0 { r.max(1) } else { r };
            Geometry::tied(heads * group, heads, s, n, r).unwrap()
        }),
    ]
}

/// What a law is tried on: `(q_len, kv_len)` of each sequence, a page size, a seed.
#[derive(Clone, Debug)]
struct Case {
    geometry: Geometry,
    lens: Vec<(usize, usize)>,
    page_size: usize,
    seed: u64,
}

impl Case {
    fn problem(&self) -> Problem {
        Problem::new(self.geometry, Dtype::F32, 0.37).unwrap()
    }

    fn batch(&self) -> Vec<Plain> {
        let mut numbers = Numbers(self.seed);
        let sequence = |&(q_len, kv_len): &(usize, usize)| {
            Plain::random(&mut numbers, &self.geometry, q_len, kv_len)
        };
        self.lens.iter().map(sequence).collect()
    }

    fn attend(&self, mask: MaskKind<'_>, batch: &[Plain]) -> Attended {
        defined(&self.problem(), mask, batch, self.page_size, self.seed)
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let lens = prop::collection::vec((0..4_usize, 0..9_usize), 0..4);
    (geometries(), lens, 1..6_usize, any::<u64>())
        .prop_map(|(geometry, lens, page_size, seed)| Case { geometry, lens, page_size, seed })
}

/// One sequence with `1 <= q_len <= kv_len`.
fn drafts() -> impl Strategy<Value = Case> {
    (geometries(), 1..6_usize, 0..6_usize, 1..6_usize, any::<u64>()).prop_map(
        |(geometry, q_len, prefix, page_size, seed)| Case {
            geometry,
            lens: vec![(q_len, prefix + q_len)],
            page_size,
            seed,
        },
    )
}

/// Parents of a random forest over `q_len` tokens.
fn forest(numbers: &mut Numbers, q_len: usize) -> Vec<i32> {
    (0..q_len).map(|t| numbers.below(t + 1) as i32 - 1).collect()
}

/// Copies elements `[heads, width]` once for each of `group` query heads.
fn repeated(values: &[f64], width: usize, group: usize) -> Vec<f64> {
    values.chunks(width).flat_map(|head| head.repeat(group)).collect()
}

proptest! {
    #![proptest_config(config(64))]

    // [S-1.2] [S-2.2]: a group is its KV head, repeated.
    #[test]
    fn gqa_is_mha_with_every_kv_head_repeated(
        (heads, group, d_k, d_v) in (1..4_usize, 1..4_usize, 1..6_usize, 1..6_usize),
        case in cases(),
    ) {
        let h = heads * group;
        let gqa = Case { geometry: Geometry::separate(h, heads, d_k, d_v).unwrap(), ..case };
        let mha = Case { geometry: Geometry::separate(h, h, d_k, d_v).unwrap(), ..gqa.clone() };
        let batch = gqa.batch();
        let mut expanded = batch.clone();
        for [keys, values] in expanded.iter_mut().flat_map(|plain| &mut plain.rows) {
            *keys = repeated(keys, d_k, group);
            *values = repeated(values, d_v, group);
        }
        let (gqa, mha) =
            (gqa.attend(MaskKind::Causal, &batch), mha.attend(MaskKind::Causal, &expanded));
        prop_assert_eq!(attended_bits(&gqa), attended_bits(&mha));
    }

    // [S-2.6]: the named constructors are the general ones.
    #[test]
    fn names_change_nothing(
        case in cases(),
        (h, width, r) in (1..4_usize, 1..4_usize, 0..4_usize),
    ) {
        let pairs = [
            (Geometry::gqa(h, h, width), Geometry::mha(h, width)),
            (Geometry::gqa(h, 1, width), Geometry::mqa(h, width)),
            // [S-2.8]
            (Geometry::gla(h, 1, width, r), Geometry::mla(h, width, r)),
            // GTA whose whole state is key is GLA.
            (Geometry::tied(2 * h, 2, width, width, r), Geometry::gla(2 * h, 2, width, r)),
            (Geometry::tied(h, h, 2 * width, width, width), Geometry::gta(h, h, 2 * width)),
        ];
        for (left, right) in pairs {
            let left = Case { geometry: left.unwrap(), ..case.clone() };
            let right = Case { geometry: right.unwrap(), ..case.clone() };
            let of = |case: &Case| attended_bits(&case.attend(MaskKind::Causal, &case.batch()));
            prop_assert_eq!(of(&left), of(&right));
        }
    }

    // [S-2.4] [S-2.5]: a tied row is keys and values written out.
    #[test]
    fn a_tied_cache_is_its_keys_and_values_apart(
        (heads, group, s, n, r) in (1..4_usize, 1..4_usize, 1..6_usize, 0..6_usize, 1..4_usize),
        case in cases(),
    ) {
        let (n, h) = (n.min(s), heads * group);
        let tied = Case { geometry: Geometry::tied(h, heads, s, n, r).unwrap(), ..case };
        let separate =
            Case { geometry: Geometry::separate(h, heads, n + r, s).unwrap(), ..tied.clone() };
        let batch = tied.batch();
        let mut apart = batch.clone();
        for row in apart.iter_mut().flat_map(|plain| &mut plain.rows) {
            let [state, rope] = row.clone();
            let key = |state: &[f64]| [&state[..n], &rope].concat();
            *row = [state.chunks(s).flat_map(key).collect(), state];
        }
        let (tied, apart) =
            (tied.attend(MaskKind::Causal, &batch), separate.attend(MaskKind::Causal, &apart));
        prop_assert_eq!(attended_bits(&tied), attended_bits(&apart));
    }

    // [S-4.2] [S-4.3] [S-4.4] [S-3.21]
    #[test]
    fn pages_change_no_bit(case in cases(), other_seed in any::<u64>(), other in 1..12_usize) {
        let batch = case.batch();
        let base = case.attend(MaskKind::Causal, &batch);
        let moved = defined(&case.problem(), MaskKind::Causal, &batch, other, other_seed);
        prop_assert_eq!(attended_bits(&base), attended_bits(&moved));
    }

    // [S-3.13] [S-3.20]
    #[test]
    fn a_ragged_batch_is_each_sequence_alone(case in cases()) {
        let batch = case.batch();
        for mask in [MaskKind::Causal, MaskKind::Full] {
            let together = case.attend(mask, &batch);
            let mut alone = Vec::new();
            for plain in &batch {
                let out = case.attend(mask, std::slice::from_ref(plain));
                alone.push((out.o, out.rows));
            }
            let o: Vec<f64> = alone.iter().flat_map(|(o, _)| o.clone()).collect();
            let rows: Vec<_> = alone.into_iter().flat_map(|(_, rows)| rows).collect();
            prop_assert_eq!(together.o, o);
            prop_assert_eq!(together.rows, rows);
        }
    }

    // [S-3.13] [S-3.9]: parents are local to their sequence.
    #[test]
    fn a_batch_of_trees_is_each_tree_alone(case in cases()) {
        let mut numbers = Numbers(case.seed ^ 1);
        let lens = case.lens.iter().map(|&(q_len, prefix)| (q_len, prefix + q_len)).collect();
        let case = Case { lens, ..case };
        let batch = case.batch();
        let forests: Vec<Vec<i32>> =
            batch.iter().map(|plain| forest(&mut numbers, plain.q.len())).collect();
        let together = case.attend(MaskKind::Tree(&forests.concat()), &batch);
        let mut o = Vec::new();
        for (plain, parents) in batch.iter().zip(&forests) {
            let alone = case.attend(MaskKind::Tree(parents), std::slice::from_ref(plain));
            o.extend(alone.o);
        }
        prop_assert_eq!(together.o, o);
    }

    // [S-3.15] [S-3.16]: the prefix under full, the rest under causal, merged.
    #[test]
    fn parts_merge_to_the_whole(case in cases(), cut in 0..9_usize) {
        for (index, &(q_len, kv_len)) in case.lens.iter().enumerate() {
            let plain = case.batch().swap_remove(index);
            // Rows that see nothing see no part either, so the cut stays before the first query.
            let cut = cut.min(kv_len.saturating_sub(q_len));
            let (mut left, mut right) = (plain.clone(), plain.clone());
            left.rows.truncate(cut);
            right.rows.drain(..cut);
            let whole = case.attend(MaskKind::Causal, &[plain]);
            let mut merged = case.attend(MaskKind::Full, &[left]);
            let right = case.attend(MaskKind::Causal, &[right]);
            let d_v = case.geometry.width_v();
            for (row, expected) in whole.rows.iter().enumerate() {
                let part = row * d_v..(row + 1) * d_v;
                let (lse, right_lse) = (&mut merged.rows[row].lse, right.rows[row].lse);
                merge_row(&mut merged.o[part.clone()], lse, &right.o[part.clone()], right_lse);
                let close = |x: f64, y: f64, size: f64| x == y || (x - y).abs() <= 1e-12 * size;
                prop_assert!(close(*lse, expected.lse, expected.lse.abs().max(1.0)));
                for at in part {
                    // Relative to the envelope: o itself may cancel.
                    prop_assert!(close(merged.o[at], whole.o[at], whole.envelope[at]));
                }
            }
        }
    }

    // [S-3.11]
    #[test]
    fn a_chain_is_causal(case in drafts()) {
        let chain: Vec<i32> = (0..case.lens[0].0 as i32).map(|t| t - 1).collect();
        let batch = case.batch();
        let (tree, causal) =
            (case.attend(MaskKind::Tree(&chain), &batch), case.attend(MaskKind::Causal, &batch));
        prop_assert_eq!(attended_bits(&tree), attended_bits(&causal));
    }

    // [S-3.9]: a draft token is the end of the sequence that its ancestors spell.
    #[test]
    fn a_tree_is_its_paths(case in drafts()) {
        let plain = case.batch().remove(0);
        let (q_len, kv_len) = case.lens[0];
        let prefix = kv_len - q_len;
        let parents = forest(&mut Numbers(case.seed ^ 2), q_len);
        let tree = case.attend(MaskKind::Tree(&parents), std::slice::from_ref(&plain));
        let width = tree.o.len() / q_len;
        for t in 0..q_len {
            let mut path = vec![t];
            while let Ok(parent) = usize::try_from(parents[path[0]]) {
                path.insert(0, parent);
            }
            let mut rows = plain.rows[..prefix].to_vec();
            rows.extend(path.iter().map(|&at| plain.rows[prefix + at].clone()));
            let linear = Plain { q: vec![plain.q[t].clone()], rows };
            let alone = case.attend(MaskKind::Causal, &[linear]);
            prop_assert_eq!(bits(&tree.o[t * width..][..width]), bits(&alone.o));
        }
    }

    // [S-3.12]
    #[test]
    fn one_query_sees_the_same_under_full_and_causal(case in drafts()) {
        let case = Case { lens: vec![(1, case.lens[0].1)], ..case };
        let batch = case.batch();
        let (full, causal) =
            (case.attend(MaskKind::Full, &batch), case.attend(MaskKind::Causal, &batch));
        prop_assert_eq!(attended_bits(&full), attended_bits(&causal));
    }

    // [S-3.7] [S-3.8]: a chunk of queries is one query after another.
    #[test]
    fn a_chunk_is_token_by_token(case in cases()) {
        for (index, &(q_len, kv_len)) in case.lens.iter().enumerate() {
            let plain = case.batch().swap_remove(index);
            let chunk = case.attend(MaskKind::Causal, std::slice::from_ref(&plain));
            let mut o = Vec::new();
            for t in 0..q_len {
                let mut token = plain.clone();
                token.q = vec![plain.q[t].clone()];
                token.rows.truncate((kv_len + t + 1).saturating_sub(q_len));
                o.extend(case.attend(MaskKind::Full, &[token]).o);
            }
            prop_assert_eq!(bits(&chunk.o), bits(&o));
        }
    }

    // [S-1.2]: heads of one group are alike but for their queries.
    #[test]
    fn query_heads_of_a_group_may_be_exchanged(case in cases()) {
        let geometry = case.geometry;
        let mut numbers = Numbers(case.seed ^ 3);
        let mut order: Vec<usize> = (0..geometry.h_q()).collect();
        order.chunks_mut(geometry.group()).for_each(|group| numbers.shuffle(group));
        let exchange = |values: &[f64], width: usize| -> Vec<f64> {
            order.iter().flat_map(|&i| values[i * width..][..width].to_vec()).collect()
        };
        let batch = case.batch();
        let mut exchanged = batch.clone();
        for query in exchanged.iter_mut().flat_map(|plain| &mut plain.q) {
            *query = exchange(query, geometry.width_k());
        }
        let out = case.attend(MaskKind::Causal, &batch);
        let out_exchanged = case.attend(MaskKind::Causal, &exchanged);
        let width = geometry.h_q() * geometry.width_v();
        let o: Vec<f64> =
            out.o.chunks(width).flat_map(|token| exchange(token, geometry.width_v())).collect();
        prop_assert_eq!(o, out_exchanged.o);
    }

    // The engine is the definition, rounded to f32. [S-3.17] [S-7.1]
    #[test]
    fn the_engine_computes_the_definition(case in cases()) {
        let (problem, batch) = (case.problem(), case.batch());
        let lens = case.lens.iter().map(|&(_, kv_len)| kv_len);
        let (tables, pages) = tables(&mut Numbers(case.seed), case.page_size, lens);
        let step = writing_all(step_over(case.page_size, &batch, &tables, MaskKind::Causal));
        let layout = CacheLayout::new(case.geometry, Dtype::F32, case.page_size, pages).unwrap();
        let mut cache = Reference.create_cache(layout).unwrap();
        let rows: Vec<_> = batch.iter().flat_map(|plain| plain.rows.clone()).collect();
        append(&Reference, &problem, &step, &mut cache, &rows);
        let (o, lse) = attended(&Reference, &problem, &step, &cache, &packed(&batch));
        let exact = case.attend(MaskKind::Causal, &batch);
        prop_assert_eq!(o, exact.o.iter().map(|&x| Dtype::F32.round(x)).collect::<Vec<_>>());
        let exact_lse: Vec<_> = exact.rows.iter().map(|row| Dtype::F32.round(row.lse)).collect();
        prop_assert_eq!(lse, exact_lse);
    }

    // [S-4.8]
    #[test]
    fn a_rotating_append_is_rotation_and_then_append(
        (heads, width, separate) in (1..4_usize, 1..4_usize, any::<bool>()),
        interleaved in any::<bool>(),
        positions in prop::collection::vec(-50..5000_i64, 1..5),
        seed in any::<u64>(),
    ) {
        let r = 2 * width;
        let geometry = match separate {
            true => Geometry::separate(heads, heads, r, 3).unwrap(),
            false => Geometry::tied(heads, heads, 5, 3, r).unwrap(),
        };
        let style = if interleaved { RopeStyle::Interleaved } else { RopeStyle::HalfSplit };
        let rope = Rope::new(style, r, 100.0, RopeScaling::None).unwrap();
        let problem = Problem::new(geometry, Dtype::Bf16, 1.0).unwrap();
        let problem = problem.rotating(rope.clone()).unwrap();
        // Rows as the engine will hold them before it rotates.
        let mut plain = Plain::random(&mut Numbers(seed), &geometry, 0, positions.len());
        plain.rows.iter_mut().flatten().flatten().for_each(|x| *x = Dtype::Bf16.round(*x));
        let rotated: Vec<_> = plain.rows.iter().zip(&positions).map(|(row, &position)| {
            let mut row = row.clone();
            rope.rotate(&mut row[usize::from(!separate)], position);
            row
        }).collect();

        let (tables, pages) = tables(&mut Numbers(seed), 2, [positions.len()]);
        let step = step_over(2, std::slice::from_ref(&plain), &tables, MaskKind::Full);
        let mut writes = writing_all(step.clone()).writes().to_vec();
        writes.iter_mut().zip(&positions).for_each(|(write, &at)| write.position = at);
        let step = step.writing(writes).unwrap();

        let layout = CacheLayout::new(geometry, Dtype::Bf16, 2, pages).unwrap();
        let mut cache = Reference.create_cache(layout).unwrap();
        let plan = Reference.plan(Planning::new(&problem, &step)).unwrap();
        let (first, second) = row_tensors(&Reference, &problem, &plain.rows);
        let call = Append::rotating(&plan, &mut cache, &first, second.as_ref()).unwrap();
        Reference.append(call).unwrap();
        // `filled` rounds after the rotation, as `append` must.
        let expected = filled(&problem, &step, pages, &[Plain { rows: rotated, ..plain }]);
        for write in step.writes() {
            prop_assert_eq!(cache.first(write.slot), expected.first(write.slot));
            prop_assert_eq!(cache.second(write.slot), expected.second(write.slot));
        }
    }

    // [S-4.11] [S-4.15]: a fork and its origin grow as two copies of the prefix would.
    #[test]
    fn a_shared_prefix_is_two_copies(
        geometry in geometries(),
        prefix in 0..9_usize,
        cut in 0..9_usize,
        tails in [1..6_usize, 1..6_usize],
        page_size in 1..5_usize,
        seed in any::<u64>(),
    ) {
        let mut numbers = Numbers(seed);
        let shared = Plain::random(&mut numbers, &geometry, 0, prefix).rows;
        let mut layer = Layer::new(geometry, page_size);
        let origin = layer.tables.insert();
        layer.grow(origin, &shared);
        let (fork, copies) = layer.tables.fork(origin).unwrap();
        layer.copy(&copies);
        // The fork drops its end, so its next rows may fall into a full page that both share.
        let cut = cut.min(prefix);
        layer.tables.truncate(fork, cut).unwrap();
        let mut expected = [shared.clone(), shared[..cut].to_vec()];
        for (index, sequence) in [origin, fork].into_iter().enumerate() {
            let rows = &mut expected[index];
            let tail = Plain::random(&mut numbers, &geometry, 0, tails[index]).rows;
            layer.grow(sequence, &tail);
            rows.extend(tail);
        }
        for (sequence, rows) in [origin, fork].into_iter().zip(expected) {
            let q = Plain::random(&mut numbers, &geometry, 1, 0).q;
            let copy = Plain { q: q.clone(), rows };
            let alone = defined(&layer.problem, MaskKind::Causal, &[copy], 3, seed);
            let step = layer.tables.step(&[(sequence, 1)], MaskKind::Causal).unwrap();
            let (o, _) = attended(&Reference, &layer.problem, &step, &layer.cache, &q[0]);
            prop_assert_eq!(o, alone.o.iter().map(|&x| Dtype::F32.round(x)).collect::<Vec<_>>());
        }
    }

    // [S-4.13]: an accepted path is the sequence that never had the rest of the tree.
    #[test]
    fn a_kept_path_is_the_linear_sequence(
        case in drafts(),
        forked in any::<bool>(),
        pick in any::<u64>(),
    ) {
        let plain = case.batch().remove(0);
        let (q_len, kv_len) = case.lens[0];
        let mut layer = Layer::new(case.geometry, case.page_size);
        let mut sequence = layer.tables.insert();
        layer.grow(sequence, &plain.rows);
        let origin = sequence;
        if forked {
            let (fork, copies) = layer.tables.fork(origin).unwrap();
            layer.copy(&copies);
            sequence = fork;
        }
        let path: Vec<usize> = (0..q_len).filter(|t| pick >> t & 1 == 1).collect();
        let copies = layer.tables.keep(sequence, q_len, &path).unwrap();
        layer.copy(&copies);
        let mut kept = plain.rows[..kv_len - q_len].to_vec();
        kept.extend(path.iter().map(|&t| plain.rows[kv_len - q_len + t].clone()));
        let mut expected = vec![(sequence, kept)];
        if forked {
            expected.push((origin, plain.rows.clone()));
        }
        for (sequence, rows) in expected {
            prop_assert_eq!(layer.rows(sequence), rows);
        }
    }
}

/// Page tables and one layer's cache under them.
struct Layer {
    problem: Problem,
    tables: PageTables,
    cache: grouped_attention::ReferenceCache,
}

impl Layer {
    fn new(geometry: Geometry, page_size: usize) -> Layer {
        let pages = 64;
        let layout = CacheLayout::new(geometry, Dtype::F32, page_size, pages).unwrap();
        Layer {
            problem: Problem::new(geometry, Dtype::F32, 0.37).unwrap(),
            tables: PageTables::new(page_size, pages).unwrap(),
            cache: Reference.create_cache(layout).unwrap(),
        }
    }

    fn copy(&mut self, copies: &[RowCopy]) {
        Reference.copy_rows(CopyRows::new(&mut self.cache, copies).unwrap()).unwrap();
    }

    /// Reserve, copy, append. [S-4.6]
    fn grow(&mut self, sequence: SequenceId, rows: &[common::CachedRow]) {
        let copies = self.tables.extend(sequence, rows.len()).unwrap();
        self.copy(&copies);
        let step = self.tables.step(&[(sequence, rows.len())], MaskKind::Causal).unwrap();
        append(&Reference, &self.problem, &step, &mut self.cache, rows);
    }

    fn rows(&self, sequence: SequenceId) -> Vec<common::CachedRow> {
        let len = self.tables.len(sequence).unwrap();
        let step = self.tables.step(&[(sequence, 0)], MaskKind::Causal).unwrap();
        let slot = |j| step.slot(&step.spans()[0], j);
        (0..len)
            .map(|j| [self.cache.first(slot(j)).to_vec(), self.cache.second(slot(j)).to_vec()])
            .collect()
    }
}

// [S-4.8]: a rope of width 0 is legal where r = 0, and turns nothing.
#[test]
fn a_row_without_rope_key_rotates_nothing() {
    let geometry = Geometry::gla(2, 1, 3, 0).unwrap();
    let rope = Rope::new(RopeStyle::HalfSplit, 0, 100.0, RopeScaling::None).unwrap();
    let problem = Problem::new(geometry, Dtype::F32, 1.0).unwrap().rotating(rope).unwrap();
    let mut layer = Layer::new(geometry, 2);
    let sequence = layer.tables.insert();
    layer.tables.extend(sequence, 1).unwrap();
    let step = layer.tables.step(&[(sequence, 1)], MaskKind::Causal).unwrap();
    let plan = Reference.plan(Planning::new(&problem, &step)).unwrap();
    let state = tensor(&Reference, Dtype::F32, &[1, 1, 3], &[1.0, 2.0, 3.0]);
    Reference.append(Append::rotating(&plan, &mut layer.cache, &state, None).unwrap()).unwrap();
    assert_eq!(layer.rows(sequence), [[vec![1.0, 2.0, 3.0], vec![]]]);
    assert!(matches!(geometry.row(), Row::Tied { r: 0, .. }));
}
