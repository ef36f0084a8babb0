//! Philox against the published known answers, and the counter layout.

use std::collections::HashSet;

use bdhs::ops::philox::{Draws, Purpose, WHOLE_RESPONSE, philox4x32, unit_interval};

/// The three philox4x32-10 vectors of the Random123 distribution.
#[test]
fn known_answers() {
    let ones = u32::MAX;
    let cases = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, want) in cases {
        assert_eq!(philox4x32(counter, key), want, "counter {counter:x?} key {key:x?}");
    }
}

#[test]
fn counter_and_key_layout() {
    let draws = Draws { seed: 0x0123_4567_89ab_cdef, sample: 77, attempt: 3 };
    let key = [0x89ab_cdef, 0x0123_4567];
    for (purpose, number) in [
        (Purpose::Mask, 0u32),
        (Purpose::Cut, 1),
        (Purpose::YesNo, 2),
        (Purpose::Token, 3),
        (Purpose::Noise, 4),
        (Purpose::Dropout, 5),
        (Purpose::Bootstrap, 6),
    ] {
        for sentence in [0, 1, 9, WHOLE_RESPONSE] {
            for index in [0u64, 1, 2, 3, 4, 5, 1 << 20, (1 << 34) - 1] {
                let counter = [(index / 4) as u32, 77, 3, number << 24 | sentence];
                let want = philox4x32(counter, key)[(index % 4) as usize];
                assert_eq!(draws.word(purpose, sentence, index), want);
                assert_eq!(draws.uniform(purpose, sentence, index), unit_interval(want));
            }
        }
    }
}

#[test]
fn fill_equals_single_words() {
    let draws = Draws { seed: 5, sample: 1, attempt: 2 };
    for n in [0usize, 1, 3, 4, 5, 8, 101] {
        let mut words = vec![0; n];
        draws.fill(Purpose::Noise, 6, &mut words);
        for (i, &word) in words.iter().enumerate() {
            assert_eq!(word, draws.word(Purpose::Noise, 6, i as u64));
        }
    }
}

#[test]
fn addresses_never_share_a_draw() {
    let mut seen = HashSet::new();
    for sample in 0..4 {
        for attempt in 1..=4 {
            let draws = Draws { seed: 11, sample, attempt };
            for purpose in [Purpose::Mask, Purpose::Cut, Purpose::YesNo, Purpose::Token] {
                for sentence in [0, 1, 2, WHOLE_RESPONSE] {
                    // 4 words = 128 bits identify a counter.
                    let block: Vec<u32> =
                        (0..4).map(|i| draws.word(purpose, sentence, i)).collect();
                    assert!(seen.insert(block));
                }
            }
        }
    }
}

#[test]
fn uniform_is_strictly_inside_the_unit_interval() {
    assert_eq!(unit_interval(0), 2f64.powi(-25));
    assert_eq!(unit_interval(u32::MAX), 1.0 - 2f64.powi(-25));
    // The reason for f64: the same value in f32 is 1.
    assert_eq!(unit_interval(u32::MAX) as f32, 1.0);
}

/// 1,000 equal cells, 10^6 draws: chi-square has mean 999 and deviation 44.7.
#[test]
fn uniform_is_flat() {
    let draws = Draws { seed: 2024, sample: 0, attempt: 1 };
    let mut cells = vec![0u32; 1000];
    for i in 0..1_000_000 {
        cells[(draws.uniform(Purpose::Noise, 0, i) * 1000.0) as usize] += 1;
    }
    let chi2: f64 = cells.iter().map(|&c| (f64::from(c) - 1000.0).powi(2) / 1000.0).sum();
    assert!((820.0..1200.0).contains(&chi2), "chi-square {chi2}");
}

#[test]
#[should_panic(expected = "expected < 2^34")]
fn index_past_the_counter_is_refused() {
    Draws { seed: 0, sample: 0, attempt: 0 }.word(Purpose::Mask, 0, 1 << 34);
}

#[test]
#[should_panic(expected = "expected < 2^24")]
fn sentence_past_the_counter_is_refused() {
    Draws { seed: 0, sample: 0, attempt: 0 }.word(Purpose::Mask, 1 << 24, 0);
}
