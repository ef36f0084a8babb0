//! The method's rules, each by its name.

use std::collections::BTreeSet;

use bdhs::ops::mask::TokenGrid;
use bdhs::ops::philox::{Draws, WHOLE_RESPONSE};
use bdhs::sampling::acceptance::{decide, resolved};
use bdhs::sampling::attempts::{attempts, is_guided};
use bdhs::sampling::corruption::{
    MaskRequest, add_noise, join_layouts, signal_share, stream, visible_tokens,
};
use bdhs::sampling::cuts::{cut, own_completion, rebuild};
use bdhs::sampling::{
    Candidate, CutUnit, Flag, Fragment, Newlines, Part, SamplingConfig, SentenceRule, Stop,
    YesNoRule,
};
use proptest::prelude::*;

use crate::common::texts::{any_rule, tricky_text};

fn draws(sample: u32, attempt: u32) -> Draws {
    Draws { seed: 7, sample, attempt }
}

fn config(change: impl FnOnce(&mut SamplingConfig)) -> SamplingConfig {
    let mut config = SamplingConfig::default();
    change(&mut config);
    config.validate().expect("a valid configuration");
    config
}

// ---- yes/no ----

#[test]
fn yes_no_is_a_word_of_its_own_by_default() {
    let word = |text| YesNoRule::Word.find(text);
    for (text, found) in [
        ("No.", "No"),
        ("Yes,", "Yes"),
        ("no", "no"),
        ("yes!", "yes"),
        ("No there", "No"),
        ("No- well", "No"),
        ("Yes", "Yes"),
    ] {
        assert_eq!(word(text), Some(found), "{text}");
    }
    for text in [
        "Not a cat",
        "North",
        "NO",
        "YES",
        "No. 5 is",
        "No-one",
        "No’s",
        "Nobody",
        "no_x",
        "No2",
        "Noël",
        "Noe\u{301}l",
        "No\u{308}",
        "Yesterday",
        "A No",
    ] {
        assert_eq!(word(text), None, "{text}");
    }
}

#[test]
fn paper_pattern_for_yes_no_has_no_word_boundary() {
    let pattern = |text| YesNoRule::Pattern.find(text);
    for (text, found) in [
        ("Not", "No"),
        ("North", "No"),
        ("No.", "No"),
        ("Yes,", "Yes"),
        ("no", "no"),
        ("yesterday", "yes"),
    ] {
        assert_eq!(pattern(text), Some(found), "{text}");
    }
    for text in ["NO", "YES", "A No"] {
        assert_eq!(pattern(text), None, "{text}");
    }
    let config = config(|c| {
        c.yes_no = YesNoRule::Pattern;
        c.swap_probability = 1.0;
    });
    let fragments = cut("North.", &draws(0, 1), &config).unwrap();
    assert_eq!((fragments[0].kept.as_str(), fragments[0].swapped), ("Yes", true));
}

#[test]
fn swap_exchanges_yes_and_no_and_keeps_the_case() {
    let config = config(|c| c.swap_probability = 1.0);
    for (sentence, kept) in
        [("Yes, it", "No,"), ("yes, it", "no,"), ("No, it", "Yes,"), ("no, it", "yes,")]
    {
        let fragment = &cut(sentence, &draws(3, 1), &config).unwrap()[0];
        assert_eq!((fragment.kept.as_str(), fragment.swapped), (kept, true));
        assert_eq!(fragment.sentence.start, 0);
    }
}

#[test]
fn swap_happens_with_probability_one_half() {
    let config = SamplingConfig::default();
    let n = 20_000;
    let swapped = (0..n)
        .filter(|&sample| cut("Yes, it is.", &draws(sample, 1), &config).unwrap()[0].swapped)
        .count();
    // Five standard deviations of a fair coin.
    assert!((swapped as f64 - 10_000.0).abs() < 5.0 * (f64::from(n) / 4.0).sqrt(), "{swapped}");
    let other = (0..n)
        .filter(|&sample| cut("It is.", &draws(sample, 1), &config).unwrap()[0].swapped)
        .count();
    assert_eq!(other, 0);
}

#[test]
fn a_swapped_answer_is_kept_whole_whatever_the_unit_of_the_cut() {
    let config = config(|c| {
        c.swap_probability = 1.0;
        c.cut = CutUnit::Character;
    });
    let kept: BTreeSet<String> = (0..100)
        .map(|sample| cut("No ab", &draws(sample, 1), &config).unwrap()[0].kept.clone())
        .collect();
    assert_eq!(kept.iter().map(String::as_str).collect::<Vec<_>>(), ["Yes", "Yes ", "Yes a"]);
}

// ---- cuts ----

#[test]
fn cut_is_before_the_white_space_of_the_first_dropped_word() {
    let text = "  A cat \t sits on\u{a0}mats.  ";
    let all: BTreeSet<String> = (0..200)
        .map(|sample| cut(text, &draws(sample, 1), &SamplingConfig::default()).unwrap())
        .map(|fragments| {
            assert_eq!(
                (fragments[0].sentence.clone(), fragments[0].separator.clone()),
                (2..24, 24..26)
            );
            fragments[0].kept.clone()
        })
        .collect();
    let expected = ["A", "A cat", "A cat \t sits", "A cat \t sits on"];
    assert_eq!(all.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn cut_positions_are_uniform_over_one_to_words_less_one() {
    let words = 9;
    let text = "one two three four five six seven eight nine.";
    let n = 40_000;
    let mut counts = vec![0u32; words];
    for sample in 0..n {
        let fragments = cut(text, &draws(sample, 2), &SamplingConfig::default()).unwrap();
        counts[fragments[0].kept.split_whitespace().count()] += 1;
    }
    assert_eq!(counts[0], 0);
    let expected = f64::from(n) / (words - 1) as f64;
    let chi2: f64 = counts[1..].iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
    // 7 degrees of freedom; 29.9 is exceeded once in 10,000.
    assert!(chi2 < 29.9, "chi-square {chi2}, {counts:?}");
}

#[test]
fn one_word_sentence_keeps_nothing_unless_it_was_swapped() {
    let never = config(|c| c.swap_probability = 0.0);
    let always = config(|c| c.swap_probability = 1.0);
    let text = "No. Cats.";
    let kept = |config| {
        cut(text, &draws(1, 1), config).unwrap().into_iter().map(|f| f.kept).collect::<Vec<_>>()
    };
    assert_eq!(kept(&never), ["", ""]);
    assert_eq!(kept(&always), ["Yes", ""]);
}

#[test]
fn scripts_without_spaces_are_cut_between_their_words() {
    assert_eq!(CutUnit::Word.positions("我喜欢猫。"), [3, 6, 9]);
    assert_eq!(CutUnit::Word.positions("用Rust写 code fast"), [3, 7, 10, 15]);
    assert!(CutUnit::Word.positions("ไทยแมว").len() >= 2);
    assert!(CutUnit::Word.positions("don't").is_empty());
    assert!(CutUnit::Word.positions("well-known,thing").is_empty());
    assert_eq!(CutUnit::Word.positions("مرحبا بك"), [10]);
    assert_eq!(CutUnit::Character.positions("ae\u{301}😀b"), [1, 4, 8]);
}

#[test]
fn rebuild_keeps_preamble_and_separators_and_trims_a_blank_written_twice() {
    let text = "\n A cat sits.  Dogs.\n\nEnd of it. ";
    let fragments = cut(text, &draws(0, 1), &SamplingConfig::default()).unwrap();
    let ranges: Vec<_> =
        fragments.iter().map(|f| (&text[f.sentence.clone()], &text[f.separator.clone()])).collect();
    assert_eq!(ranges, [("A cat sits.", "  "), ("Dogs.", "\n\n"), ("End of it.", " ")]);
    let kept = &fragments[0].kept;
    let rebuilt = rebuild(text, &fragments, &[" x.", " Cows.", " y."]).unwrap();
    assert_eq!(rebuilt, format!("\n {kept} x.  Cows.\n\n{} y. ", fragments[2].kept));
    assert_eq!(own_completion(&fragments[1], " Cows."), "Cows.");
    assert!(rebuild(text, &fragments, &["x"]).unwrap_err().to_string().contains("expected 3"));
}

#[test]
fn cuts_do_not_depend_on_the_order_of_work() {
    let text = "Yes, a cat sits on a mat. No, the dog does not. It rains in May.";
    let run = |sample| cut(text, &draws(sample, 3), &SamplingConfig::default()).unwrap();
    let forward: Vec<Vec<Fragment>> = (0..50).map(run).collect();
    let mut backward: Vec<Vec<Fragment>> = (0..50).rev().map(run).collect();
    backward.reverse();
    assert_eq!(forward, backward);
    assert!(forward.iter().collect::<Vec<_>>().windows(2).any(|pair| pair[0] != pair[1]));
}

#[test]
fn fresh_attempts_have_fresh_cuts() {
    let text = "one two three four five six seven eight nine ten eleven twelve.";
    let config = SamplingConfig::default();
    let kept: BTreeSet<String> = (1..=40)
        .map(|attempt| cut(text, &draws(0, attempt), &config).unwrap()[0].kept.clone())
        .collect();
    assert!(kept.len() > 5, "{kept:?}");
}

#[test]
fn ten_thousand_words_without_a_full_stop_are_one_sentence() {
    let text = vec!["word"; 10_000].join(" ");
    let fragments = cut(&text, &draws(0, 1), &SamplingConfig::default()).unwrap();
    assert_eq!(fragments.len(), 1);
    let sentences = "A cat sits. ".repeat(10_000);
    assert_eq!(cut(&sentences, &draws(0, 1), &SamplingConfig::default()).unwrap().len(), 10_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rebuilding_from_the_dropped_parts_gives_the_reference(text in tricky_text(), sample: u32, rule in any_rule(), character: bool) {
        let config = config(|c| {
            c.sentences = rule;
            c.swap_probability = 0.0;
            c.cut = if character { CutUnit::Character } else { CutUnit::Word };
        });
        let fragments = cut(&text, &draws(sample, 1), &config).unwrap();
        let dropped: Vec<&str> = fragments.iter().map(|f| &text[f.sentence.start + if f.swapped { 0 } else { f.kept.len() }..f.sentence.end]).collect();
        for fragment in &fragments {
            prop_assert!(!fragment.swapped);
            prop_assert!(fragment.kept.len() < fragment.sentence.len());
            prop_assert!(character || fragment.kept.trim_end() == fragment.kept);
        }
        let expected = if fragments.is_empty() { "" } else { &text };
        prop_assert_eq!(rebuild(&text, &fragments, &dropped).unwrap(), expected);
    }

    #[test]
    fn each_sentence_is_cut_independently_of_the_others(sample: u32, attempt in 1u32..6, others in "[xyz]{2,6}( [xyz]{2,6}){0,5}") {
        let config = SamplingConfig::default();
        let second = "Yes, there are two cats on a red mat.";
        let one = format!("A dog runs. {second}");
        let two = format!("The {others}. {second} No one sees {others}.");
        let a = &cut(&one, &draws(sample, attempt), &config).unwrap()[1];
        let b = &cut(&two, &draws(sample, attempt), &config).unwrap()[1];
        prop_assert_eq!((&a.kept, a.swapped), (&b.kept, b.swapped));
    }
}

// ---- corruption ----

fn request(sample: u32, guided: bool, grids: &[TokenGrid]) -> MaskRequest<'_> {
    MaskRequest { draws: draws(sample, 1), guided, tokens: 650, grids }
}

#[test]
fn mask_keeps_each_token_with_probability_one_minus_rho() {
    let config = config(|c| c.rho = 0.9);
    let requests: Vec<_> = (0..200).map(|sample| request(sample, true, &[])).collect();
    let kept = visible_tokens(&config, &requests).unwrap().indices.len() as f64;
    let n = 200.0 * 650.0;
    assert!((kept - 0.1 * n).abs() < 5.0 * (n * 0.09).sqrt(), "{kept}");
}

#[test]
fn rho_zero_keeps_all_and_rho_one_none() {
    let none = visible_tokens(&config(|c| c.rho = 1.0), &[request(0, true, &[])]).unwrap();
    let all = visible_tokens(&config(|c| c.rho = 0.0), &[request(0, true, &[])]).unwrap();
    assert_eq!((none.indices.len(), all.indices.len()), (0, 650));
}

#[test]
fn one_mask_an_attempt_and_other_masks_for_other_attempts_and_streams() {
    let config = config(|c| c.rho = 0.5);
    let alone = visible_tokens(&config, &[request(4, true, &[])]).unwrap();
    let batch = visible_tokens(
        &config,
        &[request(3, true, &[]), request(4, true, &[]), request(4, false, &[])],
    )
    .unwrap();
    assert_eq!(alone.row(0), batch.row(1));
    assert_ne!(batch.row(0), batch.row(1));
    assert_ne!(batch.row(1), batch.row(2));
    assert_eq!((stream(true), stream(false)), (0, WHOLE_RESPONSE));
}

#[test]
fn newline_tokens_are_masked_like_others_or_exempt() {
    let grids = [TokenGrid { start: 0, rows: 25, cols: 25, stride: 26 }];
    let none = config(|c| c.rho = 1.0);
    let exempt = config(|c| {
        c.rho = 1.0;
        c.newlines = Newlines::Exempt;
    });
    assert!(visible_tokens(&none, &[request(0, true, &grids)]).unwrap().indices.is_empty());
    let newlines: Vec<u32> = (0..25).map(|row| row * 26 + 25).collect();
    assert_eq!(visible_tokens(&exempt, &[request(0, true, &grids)]).unwrap().indices, newlines);
}

#[test]
fn images_of_one_prompt_are_numbered_one_after_another() {
    let grid = TokenGrid { start: 1, rows: 2, cols: 3, stride: 4 };
    let (tokens, grids) = join_layouts([(10, &[grid][..]), (5, &[]), (12, &[grid][..])]);
    assert_eq!((tokens, grids), (27, vec![grid, TokenGrid { start: 16, ..grid }]));
}

#[test]
fn noise_keeps_the_signal_share_of_the_schedule() {
    // The schedule written out once more, with sigmoid through tanh and the product through logarithms.
    for steps in [0, 1, 100, 300, 500, 1000] {
        let log: f64 = (1..=steps)
            .map(|k| {
                let x = -6.0 + 12.0 * f64::from(k) / 1000.0;
                (-((0.5 + 0.5 * (x / 2.0).tanh()) * 4.99e-3 + 1e-5)).ln_1p()
            })
            .sum();
        assert!((signal_share(steps) - log.exp()).abs() < 1e-13);
    }
    assert_eq!(signal_share(0), 1.0);
}

#[test]
fn noise_has_the_moments_of_a_standard_normal() {
    let n = 200_000;
    let share = signal_share(500);
    let mut pixels = vec![2.0f32; n];
    add_noise(&mut pixels, 0, &draws(0, 1), true, 500).unwrap();
    let e: Vec<f64> = pixels
        .iter()
        .map(|&x| (f64::from(x) - 2.0 * share.sqrt()) / (1.0 - share).sqrt())
        .collect();
    let moment = |k| e.iter().map(|e| e.powi(k)).sum::<f64>() / n as f64;
    // Expected 0, 1, 0, 3; the bounds are five standard errors: sqrt(1, 2, 15, 96 / n).
    for (k, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
        assert!(
            (moment(k) - expected).abs() < 5.0 * (variance / n as f64).sqrt(),
            "moment {k}: {}",
            moment(k)
        );
    }
    let neighbours: f64 = e.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / n as f64;
    assert!(neighbours.abs() < 5.0 / (n as f64).sqrt(), "{neighbours}");
}

#[test]
fn noise_does_not_depend_on_how_the_pixels_are_handed_over() {
    let mut whole = vec![0.5f32; 10_001];
    add_noise(&mut whole, 0, &draws(2, 1), true, 300).unwrap();
    let mut halves = vec![0.5f32; 10_001];
    let (a, b) = halves.split_at_mut(5_002);
    add_noise(b, 5_002, &draws(2, 1), true, 300).unwrap();
    add_noise(a, 0, &draws(2, 1), true, 300).unwrap();
    assert_eq!(whole, halves);
    let mut unguided = vec![0.5f32; 10_001];
    add_noise(&mut unguided, 0, &draws(2, 1), false, 300).unwrap();
    assert_ne!(whole, unguided);
    let mut untouched = vec![0.5f32; 8];
    add_noise(&mut untouched, 0, &draws(2, 1), true, 0).unwrap();
    assert_eq!(untouched, [0.5; 8]);
    assert!(add_noise(&mut untouched, 1, &draws(2, 1), true, 10).is_err());
    assert!(add_noise(&mut untouched, 0, &draws(2, 1), true, 1001).is_err());
}

// ---- attempts and acceptance ----

#[test]
fn last_attempt_is_unguided_and_the_only_attempt_is_guided() {
    let guided = |n| attempts(&config(|c| c.attempts = n)).map(|a| a.guided).collect::<Vec<_>>();
    assert_eq!(guided(1), [true]);
    assert_eq!(guided(2), [true, false]);
    assert_eq!(guided(5), [true, true, true, true, false]);
    assert!(is_guided(3, 4, true) && !is_guided(3, 3, true));
}

#[test]
fn mask_without_guidance_makes_every_attempt_unguided() {
    let unguided = config(|c| {
        c.guidance = false;
        c.attempts = 3;
    });
    assert!(attempts(&unguided).all(|attempt| !attempt.guided));
    assert_eq!(attempts(&unguided).map(|a| a.number).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn first_attempt_below_the_threshold_is_accepted() {
    let decision = decide(&[0.99, 0.96, 0.5], 0.97, 5, true).unwrap();
    assert_eq!(
        (decision.attempt, decision.guided, decision.forced, decision.phi),
        (2, true, false, 0.96)
    );
    assert_eq!(
        decide(&[0.97, 0.98], 0.97, 5, true),
        None,
        "phi must be below, not at, the threshold"
    );
    assert_eq!(decide(&[], 0.97, 5, true), None);
}

#[test]
fn last_attempt_is_returned_whatever_its_phi() {
    let last = decide(&[0.99, 0.99, 0.99, 0.99, 1.0], 0.97, 5, true).unwrap();
    assert_eq!((last.attempt, last.guided, last.forced), (5, false, true));
    let low = decide(&[0.99, 0.99, 0.99, 0.99, 0.1], 0.97, 5, true).unwrap();
    assert_eq!((low.attempt, low.guided, low.forced), (5, false, false));
    let only = decide(&[1.0], 0.97, 1, true).unwrap();
    assert_eq!((only.attempt, only.guided, only.forced), (1, true, true));
}

#[test]
fn nan_is_below_no_threshold() {
    assert_eq!(decide(&[f64::NAN], 2.0, 2, true), None);
    let forced = decide(&[f64::NAN, f64::NAN], 2.0, 2, true).unwrap();
    assert!(forced.forced && forced.phi.is_nan() && forced.attempt == 2);
    assert_eq!(decide(&[f64::NAN, 0.1, 0.0], 0.9, 5, true).unwrap().attempt, 2);
}

proptest! {
    #[test]
    fn resolved_means_that_every_cell_has_its_decision(
        phis in prop::collection::vec(prop::collection::vec(0.85f64..1.0, 3), 1..4),
        seen in 0usize..4,
        thresholds in prop::collection::vec(0.85f64..1.0, 1..6),
        attempts in 1u32..5,
    ) {
        let seen: Vec<&[f64]> = phis.iter().map(|phis| &phis[..seen.min(3)]).collect();
        let every = seen.iter().all(|phis| thresholds.iter().all(|&eps| decide(phis, eps, attempts, true).is_some()));
        prop_assert_eq!(resolved(&seen, &thresholds, attempts), every);
    }

    #[test]
    fn a_decision_does_not_change_when_later_attempts_arrive(phis in prop::collection::vec(0.9f64..1.0, 1..7), eps in 0.9f64..1.0) {
        let decisions: Vec<_> = (1..=phis.len()).filter_map(|n| decide(&phis[..n], eps, 5, true)).collect();
        prop_assert!(decisions.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

// ---- flags ----

fn candidate(guided: bool, parts: &[(&str, &str, &str, Stop)]) -> Candidate {
    let parts: Vec<Part> = parts
        .iter()
        .map(|&(kept, completion, separator, stop)| Part {
            kept: kept.to_owned(),
            completion: completion.to_owned(),
            separator: separator.to_owned(),
            swapped: false,
            stop,
            tokens: 1,
            logprob: -1.0,
        })
        .collect();
    let text = parts.iter().map(|p| format!("{}{}{}", p.kept, p.completion, p.separator)).collect();
    Candidate { sample: 0, attempt: 1, guided, text, parts, image_tokens: 0, kept: Vec::new() }
}

#[test]
fn flags_record_what_a_reader_of_the_pairs_should_know() {
    let reference = "A cat. A red dog.";
    let flags =
        |guided, parts: &[_]| candidate(guided, parts).flags(reference, SentenceRule::Unicode);
    let stop = Stop::FullStop;
    assert_eq!(flags(true, &[("A", " cow.", " ", stop), ("A red", " hat.", "", stop)]), []);
    assert_eq!(
        flags(true, &[("A", " cow.", " ", stop), ("A red", " dog.", "", stop)]),
        [Flag::UnchangedSentence]
    );
    assert_eq!(
        flags(true, &[("A", " cat.", " ", stop), ("A red", " dog.", "", stop)]),
        [Flag::Identical, Flag::UnchangedSentence]
    );
    assert_eq!(
        flags(true, &[("A", "  cat.", " ", stop), ("A red", " dog.", "", stop)]),
        [Flag::SameWords, Flag::UnchangedSentence]
    );
    assert_eq!(
        flags(true, &[("", " ", " ", Stop::EndOfSequence), ("A red", " x", "", Stop::TokenLimit)]),
        [Flag::TokenLimit, Flag::EmptyCompletion]
    );
    assert_eq!(flags(false, &[("", " ", "", Stop::EndOfSequence)]), [Flag::Empty]);
    assert_eq!(flags(false, &[("", reference, "", Stop::EndOfSequence)]), [Flag::Identical]);
}
