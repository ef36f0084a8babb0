//! Masks: golden draws, statistics of the laws, edges, and packing.

use bdhs::Error;
use bdhs::ops::mask::{Kept, MaskScheme, Packed, Piece, Positions, Row, TokenGrid, draw, pack};
use bdhs::ops::philox::{Draws, Purpose, WHOLE_RESPONSE};
use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;

const DRAWS: Draws = Draws { seed: 2_407_024_770, sample: 7, attempt: 2 };
/// Tokens 0, 1 and 17..20 lie outside, and so do 6, 11 and 16, the newlines.
const GRID: TokenGrid = TokenGrid { start: 2, rows: 3, cols: 4, stride: 5 };

fn row(draws: Draws, tokens: usize, grids: &[TokenGrid]) -> Row<'_> {
    Row { draws, sentence: 0, tokens, grids }
}

fn kept(law: MaskScheme, exempt: bool) -> Vec<u32> {
    draw(law, &[row(DRAWS, 20, &[GRID])], exempt).unwrap().indices
}

/// Written out by an independent implementation, bit for bit.
#[test]
fn golden_masks() {
    let words: Vec<u32> = (0..20).map(|i| DRAWS.word(Purpose::Mask, 0, i)).collect();
    let want = [
        0x5146_fb8f_u32,
        0xbeaa_701b,
        0x898f_f10d,
        0x3179_84c2,
        0x9247_3f52,
        0xa6d3_3056,
        0xeb79_b52d,
        0xf103_f109,
        0x0e62_4769,
        0x4aa1_0d46,
        0x4630_491d,
        0xeebe_e417,
        0xe05f_0027,
        0xe2f4_e79d,
        0x3804_8f02,
        0x250a_165d,
        0x7015_44ea,
        0x0961_ff9c,
        0xc541_eb3a,
        0x6890_e2eb,
    ];
    assert_eq!(words, want);
    assert_eq!(kept(MaskScheme::Bernoulli { rho: 0.7 }, false), [1, 6, 7, 11, 12, 13, 18]);
    assert_eq!(kept(MaskScheme::ExactK { rho: 0.7 }, false), [3, 8, 10, 14, 15, 17]);
    let blocks = MaskScheme::Blocks { rho: 0.5, block: 2 };
    assert_eq!(kept(blocks, false), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 18]);
    assert_eq!(
        kept(MaskScheme::Bernoulli { rho: 0.7 }, true),
        [0, 1, 6, 7, 11, 12, 13, 16, 17, 18, 19]
    );
    assert_eq!(
        kept(MaskScheme::ExactK { rho: 0.7 }, true),
        [0, 1, 3, 6, 8, 11, 14, 15, 16, 17, 18, 19]
    );
    let unguided = Row { draws: DRAWS, sentence: WHOLE_RESPONSE, tokens: 20, grids: &[] };
    let got = draw(MaskScheme::Bernoulli { rho: 0.7 }, &[unguided], false).unwrap();
    assert_eq!(got.indices, [1, 2, 5, 6, 7, 9, 11, 15, 16, 18]);
}

#[test]
fn bitmask_is_the_same_set() {
    let rows = [row(DRAWS, 0, &[]), row(DRAWS, 20, &[]), row(DRAWS, 33, &[]), row(DRAWS, 64, &[])];
    let kept = draw(MaskScheme::Bernoulli { rho: 0.5 }, &rows, false).unwrap();
    let mask = kept.bitmask();
    assert_eq!(mask.starts, [0, 0, 1, 3, 5]);
    for (r, row) in rows.iter().enumerate() {
        let bits: Vec<u32> = (0..32 * (mask.starts[r + 1] - mask.starts[r]) as u32)
            .filter(|&i| mask.words[mask.starts[r] + i as usize / 32] >> (i % 32) & 1 == 1)
            .collect();
        assert_eq!(bits, kept.row(r));
        assert!(bits.iter().all(|&i| (i as usize) < row.tokens));
    }
    // Row 1, by the golden words: those >= 2^31.
    let want = [1, 2, 4, 5, 6, 7, 11, 12, 13, 18].iter().fold(0u32, |bits, i| bits | 1 << i);
    assert_eq!(mask.words[0], want);
}

#[test]
fn extremes_keep_all_or_none() {
    for law in [
        |rho| MaskScheme::Bernoulli { rho },
        |rho| MaskScheme::ExactK { rho },
        |rho| MaskScheme::Blocks { rho, block: 3 },
    ] {
        let all: Vec<u32> = (0..20).collect();
        assert_eq!(kept(law(0.0), false), all);
        assert_eq!(kept(law(1.0), false), [0u32; 0]);
        assert_eq!(kept(law(1.0), true), [0, 1, 6, 11, 16, 17, 18, 19]);
        // The smallest share above zero drops no word but 0.
        assert_eq!(kept(law(f64::MIN_POSITIVE), false), all);
    }
}

/// A share that falls on a token's own word: at word / 2^32 it stays, half a step above it goes.
#[test]
fn threshold_is_the_ceiling() {
    for token in 0..20u32 {
        let word = f64::from(DRAWS.word(Purpose::Mask, 0, u64::from(token)));
        for (step, stays) in [(-0.5, true), (0.0, true), (0.5, false), (1.0, false)] {
            let law = MaskScheme::Bernoulli { rho: (word + step) / 2f64.powi(32) };
            assert_eq!(kept(law, false).contains(&token), stays, "token {token}, step {step}");
        }
    }
}

#[test]
fn exact_count() {
    for (n, rho, k) in
        [(2880, 0.99, 29), (5, 0.9, 1), (5, 0.7, 2), (1, 0.5, 1), (10, 0.25, 8), (3, 1.0, 0)]
    {
        let got = draw(MaskScheme::ExactK { rho }, &[row(DRAWS, n, &[])], false).unwrap();
        assert_eq!(got.indices.len(), k, "n {n} rho {rho}");
    }
}

#[test]
fn many_rows_are_the_single_rows() {
    let grids = [
        TokenGrid { start: 0, rows: 6, cols: 6, stride: 6 },
        TokenGrid { start: 36, rows: 4, cols: 9, stride: 10 },
    ];
    let rows: Vec<Row> = (0..50)
        .map(|i| row(Draws { seed: 9, sample: i / 5, attempt: 1 + i % 5 }, 76 + i as usize, &grids))
        .collect();
    for law in [
        MaskScheme::Bernoulli { rho: 0.8 },
        MaskScheme::ExactK { rho: 0.8 },
        MaskScheme::Blocks { rho: 0.8, block: 4 },
    ] {
        for exempt in [false, true] {
            let together = draw(law, &rows, exempt).unwrap();
            assert_eq!(together.rows(), 50);
            assert_eq!(together.cu_seqlens.len(), 51);
            for (r, row) in rows.iter().enumerate() {
                assert_eq!(together.row(r), draw(law, &[*row], exempt).unwrap().indices);
            }
        }
    }
    assert_eq!(
        draw(MaskScheme::Bernoulli { rho: 0.5 }, &[], false).unwrap(),
        Kept { cu_seqlens: vec![0], ..Kept::default() }
    );
}

/// A square stays whole or goes whole, and squares are independent.
#[test]
fn blocks_are_whole() {
    let grid = TokenGrid { start: 3, rows: 7, cols: 5, stride: 6 };
    let mut kept_squares = 0;
    for attempt in 0..500 {
        let draws = Draws { attempt, ..DRAWS };
        let kept =
            draw(MaskScheme::Blocks { rho: 0.6, block: 3 }, &[row(draws, 50, &[grid])], false)
                .unwrap();
        for r in 0..7 {
            for c in 0..5 {
                let token = (3 + r * 6 + c) as u32;
                let corner = (3 + r / 3 * 3 * 6 + c / 3 * 3) as u32;
                assert_eq!(kept.indices.contains(&token), kept.indices.contains(&corner));
                kept_squares += usize::from(token == corner && kept.indices.contains(&corner));
            }
        }
    }
    // 6 squares x 500, kept with 0.4: 1200 +- 27.
    assert!((1090..1310).contains(&kept_squares), "{kept_squares}");
}

/// Bernoulli inclusion: chi-square of 64 tokens over 20,000 masks, 64 degrees of freedom, deviation 11.3.
#[test]
fn bernoulli_inclusion() {
    let (n, masks, rho) = (64, 20_000u32, 0.9);
    let rows: Vec<Row> =
        (0..masks).map(|i| row(Draws { seed: 3, sample: i, attempt: 1 }, n, &[])).collect();
    let kept = draw(MaskScheme::Bernoulli { rho }, &rows, false).unwrap();
    let mut counts = vec![0f64; n];
    for &i in &kept.indices {
        counts[i as usize] += 1.0;
    }
    let p = 1.0 - rho;
    let m = f64::from(masks);
    let chi2: f64 = counts.iter().map(|c| (c - m * p).powi(2) / (m * p * (1.0 - p))).sum();
    assert!((25.0..125.0).contains(&chi2), "chi-square {chi2}");
}

/// All 20 subsets of 3 out of 6 are equally likely: chi-square with 19 degrees of freedom.
#[test]
fn exact_k_is_uniform_over_subsets() {
    let masks = 40_000u32;
    let rows: Vec<Row> =
        (0..masks).map(|i| row(Draws { seed: 4, sample: i, attempt: 1 }, 6, &[])).collect();
    let kept = draw(MaskScheme::ExactK { rho: 0.5 }, &rows, false).unwrap();
    let mut counts = std::collections::BTreeMap::new();
    for r in 0..rows.len() {
        *counts.entry(kept.row(r).to_vec()).or_insert(0f64) += 1.0;
    }
    assert_eq!(counts.len(), 20);
    let chi2: f64 = counts.values().map(|c| (c - 2000.0).powi(2) / 2000.0).sum();
    assert!(chi2 < 50.0, "chi-square {chi2}");
}

/// Inclusion and pairwise inclusion of 8 out of 40, against k/n and k(k-1)/(n(n-1)).
#[test]
fn exact_k_inclusion_and_pairs() {
    let (n, k, masks) = (40usize, 8f64, 30_000u32);
    let rows: Vec<Row> =
        (0..masks).map(|i| row(Draws { seed: 5, sample: 1, attempt: i }, n, &[])).collect();
    let kept = draw(MaskScheme::ExactK { rho: 0.8 }, &rows, false).unwrap();
    let mut pairs = vec![0f64; n * n];
    for r in 0..rows.len() {
        for &i in kept.row(r) {
            for &j in kept.row(r) {
                pairs[i as usize * n + j as usize] += 1.0;
            }
        }
    }
    let (m, nf) = (f64::from(masks), n as f64);
    let single = k / nf;
    let both = k * (k - 1.0) / (nf * (nf - 1.0));
    // With k fixed the inclusions are correlated by -1/(n-1), which the factor undoes: n-1 = 39 degrees, deviation 8.8.
    let chi2: f64 = (0..n)
        .map(|i| (pairs[i * n + i] - m * single).powi(2) / (m * single * (1.0 - single)))
        .sum::<f64>()
        * (nf - 1.0)
        / nf;
    assert!((10.0..85.0).contains(&chi2), "inclusion chi-square {chi2}");
    let mut sum = 0.0;
    for i in 0..n {
        for j in 0..i {
            let z = (pairs[i * n + j] - m * both) / (m * both * (1.0 - both)).sqrt();
            assert!(z.abs() < 5.0, "pair {i} {j}: z {z}");
            sum += z * z;
        }
    }
    // 780 pairs of unit variance each: mean 780 whatever their correlation, deviation about 40.
    assert!((600.0..980.0).contains(&sum), "pairwise chi-square {sum}");
}

fn message(result: bdhs::Result<impl Sized>) -> String {
    match result {
        Err(e @ Error::Argument { .. }) => e.to_string(),
        Err(e) => panic!("another error: {e}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn bad_arguments_are_named() {
    let one = [row(DRAWS, 20, &[])];
    for rho in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let text = message(draw(MaskScheme::ExactK { rho }, &one, false));
        assert!(text.contains("rho") && text.contains(&rho.to_string()), "{text}");
    }
    assert!(
        message(draw(MaskScheme::Blocks { rho: 0.5, block: 0 }, &one, false)).contains("block")
    );
    for grid in [
        TokenGrid { start: 10, rows: 3, cols: 4, stride: 4 },
        TokenGrid { start: 0, rows: 2, cols: 4, stride: 3 },
        TokenGrid { start: usize::MAX, rows: 1, cols: 1, stride: 1 },
        TokenGrid { start: 0, rows: usize::MAX, cols: 1, stride: usize::MAX },
    ] {
        let grids = [grid];
        let rows = [one[0], row(DRAWS, 20, &grids)];
        let text = message(draw(MaskScheme::Bernoulli { rho: 0.5 }, &rows, false));
        assert!(text.contains("row 1"), "{text}");
    }
    let overlap = [GRID, TokenGrid { start: 5, rows: 1, cols: 1, stride: 1 }];
    assert!(
        message(draw(MaskScheme::Bernoulli { rho: 0.5 }, &[row(DRAWS, 20, &overlap)], false))
            .contains("shared")
    );
    let sentence = Row { sentence: 1 << 24, ..one[0] };
    assert!(message(draw(MaskScheme::Bernoulli { rho: 0.5 }, &[sentence], false)).contains("2^24"));
}

fn source(rows: usize, hidden: usize, offset: f32, dtype: DType) -> Tensor {
    let values: Vec<f32> = (0..rows * hidden).map(|i| i as f32 + offset).collect();
    Tensor::from_vec(values, (rows, hidden), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn values(packed: &Packed) -> Vec<Vec<f32>> {
    packed.rows.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

#[test]
fn packing_by_hand() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let (text, image) = (source(5, 1, 0.0, dtype), source(6, 1, 100.0, dtype));
        let first = [
            Piece::Rows { source: 0, start: 0, len: 2 },
            Piece::Kept { source: 1, start: 1, tokens: 5, indices: &[0, 3] },
            Piece::Rows { source: 0, start: 3, len: 2 },
        ];
        let second = [
            Piece::Kept { source: 1, start: 0, tokens: 6, indices: &[5] },
            Piece::Rows { source: 0, start: 4, len: 1 },
        ];
        let sequences: [&[Piece]; 3] = [&first, &[], &second];
        let got = pack(&[&text, &image], &sequences, Positions::Original).unwrap();
        assert_eq!(got.rows.dtype(), dtype);
        assert_eq!(values(&got).concat(), [0.0, 1.0, 101.0, 104.0, 3.0, 4.0, 105.0, 4.0]);
        assert_eq!(got.positions, [0, 1, 2, 5, 7, 8, 5, 6]);
        assert_eq!(got.cu_seqlens, [0, 6, 6, 8]);
        let got = pack(&[&text, &image], &sequences, Positions::Compact).unwrap();
        assert_eq!(values(&got).concat(), [0.0, 1.0, 101.0, 104.0, 3.0, 4.0, 105.0, 4.0]);
        assert_eq!(got.positions, [0, 1, 2, 3, 4, 5, 0, 1]);
    }
}

#[test]
fn packing_reads_strided_sources_and_empty_lists() {
    let strided = source(3, 4, 0.0, DType::F32).t().unwrap();
    let narrowed = source(9, 3, 50.0, DType::F32).narrow(0, 4, 3).unwrap();
    let pieces =
        [Piece::Rows { source: 0, start: 1, len: 2 }, Piece::Rows { source: 1, start: 2, len: 1 }];
    let got = pack(&[&strided, &narrowed], &[&pieces], Positions::Original).unwrap();
    assert_eq!(values(&got), [[1.0, 5.0, 9.0], [2.0, 6.0, 10.0], [68.0, 69.0, 70.0]]);
    for sequences in [&[][..], &[&[][..]]] {
        let got = pack(&[&narrowed], sequences, Positions::Original).unwrap();
        assert_eq!(got.rows.dims(), [0, 3]);
        assert_eq!(got.cu_seqlens, vec![0; sequences.len() + 1]);
    }
}

#[test]
fn packing_passes_gradients() {
    let image = Var::from_tensor(&source(4, 2, 0.0, DType::F32)).unwrap();
    let text = source(2, 2, 9.0, DType::F32);
    let pieces = [
        Piece::Kept { source: 1, start: 0, tokens: 4, indices: &[1, 3] },
        Piece::Rows { source: 0, start: 0, len: 2 },
        Piece::Kept { source: 1, start: 0, tokens: 4, indices: &[3] },
    ];
    let got = pack(&[&text, image.as_tensor()], &[&pieces], Positions::Original).unwrap();
    assert_eq!(values(&got), [[2.0, 3.0], [6.0, 7.0], [9.0, 10.0], [11.0, 12.0], [6.0, 7.0]]);
    let grads = got.rows.sum_all().unwrap().backward().unwrap();
    let grad: Vec<Vec<f32>> = grads.get(&image).unwrap().to_vec2().unwrap();
    assert_eq!(grad, [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]);
}

#[test]
fn packing_refuses_what_does_not_fit() {
    let (a, b) = (source(3, 2, 0.0, DType::F32), source(3, 4, 0.0, DType::F32));
    let half = source(3, 2, 0.0, DType::F16);
    let double = source(3, 2, 0.0, DType::F32).to_dtype(DType::F64).unwrap();
    let scalar = Tensor::new(1f32, &Device::Cpu).unwrap();
    for sources in [&[][..], &[&a, &b], &[&a, &half], &[&double], &[&scalar]] {
        assert!(message(pack(sources, &[], Positions::Original)).contains("sources"));
    }
    for piece in [
        Piece::Rows { source: 1, start: 0, len: 1 },
        Piece::Rows { source: 0, start: 2, len: 2 },
        Piece::Rows { source: 0, start: usize::MAX, len: 1 },
        Piece::Kept { source: 0, start: 1, tokens: 3, indices: &[] },
        Piece::Kept { source: 0, start: 0, tokens: 3, indices: &[1, 1] },
        Piece::Kept { source: 0, start: 0, tokens: 2, indices: &[2] },
    ] {
        let text = message(pack(&[&a], &[&[], &[piece]], Positions::Original));
        assert!(text.contains("piece 0 of sequence 1"), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against the law written naively, word by word.
    #[test]
    fn laws_match_their_definition(
        seed: u64, sample: u32, attempt in 0u32..9, tokens in 0usize..200, rho in 0f64..=1.0, block in 1usize..6,
        start in 0usize..20, rows in 0usize..8, cols in 0usize..8, gap in 0usize..3, exempt: bool,
    ) {
        let grid = TokenGrid { start, rows, cols, stride: cols + gap };
        let draws = Draws { seed, sample, attempt };
        let grids = [grid];
        let cell = |i: usize| {
            (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))).find(|(r, c)| start + r * grid.stride + c == i)
        };
        let fits = rows == 0 || cols == 0 || start + (rows - 1) * grid.stride + cols <= tokens;
        let row = [row(draws, tokens, &grids)];
        let word = |i: usize| draws.word(Purpose::Mask, 0, i as u64);
        let bar = (rho * 2f64.powi(32)).ceil();
        if !fits {
            let refused = draw(MaskScheme::Bernoulli { rho }, &row, exempt).is_err();
            prop_assert!(refused);
            return Ok(());
        }
        let free = |i: usize| exempt && cell(i).is_none();
        let want: Vec<u32> = (0..tokens).filter(|&i| free(i) || f64::from(word(i)) >= bar).map(|i| i as u32).collect();
        prop_assert_eq!(draw(MaskScheme::Bernoulli { rho }, &row, exempt).unwrap().indices, want);

        let want: Vec<u32> = (0..tokens)
            .filter(|&i| {
                let drawn = cell(i).map_or(i, |(r, c)| start + r / block * block * grid.stride + c / block * block);
                free(i) || f64::from(word(drawn)) >= bar
            })
            .map(|i| i as u32)
            .collect();
        prop_assert_eq!(draw(MaskScheme::Blocks { rho, block }, &row, exempt).unwrap().indices, want);

        let mut order: Vec<usize> = (0..tokens).filter(|&i| !free(i)).collect();
        let k = (order.len() as f64 - rho * order.len() as f64).round() as usize;
        order.sort_by_key(|&i| (word(i), i));
        let mut want: Vec<u32> = order[..k].iter().map(|&i| i as u32).collect();
        want.extend((0..tokens).filter(|&i| free(i)).map(|i| i as u32));
        want.sort_unstable();
        prop_assert_eq!(draw(MaskScheme::ExactK { rho }, &row, exempt).unwrap().indices, want);
    }
}
