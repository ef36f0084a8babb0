//! The grid against single-cell runs simulated attempt by attempt, and the summary's fixed shape.

use std::collections::BTreeMap;

use bdhs::config::threshold_text;
use bdhs::eval::tally::quantile;
use bdhs::sampling::Flag;
use bdhs::store::{EncoderInfo, Key, Score, ScoreRow};
use bdhs::sweep::grid::{
    Attempts, Cell, ScoreTable, Slot, candidates_if_independent, decide_cells, first_acceptance,
    matched_threshold, overlap,
};
use bdhs::sweep::summary::{Summary, SummaryInput, Truncation};
use proptest::prelude::*;

const THRESHOLDS: [f64; 5] = [0.90, 0.93, 0.95, 0.97, 0.99];

fn guided(attempts: u32) -> Attempts {
    Attempts { count: attempts, guidance: true }
}

fn row(sample: u32, attempt: u32, guided: bool, phi: f64) -> ScoreRow {
    let score = Score {
        candidate: Key::from_bytes([0; 32]),
        phi,
        candidate_tokens: 10,
        reference_tokens: 12,
        candidate_truncated: attempt == 2,
        reference_truncated: sample == 0,
    };
    ScoreRow { sample, attempt, guided, score }
}

/// Rows of an encoder: phi of attempt i of sample s is `phis[s][i - 1]`, of a run with `attempts` attempts.
fn rows(phis: &[Vec<f64>], attempts: u32) -> Vec<ScoreRow> {
    let mut rows = Vec::new();
    for (sample, phis) in phis.iter().enumerate() {
        for (attempt, &phi) in (1..).zip(phis) {
            rows.push(row(sample as u32, attempt, attempt < attempts || attempts == 1, phi));
        }
    }
    rows
}

/// What a run of one cell does with one sample, step by step: `(attempt taken, guided, forced, generations)`.
fn single_run(phis: &[f64], threshold: f64, attempts: u32) -> (u32, bool, bool, u64) {
    let mut generations = 0;
    let mut attempt = 1;
    loop {
        let is_guided = attempts == 1 || attempt != attempts;
        let phi = phis[attempt as usize - 1];
        generations += 1;
        if phi < threshold {
            return (attempt, is_guided, false, generations);
        }
        if attempt == attempts {
            return (attempt, is_guided, true, generations);
        }
        attempt += 1;
    }
}

/// Often exactly a threshold, sometimes not a number.
fn phi() -> impl Strategy<Value = f64> {
    prop_oneof![6 => 0.85..1.0, 3 => prop::sample::select(THRESHOLDS.to_vec()), 1 => Just(f64::NAN)]
}

fn scores() -> impl Strategy<Value = (u32, Vec<Vec<Vec<f64>>>)> {
    (1u32..6, 1usize..4, 0usize..12).prop_flat_map(|(attempts, encoders, samples)| {
        let one = prop::collection::vec(phi(), attempts as usize);
        let table = prop::collection::vec(one, samples);
        (Just(attempts), prop::collection::vec(table, encoders))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_cell_is_a_run_of_its_own((attempts, full) in scores()) {
        let samples: Vec<u32> = (0..full[0].len() as u32).collect();
        // A sweep generates only as deep as its most demanding cell.
        let depth: Vec<usize> = samples.iter().map(|&s| {
            let needs = full.iter().flat_map(|table| THRESHOLDS.map(|t| single_run(&table[s as usize], t, attempts).0));
            needs.max().unwrap_or(0) as usize
        }).collect();
        let tables = |depth: &[usize]| -> Vec<ScoreTable> {
            full.iter().enumerate().map(|(e, table)| {
                let cut: Vec<Vec<f64>> = table.iter().zip(depth).map(|(phis, &d)| phis[..d].to_vec()).collect();
                ScoreTable::new(format!("e{e}"), &rows(&cut, attempts), guided(attempts))
            }).collect()
        };
        let cells = decide_cells(&tables(&depth), &samples, &THRESHOLDS, guided(attempts)).unwrap();
        prop_assert_eq!(cells.len(), full.len() * THRESHOLDS.len());

        let mut generated = 0;
        for (index, cell) in cells.iter().enumerate() {
            let (table, threshold) = (&full[index / THRESHOLDS.len()], THRESHOLDS[index % THRESHOLDS.len()]);
            prop_assert_eq!(&cell.encoder, &format!("e{}", index / THRESHOLDS.len()));
            prop_assert_eq!(cell.threshold, threshold);
            let mut accepted = vec![0; attempts as usize];
            let mut forced_pairs = 0;
            let before = generated;
            for (pair, &sample) in cell.pairs.iter().zip(&samples) {
                let (attempt, is_guided, forced, generations) = single_run(&table[sample as usize], threshold, attempts);
                prop_assert_eq!((pair.sample, pair.attempt, pair.guided, pair.forced), (sample, attempt, is_guided, forced));
                prop_assert_eq!(pair.phi.to_bits(), table[sample as usize][attempt as usize - 1].to_bits());
                generated += generations;
                if forced { forced_pairs += 1 } else { accepted[attempt as usize - 1] += 1 }
            }
            prop_assert_eq!(cell.pairs.len(), samples.len());
            prop_assert_eq!(cell.accepted_by_attempt(), accepted);
            prop_assert_eq!(cell.forced(), forced_pairs);
            let mean = (generated - before) as f64 / samples.len().max(1) as f64;
            prop_assert!((cell.mean_attempts() - mean).abs() < 1e-12);
        }
        prop_assert_eq!(candidates_if_independent(&cells), generated);

        // One attempt less for any sample, and some cell cannot be decided.
        for &sample in &samples {
            let mut short = depth.clone();
            short[sample as usize] -= 1;
            let error = decide_cells(&tables(&short), &samples, &THRESHOLDS, guided(attempts)).unwrap_err().to_string();
            prop_assert!(error.contains(&format!("sample {sample} ")) && error.contains("not finished"), "{}", error);
        }
    }

    #[test]
    fn matched_thresholds_accept_the_nearest_share(
        firsts in prop::collection::vec(phi(), 1..20), rate in 0.0..=1.0,
    ) {
        let phis: Vec<Vec<f64>> = firsts.iter().map(|&phi| vec![phi]).collect();
        let table = ScoreTable::new("e", &rows(&phis, 2), guided(2));
        let samples: Vec<u32> = (0..firsts.len() as u32).collect();
        let found = matched_threshold(&table, &samples, rate);
        if let Some(threshold) = found.threshold {
            prop_assert_eq!(first_acceptance(&table, &samples, threshold), found.acceptance);
        } else {
            prop_assert!(firsts.iter().all(|phi| phi.is_nan()));
        }
        // No threshold at or beside a score does better.
        for &phi in firsts.iter().filter(|phi| !phi.is_nan()) {
            for other in [phi, phi.next_up()] {
                let acceptance = first_acceptance(&table, &samples, other);
                prop_assert!((found.acceptance - rate).abs() <= (acceptance - rate).abs() + 1e-12);
            }
        }
    }
}

#[test]
fn streams_are_not_mixed_up() {
    // Attempt 2 exists guided (of a run with N = 3) and unguided (of one with N = 2).
    let both =
        [row(0, 1, true, 0.99), row(0, 2, true, 0.1), row(0, 2, false, 0.2), row(0, 3, false, 0.3)];
    assert_eq!(ScoreTable::new("e", &both, guided(3)).phis(0), [0.99, 0.1, 0.3]);
    assert_eq!(ScoreTable::new("e", &both, guided(2)).phis(0), [0.99, 0.2]);
    assert_eq!(ScoreTable::new("e", &both, guided(1)).phis(0), [0.99]);
    let free = Attempts { count: 3, guidance: false };
    let unguided = [row(0, 1, false, 0.5), row(0, 2, true, 0.1), row(0, 2, false, 0.2)];
    assert_eq!(ScoreTable::new("e", &unguided, free).phis(0), [0.5, 0.2]);
    // What comes after a gap is not looked at.
    assert_eq!(ScoreTable::new("e", &both[2..], guided(3)).phis(0), [0.0; 0]);
}

#[test]
fn wrong_requests_are_named() {
    let table = ScoreTable::new("e", &[row(0, 1, true, 0.5)], guided(1));
    let error = |tables: &[ScoreTable], thresholds: &[f64], attempts| {
        decide_cells(tables, &[0], thresholds, attempts).unwrap_err().to_string()
    };
    let one = std::slice::from_ref(&table);
    assert!(error(one, &[0.97, 0.970_000_1], guided(1)).contains("e__0.97 twice"));
    assert!(error(&[table.clone(), table.clone()], &[0.9], guided(1)).contains("e__0.90 twice"));
    assert!(error(one, &[f64::NAN], guided(1)).contains("NaN"));
    assert!(error(one, &[0.9], guided(0)).contains("attempts is 0"));
    assert!(error(one, &[0.1], guided(2)).contains("1 for sample 0 and e"));
}

#[test]
fn quantiles_are_those_of_numpy() {
    // numpy.quantile([1, 2, 4, 8, 16], [0.05, 0.5, 0.95, 0, 1, 0.3])
    let values = [1.0, 2.0, 4.0, 8.0, 16.0];
    let expected = [1.2, 4.0, 14.399_999_999_999_999, 1.0, 16.0, 2.4];
    for (q, expected) in [0.05, 0.5, 0.95, 0.0, 1.0, 0.3].into_iter().zip(expected) {
        assert_eq!(quantile(&values, q), Some(expected), "{q}");
    }
    assert_eq!(quantile(&[], 0.5), None);
    assert_eq!(quantile(&[3.0], 0.95), Some(3.0));
}

#[test]
fn thresholds_have_two_to_four_decimals() {
    let texts = [0.9, 0.97, 0.975, 0.9725, 1.0, -0.5, 0.123_456].map(threshold_text);
    assert_eq!(texts, ["0.90", "0.97", "0.975", "0.9725", "1.00", "-0.50", "0.1235"]);
    let cell = Cell { encoder: "/m/a b".into(), threshold: 0.9, attempts: 1, pairs: vec![] };
    assert_eq!(cell.label(), "_m_a_b__0.90");
}

/// Two encoders, two thresholds, three samples, N = 2.
fn small() -> (Vec<ScoreTable>, Vec<Cell>) {
    let a = rows(&[vec![0.80, 0.7], vec![0.94, 0.96], vec![0.99, f64::NAN]], 2);
    let b = rows(&[vec![0.96, 0.91], vec![0.80, 0.5], vec![0.98, 0.89]], 2);
    let tables = vec![ScoreTable::new("a", &a, guided(2)), ScoreTable::new("b", &b, guided(2))];
    let cells = decide_cells(&tables, &[2, 0, 1], &[0.90, 0.95], guided(2)).unwrap();
    (tables, cells)
}

#[test]
fn overlap_is_the_jaccard_index() {
    let (_, cells) = small();
    let found = overlap(&cells);
    assert_eq!(found.cells, ["a__0.90", "a__0.95", "b__0.90", "b__0.95"]);
    // Pairs (sample: attempt): a.90 {0:1, 1:2f, 2:2f}  a.95 {0:1, 1:1, 2:2f}  b.90 {0:2f, 1:1, 2:2}  b.95 {0:2, 1:1, 2:2}
    assert_eq!(found.pairs[0], [1.0, 2.0 / 4.0, 1.0 / 5.0, 1.0 / 5.0]);
    assert_eq!(found.pairs[1], [2.0 / 4.0, 1.0, 2.0 / 4.0, 2.0 / 4.0]);
    assert_eq!(found.pairs[2][3], 1.0);
    assert_eq!(found.accepted[0], [1.0, 1.0 / 2.0, 0.0, 0.0]);
    assert_eq!(found.accepted[1], [1.0 / 2.0, 1.0, 1.0 / 3.0, 1.0 / 4.0]);
    assert_eq!(found.accepted[2][3], 2.0 / 3.0);
}

#[test]
fn the_summary_has_its_fixed_shape() {
    let (tables, cells) = small();
    let flags: BTreeMap<Slot, Vec<Flag>> = [
        ((0, 1, true), vec![Flag::TokenLimit]),
        ((0, 2, false), vec![]),
        ((1, 1, true), vec![]),
        ((1, 2, false), vec![Flag::Empty, Flag::TokenLimit]),
        ((2, 1, true), vec![Flag::Identical]),
        ((2, 2, false), vec![]),
    ]
    .into();
    let encoder =
        EncoderInfo { fingerprint: "f".into(), name: "a".into(), dim: 4, max_tokens: 128 };
    let truncation = [Truncation::new(&encoder, &rows(&vec![vec![0.5, 0.5]; 3], 2))];
    let seconds = BTreeMap::from([("decode".to_owned(), 1.5)]);
    let summary = Summary::new(&SummaryInput {
        skipped: &BTreeMap::new(),
        samples: &[0, 1, 2],
        attempts: guided(2),
        tables: &tables,
        cells: &cells,
        flags: &flags,
        truncation: &truncation,
        seconds: &seconds,
        budget_lowered: 1,
    });
    let json = serde_json::to_value(&summary).unwrap();
    let names = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(
        names(&json),
        [
            "samples",
            "attempts",
            "cells",
            "candidates_generated",
            "candidates_if_independent",
            "overlap",
            "matched_acceptance",
            "truncation",
            "flags",
            "seconds",
            "budget_lowered"
        ]
    );
    let zero = |name: &str| (name.to_owned(), serde_json::json!(0));
    let mut no_flags: serde_json::Map<_, _> = [
        "empty",
        "empty_completion",
        "identical",
        "same_words",
        "token_limit",
        "unchanged_sentence",
    ]
    .into_iter()
    .map(zero)
    .collect();
    no_flags["empty"] = 1.into();
    no_flags["token_limit"] = 2.into();
    assert_eq!(
        json["cells"][0],
        serde_json::json!({
            "encoder": "a", "threshold": 0.9, "pairs": 3, "accepted_by_attempt": [1, 0], "forced": 2,
            "mean_attempts": 5.0 / 3.0, "phi": { "p05": 0.808, "p50": 0.88, "p95": 0.952 }, "undefined_phi": 1, "flagged": 2,
            "flags": no_flags,
        })
    );
    assert_eq!(
        names(&json["cells"][0]),
        [
            "encoder",
            "threshold",
            "pairs",
            "accepted_by_attempt",
            "forced",
            "mean_attempts",
            "phi",
            "undefined_phi",
            "flagged",
            "flags"
        ]
    );
    assert_eq!(
        (summary.candidates_generated, summary.candidates_if_independent),
        (6, 5 + 4 + 5 + 5)
    );
    let a = &summary.truncation[0];
    assert_eq!((a.scored, a.candidates, a.references), (6, 0.5, 1.0 / 3.0));
    // First encoder: one and two of three first attempts below 0.90 and 0.95.
    let matched: Vec<_> = summary
        .matched_acceptance
        .iter()
        .map(|m| (m.encoder.as_str(), m.threshold.map(|t| (t * 1e6).round() / 1e6), m.acceptance))
        .collect();
    let (third, two) = (1.0 / 3.0, 2.0 / 3.0);
    assert_eq!(
        matched,
        [
            ("a", Some(0.87), third),
            ("b", Some(0.88), third),
            ("a", Some(0.965), two),
            ("b", Some(0.97), two)
        ]
    );
    let read: Summary = serde_json::from_value(json).unwrap();
    assert_eq!(read, summary);
}

#[test]
fn the_table_fits_a_hundred_columns() {
    let phis: Vec<Vec<f64>> =
        (0..5000).map(|s| vec![0.8 + f64::from(s % 200) / 1000.0; 5]).collect();
    let name = "paraphrase-multilingual-mpnet-base-v2";
    let tables = [ScoreTable::new(name, &rows(&phis, 5), guided(5))];
    let samples: Vec<u32> = (0..5000).collect();
    let cells = decide_cells(&tables, &samples, &THRESHOLDS, guided(5)).unwrap();
    let flags: BTreeMap<Slot, Vec<Flag>> =
        samples.iter().map(|&sample| ((sample, 1, true), Flag::ALL.to_vec())).collect();
    let text = Summary::new(&SummaryInput {
        skipped: &BTreeMap::new(),
        samples: &samples,
        attempts: guided(5),
        tables: &tables,
        cells: &cells,
        flags: &flags,
        truncation: &[Truncation {
            encoder: name.into(),
            max_tokens: 128,
            scored: 25_000,
            candidates: 0.875,
            references: 1.0,
        }],
        seconds: &BTreeMap::from(["decode", "prefill", "score"].map(|s| (s.to_owned(), 1234.5))),
        budget_lowered: 2,
    })
    .table();
    println!("{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    for word in
        [name, "0.90", "0.99", "forced", "5000 samples", "87.5 %", "empty 5000", "lowered 2"]
    {
        assert!(text.contains(word), "{word}");
    }
}
