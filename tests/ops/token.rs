//! Token sampling against a float64 reference, frequencies, and edges.

use bdhs::ops::philox::{Draws, Purpose};
use bdhs::ops::token::{Params, Row, Sampled, sample};
use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

use crate::exact::{check, reference};

fn draws(sample: u32) -> Draws {
    Draws { seed: 42, sample, attempt: 1 }
}

fn row(params: Params, sample: u32, history: &[u32]) -> Row<'_> {
    Row { params, draws: draws(sample), sentence: 0, step: u64::from(sample % 7), history }
}

fn logits(rows: usize, vocab: usize, values: Vec<f32>) -> Tensor {
    Tensor::from_vec(values, (rows, vocab), &Device::Cpu).unwrap()
}

fn params() -> impl Strategy<Value = Params> {
    (
        prop_oneof![Just(0.0), 0.2f64..3.0],
        prop_oneof![Just(0usize), 1usize..50],
        prop_oneof![Just(1.0), 0.05f64..1.0],
        prop_oneof![Just(0.0), 0.0f64..0.5],
        prop_oneof![Just(1.0), 0.5f64..2.0],
    )
        .prop_map(|(temperature, top_k, top_p, min_p, repetition_penalty)| Params {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random logits: all settings together, three dtypes, against the reference.
    #[test]
    fn matches_the_reference(
        vocab in 1usize..3000, spread in 0.1f32..12.0, p in params(), seed: u32, dtype in 0usize..3,
        history in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let noise = Draws { seed: 1, sample: seed, attempt: 0 };
        // Coarse steps in half types give ties; a few tokens are banned.
        let values: Vec<f32> = (0..vocab as u64)
            .map(|i| match noise.uniform(Purpose::Noise, 0, i) {
                u if u < 0.01 && i > 0 => f32::NEG_INFINITY,
                u => (u as f32 - 0.6) * spread,
            })
            .collect();
        let tensor = logits(1, vocab, values).to_dtype([DType::F32, DType::F16, DType::BF16][dtype]).unwrap();
        let history: Vec<u32> = history.iter().map(|i| i.index(vocab) as u32).collect();
        let row = row(p, seed, &history);
        let got = sample(&tensor, &[row]).unwrap()[0];
        let wide: Vec<f32> = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let probs = reference(&wide.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), &p, &history);
        if p.temperature == 0.0 {
            let best = probs.iter().copied().fold(0.0, f64::max);
            let at = got.token as usize;
            // f32 penalties may merge two logits that f64 tells apart.
            prop_assert!(probs[at] >= best * (1.0 - 1e-5));
            prop_assert!((f64::from(got.log_prob) - probs[at].ln()).abs() < 1e-4);
        } else {
            let u = row.draws.uniform(Purpose::Token, 0, row.step);
            let outcome = check(got, &probs, u);
            // The filters are discontinuous: a token on their very edge may fall the other way in f32.
            prop_assert!(outcome.is_ok() || on_an_edge(&wide, &p, &history), "{:?} {:?}", outcome, p);
        }
    }
}

/// Whether moving top-p or min-p by a relative 1e-5 changes which tokens stay.
fn on_an_edge(logits: &[f32], p: &Params, history: &[u32]) -> bool {
    let logits: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    let kept =
        |p: &Params| reference(&logits, p, history).iter().map(|&w| w > 0.0).collect::<Vec<_>>();
    let here = kept(p);
    [1.0 - 1e-5, 1.0 + 1e-5].into_iter().any(|f| {
        let top_p = if p.top_p < 1.0 { (p.top_p * f).min(1.0) } else { 1.0 };
        kept(&Params { top_p, min_p: p.min_p * f, ..*p }) != here
    })
}

/// A wide vocabulary in every path: top-p must extend past its first block, and the inverse past its first span.
#[test]
fn wide_vocabulary() {
    let vocab = 150_000;
    let noise = Draws { seed: 8, sample: 0, attempt: 0 };
    let values: Vec<f32> =
        (0..vocab).map(|i| noise.uniform(Purpose::Noise, 0, i) as f32 * 3.0).collect();
    let wide: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
    let tensor = logits(1, vocab as usize, values);
    for params in [
        Params::default(),
        Params { top_p: 0.9, ..Params::default() },
        Params { top_k: 5000, top_p: 0.5, ..Params::default() },
        Params { top_k: 40, ..Params::default() },
        Params { temperature: 0.05, min_p: 0.1, ..Params::default() },
    ] {
        let probs = reference(&wide, &params, &[]);
        for s in 0..4 {
            let row = row(params, s, &[]);
            let got = sample(&tensor, &[row]).unwrap()[0];
            check(got, &probs, row.draws.uniform(Purpose::Token, 0, row.step)).unwrap();
        }
    }
}

/// Frequencies of 10^6 draws under filters that leave 9 of 16 tokens; the others never come up.
#[test]
fn frequencies() {
    let base: Vec<f32> = (0..16).map(|i| ((i * 7) % 16) as f32 * 0.21).collect();
    let params =
        Params { temperature: 0.9, top_k: 12, top_p: 0.95, min_p: 0.2, repetition_penalty: 1.2 };
    let history = [5, 5, 9];
    let probs =
        reference(&base.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), &params, &history);
    let support = probs.iter().filter(|&&p| p > 0.0).count();
    assert!((4..14).contains(&support), "the filters bite: {support}");
    let (batches, size) = (10u32, 100_000u32);
    let tensor = logits(1, 16, base).broadcast_as((size as usize, 16)).unwrap();
    let mut counts = [0f64; 16];
    for batch in 0..batches {
        let rows: Vec<Row> = (0..size)
            .map(|i| Row { params, draws: draws(i), sentence: batch, step: 3, history: &history })
            .collect();
        for got in sample(&tensor, &rows).unwrap() {
            counts[got.token as usize] += 1.0;
        }
    }
    let n = f64::from(batches * size);
    let mut chi2 = 0.0;
    for (count, p) in counts.iter().zip(&probs) {
        if *p == 0.0 {
            assert_eq!(*count, 0.0);
        } else {
            chi2 += (count - n * p).powi(2) / (n * p);
        }
    }
    // support - 1 degrees of freedom, at most 12: P(chi2 > 40) < 1e-4.
    assert!(chi2 < 40.0, "chi-square {chi2}, counts {counts:?}");
}

#[test]
fn a_row_does_not_see_its_batch() {
    let vocab = 700;
    let noise = Draws { seed: 6, sample: 0, attempt: 0 };
    let values: Vec<f32> =
        (0..40 * vocab as u64).map(|i| noise.uniform(Purpose::Noise, 0, i) as f32 * 8.0).collect();
    let tensor = logits(40, vocab, values);
    let history = [1, 2, 3];
    let rows: Vec<Row> = (0..40)
        .map(|i| {
            let params = match i % 4 {
                0 => Params::GREEDY,
                1 => Params { top_k: 5, repetition_penalty: 1.3, ..Params::default() },
                2 => Params { temperature: 0.7, top_p: 0.8, ..Params::default() },
                _ => Params { min_p: 0.3, ..Params::default() },
            };
            row(params, i, &history)
        })
        .collect();
    let together = sample(&tensor, &rows).unwrap();
    for (i, row) in rows.iter().enumerate() {
        let alone = sample(&tensor.narrow(0, i, 1).unwrap(), &[*row]).unwrap();
        assert_eq!(alone[0], together[i]);
    }
    assert_eq!(sample(&tensor, &rows).unwrap(), together);
}

/// Strided logits, ties, and what the filters do, worked out by hand.
#[test]
fn hand_cases() {
    let greedy = [row(Params::GREEDY, 0, &[])];
    let got = sample(&logits(1, 4, vec![1.0, 3.0, 3.0, -1.0]), &greedy).unwrap()[0];
    assert_eq!(got.token, 1, "the lower index of a tie");
    let z = 2.0 * 1.0 + (-2f64).exp() + (-4f64).exp();
    assert!((f64::from(got.log_prob) + z.ln()).abs() < 1e-6);

    // The penalty moves the best token below the second, a negative one further down.
    let penalty = Params { repetition_penalty: 2.0, ..Params::GREEDY };
    let got =
        sample(&logits(1, 3, vec![3.0, 2.0, -1.0]), &[row(penalty, 0, &[0, 0, 2])]).unwrap()[0];
    assert_eq!(got.token, 1);
    let z = (1.5f64 - 2.0).exp() + 1.0 + (-2f64 - 2.0).exp();
    assert!((f64::from(got.log_prob) + z.ln()).abs() < 1e-6);

    // One token left: certain.
    for params in [
        Params { top_k: 1, ..Params::default() },
        Params { top_p: 1e-9, ..Params::default() },
        Params { min_p: 1.0, ..Params::default() },
        Params { temperature: 1e-4, ..Params::default() },
    ] {
        let tensor = logits(3, 1, vec![0.0, 2.0, 1.0]).t().unwrap();
        assert_eq!(
            sample(&tensor, &[row(params, 5, &[])]).unwrap()[0],
            Sampled { token: 1, log_prob: 0.0 }
        );
    }

    // Ties with the k-th stay; ties in top-p go by index.
    let ties = logits(1, 4, vec![1.0; 4]);
    for (params, support) in [
        (Params { top_k: 2, ..Params::default() }, 4),
        (Params { top_p: 0.5, ..Params::default() }, 2),
    ] {
        for s in 0..50 {
            let got = sample(&ties, &[row(params, s, &[])]).unwrap()[0];
            assert!(got.token < support);
            assert!((got.log_prob + (support as f32).ln()).abs() < 1e-6);
        }
    }
    assert_eq!(sample(&logits(0, 4, vec![]), &[]).unwrap(), []);
    assert_eq!(
        sample(&logits(1, 1, vec![-7.0]), &[row(Params::default(), 0, &[])]).unwrap()[0].log_prob,
        0.0
    );
}

/// The support and probabilities that transformers 5.23 gives with the same settings (its processors in `generate`'s order).
#[test]
fn agrees_with_transformers() {
    let values = vec![1.5, -0.75, 3.0, 0.25, 2.0, 2.0, -2.5, 1.0, 0.5, 2.75, -1.25, 1.75];
    let tensor = logits(1, 12, values);
    let history = [2, 6, 2, 9];
    let cases: [(Params, &[(u32, f64)]); 5] = [
        (
            Params { temperature: 0.7, top_p: 0.8, ..Params::default() },
            &[(2, 0.458931460), (4, 0.109983400), (5, 0.109983400), (9, 0.321101739)],
        ),
        (
            Params { temperature: 1.3, top_k: 5, ..Params::default() },
            &[
                (2, 0.319071275),
                (4, 0.147847855),
                (5, 0.147847855),
                (9, 0.263250702),
                (11, 0.121982312),
            ],
        ),
        (
            Params { min_p: 0.1, ..Params::default() },
            &[
                (0, 0.070621316),
                (2, 0.316502780),
                (4, 0.116434866),
                (5, 0.116434866),
                (7, 0.042833993),
                (9, 0.246492613),
                (11, 0.090679565),
            ],
        ),
        (
            Params { temperature: 0.9, top_k: 8, top_p: 0.9, min_p: 0.15, repetition_penalty: 1.3 },
            &[
                (0, 0.097650241),
                (2, 0.239565777),
                (4, 0.170195484),
                (5, 0.170195484),
                (9, 0.193475871),
                (11, 0.128917144),
            ],
        ),
        (
            Params {
                temperature: 1.5,
                top_k: 4,
                top_p: 0.6,
                repetition_penalty: 0.8,
                ..Params::default()
            },
            &[(2, 0.551895767), (9, 0.448104233)],
        ),
    ];
    for (params, want) in cases {
        let rows: Vec<Row> = (0..2000).map(|s| row(params, s, &history)).collect();
        let tensor = tensor.broadcast_as((2000, 12)).unwrap();
        let mut seen = std::collections::BTreeMap::new();
        for got in sample(&tensor, &rows).unwrap() {
            seen.insert(got.token, f64::from(got.log_prob).exp());
        }
        assert_eq!(
            seen.keys().copied().collect::<Vec<_>>(),
            want.iter().map(|w| w.0).collect::<Vec<_>>()
        );
        for ((token, p), (_, q)) in seen.into_iter().zip(want) {
            assert!((p - q).abs() < 1e-6, "token {token}: {p}, transformers {q}");
        }
    }
}

#[test]
fn bad_input_is_named() {
    let message = |tensor: &Tensor, rows: &[Row]| sample(tensor, rows).unwrap_err().to_string();
    let good = row(Params::default(), 0, &[]);
    for (bad, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "+inf"), (f32::NEG_INFINITY, "-inf")] {
        for params in [Params::default(), Params::GREEDY] {
            let tensor = logits(2, 2, vec![0.0, 1.0, f32::NEG_INFINITY, bad]);
            let text = message(&tensor, &[good, row(params, 1, &[])]);
            assert!(text.contains("row 1") && text.contains(name), "{text}");
        }
    }
    let tensor = logits(1, 2, vec![0.0, 1.0]);
    let with = |params| message(&tensor, &[row(params, 0, &[])]);
    for bad in [-1.0, f64::NAN, f64::INFINITY, 1e-9] {
        assert!(with(Params { temperature: bad, ..Params::default() }).contains("temperature"));
    }
    for bad in [0.0, -1.0, 1.5, f64::NAN] {
        assert!(with(Params { top_p: bad, ..Params::default() }).contains("top_p"));
    }
    for bad in [-0.1, 1.5, f64::NAN] {
        assert!(with(Params { min_p: bad, ..Params::default() }).contains("min_p"));
    }
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(
            with(Params { repetition_penalty: bad, ..Params::default() })
                .contains("repetition_penalty")
        );
    }
    assert!(message(&tensor, &[row(Params::default(), 0, &[2])]).contains("history"));
    assert!(message(&tensor, &[]).contains("[0, V]"));
    assert!(message(&tensor, &[Row { sentence: 1 << 24, ..good }]).contains("2^24"));
    assert!(message(&tensor, &[Row { step: 1 << 34, ..good }]).contains("2^34"));
    assert!(message(&tensor.flatten_all().unwrap(), &[good]).contains("[R, V]"));
    assert!(message(&logits(1, 0, vec![]), &[good]).contains("0 < V"));
    assert!(message(&tensor.to_dtype(DType::F64).unwrap(), &[good]).contains("f32, f16 or bf16"));
}
