//! The tests themselves tested: on data without an effect they reject as often as they say, their intervals cover the truth, and
//! planted effects are found with the power that is printed.
//!
//! The short tests are for every run; the long ones (`cargo test --test eval nulls -- --ignored`) take minutes and compare rates
//! within two standard errors of the simulation.

use bdhs::{
    ablation::Grid,
    eval::{
        ItemScore,
        intervals::seen,
        metric,
        tally::{Additions, Resampled, Statistic, Tally},
    },
    ops::philox::{Draws, Purpose},
};
use rayon::prelude::*;
use serde_json::Value;

/// Random numbers of one simulation.
struct Dice {
    draws: Draws,
    next: u32,
}

impl Dice {
    fn new(simulation: u32, stream: u32) -> Self {
        Self { draws: Draws { seed: 77, sample: simulation, attempt: stream }, next: 0 }
    }

    /// Uniform in [0, 1).
    fn uniform(&mut self) -> f64 {
        let mut word = [0u32; 4];
        self.draws.fill(Purpose::Noise, self.next, &mut word);
        self.next += 1;
        f64::from(word[0]) / 4_294_967_296.0
    }

    /// Normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let (a, b) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
    }

    fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }
}

fn item(id: usize, unit: usize, cells: &[(&str, f64)]) -> ItemScore {
    let mut sums = Additions::default();
    cells.iter().for_each(|(name, value)| sums.push(*name, *value));
    ItemScore {
        id: id.to_string(),
        category: String::new(),
        unit: unit.to_string(),
        image: None,
        question: String::new(),
        answer: None,
        parsed: Value::Null,
        target: Value::Null,
        score: None,
        cells: sums,
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Answers of a model to six yes/no questions on each image, half of them to be answered yes. How hard an image is
/// (`hard`) is shared by all models; `better` moves a model's chance of being right.
fn pope(dice: &mut Dice, hard: &[f64], better: f64) -> Tally {
    let mut items = Vec::new();
    for (image, hard) in hard.iter().enumerate() {
        for question in 0..6 {
            let truth = question % 2 == 0;
            let right = dice.chance(sigmoid(1.2 + better - hard));
            let yes = truth == right;
            let flag = |is: bool| f64::from(u8::from(is));
            let name = |cell: &str| format!("random/{cell}");
            let cells = [
                ("tp", flag(truth && yes)),
                ("fp", flag(!truth && yes)),
                ("tn", flag(!truth && !yes)),
                ("fn", flag(truth && !yes)),
                ("right", flag(right)),
                ("yes", flag(yes)),
                ("n", 1.0),
            ]
            .map(|(cell, value)| (name(cell), value));
            let cells: Vec<(&str, f64)> = cells.iter().map(|(n, v)| (n.as_str(), *v)).collect();
            items.push(item(items.len(), image, &cells));
        }
    }
    Tally::new(&items)
}

/// Captions that mention one to six objects, each made up with a chance.
fn captions(dice: &mut Dice, hard: &[f64], better: f64) -> Tally {
    let rows: Vec<ItemScore> = hard
        .iter()
        .enumerate()
        .map(|(image, hard)| {
            let mentions = 1 + (dice.uniform() * 6.0) as usize;
            let made_up =
                (0..mentions).filter(|_| dice.chance(sigmoid(-2.0 - better + hard))).count();
            let cells = [
                ("made_up", made_up as f64),
                ("mentions", mentions as f64),
                ("recalled", 1.0),
                ("objects", 2.0),
                ("captions_made_up", f64::from(u8::from(made_up > 0))),
                ("captions", 1.0),
            ];
            item(image, image, &cells)
        })
        .collect();
    Tally::new(&rows)
}

/// Ratings from 0 to 6.
fn ratings(dice: &mut Dice, hard: &[f64], better: f64) -> Tally {
    let rows: Vec<ItemScore> = hard
        .iter()
        .enumerate()
        .map(|(image, hard)| {
            let rating = (3.0 + better - hard + 1.5 * dice.normal()).round().clamp(0.0, 6.0);
            let low = f64::from(u8::from(rating < 3.0));
            item(
                image,
                image,
                &[("sum", rating), ("n", 1.0), ("hallucinated", low), ("informative", rating)],
            )
        })
        .collect();
    Tally::new(&rows)
}

type World = fn(&mut Dice, &[f64], f64) -> Tally;

/// A metric's world, the statistic that is tested, and images.
const WORLDS: [(&str, &str, World, usize); 4] = [
    ("pope", "f1", pope, 100),
    ("pope", "accuracy", pope, 100),
    ("recall-coco", "chair_i", captions, 160),
    ("mmhal", "rating", ratings, 96),
];

fn statistic(name: &str, which: &str, tally: &Tally) -> Statistic {
    let rules = metric(name).unwrap();
    let protocol = rules.spec().protocol(None).unwrap();
    let mut all = rules.statistics(protocol, &tally.cells);
    let place = all.iter().position(|statistic| statistic.name == which).unwrap();
    all.swap_remove(place)
}

/// Models of one simulation on the same images, resampled alike.
fn resampled(
    (name, which, world, images): (&str, &str, World, usize),
    simulation: u32,
    better: &[f64],
    resamples: u32,
) -> Resampled {
    let mut dice = Dice::new(simulation, 0);
    let hard: Vec<f64> = (0..images).map(|_| 0.8 * dice.normal()).collect();
    let tallies: Vec<Tally> = (1u32..)
        .zip(better)
        .map(|(model, better)| world(&mut Dice::new(simulation, model), &hard, *better))
        .collect();
    let statistics: Vec<Statistic> =
        tallies.iter().map(|tally| statistic(name, which, tally)).collect();
    let runs: Vec<(&Tally, Vec<&Statistic>)> =
        tallies.iter().zip(&statistics).map(|(tally, one)| (tally, vec![one])).collect();
    Resampled::new(&runs, resamples, u64::from(simulation))
}

/// The share of simulations in which a test rejects at 5 %.
fn rate(simulations: u32, test: impl Fn(u32) -> Option<f64> + Sync) -> f64 {
    let rejected = (0..simulations).into_par_iter().filter(|i| test(*i).unwrap() < 0.05).count();
    rejected as f64 / f64::from(simulations)
}

/// 5 %, within so many standard errors of the simulation and what small samples are known to cost.
#[track_caller]
fn nominal(what: &str, rate: f64, simulations: u32, errors: f64, cost: f64) {
    let stderr = (0.05f64 * 0.95 / f64::from(simulations)).sqrt();
    println!("{what}: {:.2} % of {simulations}", 100.0 * rate);
    assert!((rate - 0.05).abs() <= errors * stderr + cost, "{what}: {rate}");
}

/// The deviation that a seed of training brings.
const SEED: f64 = 0.15;

/// Five trainings of a recipe, in the unit of `better`.
fn trainings(simulation: u32, recipe: u32, mean: f64) -> Vec<f64> {
    let mut dice = Dice::new(simulation, 1000 + recipe);
    (0..5).map(|_| mean + SEED * dice.normal()).collect()
}

/// A grid of 2 encoders and 5 thresholds; `slope` is what .01 of threshold brings.
const THRESHOLDS: [f64; 5] = [0.90, 0.93, 0.95, 0.97, 0.99];

fn grid() -> Grid {
    Grid::new(vec![(0..5).collect(), (5..10).collect()], THRESHOLDS.to_vec())
}

fn cells(slope: f64, encoder: f64) -> Vec<f64> {
    let row = |level: f64| THRESHOLDS.map(|t| slope * 100.0 * (t - 0.95) + level);
    [row(0.0), row(encoder)].concat()
}

fn null_rates(simulations: u32, resamples: u32, errors: f64) {
    for world in WORLDS {
        let name = format!("{} {}", world.0, world.1);
        let pair = |i: u32| resampled(world, i, &[0.0, 0.0], resamples).difference(&[1], &[0], 0).1;
        // 96 ratings reject a little too often (6.3 % in long simulations), as percentile intervals of small samples do.
        nominal(&name, rate(simulations, pair), simulations, errors, 0.012);
        // Against a baseline of one, and against another recipe of five trainings.
        let recipes = |i: u32| {
            let models = [vec![0.0], trainings(i, 0, 0.0), trainings(i, 1, 0.0)].concat();
            resampled(world, i, &models, resamples)
        };
        let baseline = |i: u32| recipes(i).difference(&[1, 2, 3, 4, 5], &[0], 0).1;
        nominal(
            &format!("{name}, recipe - baseline"),
            rate(simulations, baseline),
            simulations,
            errors,
            0.02,
        );
        let both = |i: u32| recipes(i).difference(&[6, 7, 8, 9, 10], &[1, 2, 3, 4, 5], 0).1;
        nominal(
            &format!("{name}, recipe - recipe"),
            rate(simulations, both),
            simulations,
            errors,
            0.025,
        );
    }
    for world in [WORLDS[1], WORLDS[2]] {
        let name = format!("{} {}", world.0, world.1);
        let effects =
            |i: u32| grid().effects(&resampled(world, i, &cells(0.0, 0.0), resamples), &[], 0);
        let trend = |i: u32| effects(i).threshold.unwrap().p;
        nominal(&format!("{name}, threshold"), rate(simulations, trend), simulations, errors, 0.01);
        let encoder = |i: u32| effects(i).encoder.unwrap().p;
        nominal(&format!("{name}, encoder"), rate(simulations, encoder), simulations, errors, 0.01);
        let interaction = |i: u32| effects(i).interaction.unwrap().p;
        nominal(
            &format!("{name}, interaction"),
            rate(simulations, interaction),
            simulations,
            errors,
            0.015,
        );
        // An effect of one axis is none of the other, and no interaction.
        let effects =
            |i: u32| grid().effects(&resampled(world, i, &cells(0.05, 0.0), resamples), &[], 0);
        let encoder = |i: u32| effects(i).encoder.unwrap().p;
        nominal(
            &format!("{name}, encoder beside a trend"),
            rate(simulations, encoder),
            simulations,
            errors,
            0.01,
        );
    }
}

#[test]
fn tests_reject_nothing_more_often_than_they_say() {
    null_rates(120, 400, 3.3);
}

#[test]
#[ignore = "minutes"]
fn tests_reject_nothing_more_often_than_they_say_long() {
    null_rates(2000, 1000, 2.0);
}

/// The truth of a score, from very many images.
fn truth((name, which, world, _): (&str, &str, World, usize)) -> f64 {
    let mut dice = Dice::new(u32::MAX, 0);
    let hard: Vec<f64> = (0..60_000).map(|_| 0.8 * dice.normal()).collect();
    let tally = world(&mut Dice::new(u32::MAX, 1), &hard, 0.0);
    (statistic(name, which, &tally).value)(&tally.sums())
}

fn coverage(simulations: u32, resamples: u32, errors: f64) {
    for world in WORLDS {
        let truth = truth(world);
        let misses = |i: u32| {
            let found = resampled(world, i, &[0.0], resamples).score(0, 0);
            let covers = found.low.unwrap() <= truth && truth <= found.high.unwrap();
            Some(f64::from(u8::from(covers)))
        };
        let name = format!("{} {} does not cover", world.0, world.1);
        nominal(&name, rate(simulations, misses), simulations, errors, 0.012);
    }
    // At a bound: 99 answers of which 99 % are right. Quantiles alone cover 63 %.
    let rare: World = |dice, hard, _| {
        let rows: Vec<ItemScore> = (0..hard.len())
            .map(|i| item(i, i, &[("sum", f64::from(u8::from(dice.chance(0.99)))), ("n", 1.0)]))
            .collect();
        Tally::new(&rows)
    };
    let misses = |i: u32| {
        let found = resampled(("vqat", "accuracy", rare, 99), i, &[0.0], resamples).score(0, 0);
        Some(f64::from(u8::from(found.low.unwrap() <= 99.0 && 99.0 <= found.high.unwrap())))
    };
    let rate = rate(simulations, misses);
    println!("99 of 99: does not cover in {:.2} %", 100.0 * rate);
    assert!(rate <= 0.08, "{rate}");
}

#[test]
fn intervals_cover_the_truth() {
    coverage(120, 400, 3.3);
}

#[test]
#[ignore = "minutes"]
fn intervals_cover_the_truth_long() {
    coverage(2000, 1000, 2.0);
}

/// A trend of the size that the test is said to see is found in four of five simulations, and its slope is right.
fn planted(simulations: u32, resamples: u32) -> (f64, f64) {
    let world = WORLDS[1];
    let effects = |i: u32, slope: f64| {
        grid()
            .effects(&resampled(world, i, &cells(slope, 0.3), resamples), &[], 0)
            .threshold
            .unwrap()
    };
    // The standard error at no slope, and the accuracy that a unit of slope brings.
    let stderr = effects(0, 0.0).difference.stderr.unwrap();
    let mean = |slope: f64| {
        let all =
            (0..200u32).into_par_iter().map(|i| effects(i + 5000, slope).difference.value.unwrap());
        all.sum::<f64>() / 200.0
    };
    let step = 0.02;
    let gain = mean(step) / step;
    let slope = seen(stderr, 1) / gain;
    let found = rate(simulations, |i| effects(i, slope).p);
    println!("a trend of {:.3} a .01: found in {:.1} %", slope * gain, 100.0 * found);
    (found, mean(slope) - slope * gain)
}

#[test]
fn a_planted_trend_is_found_with_the_power_that_is_printed() {
    let (found, bias) = planted(100, 200);
    assert!((0.65..=0.95).contains(&found), "{found}");
    assert!(bias.abs() < 0.05, "{bias}");
}

#[test]
#[ignore = "minutes"]
fn a_planted_trend_is_found_with_the_power_that_is_printed_long() {
    let (found, _) = planted(2000, 1000);
    assert!((0.75..=0.85).contains(&found), "{found}");
}

/// The published fault: with the images fixed, an interval over five seeds excludes the baseline in half of all benchmarks though
/// the recipe does nothing in the population of images. The test over images and seeds does not.
#[test]
fn an_interval_over_seeds_alone_is_not_over_images() {
    let world = WORLDS[1];
    // A recipe whose trainings share what they do to an image, and nothing on average.
    let seeds_alone = |i: u32| {
        let mut dice = Dice::new(i, 0);
        let images = world.3;
        let hard: Vec<f64> = (0..images).map(|_| 0.8 * dice.normal()).collect();
        let moved: Vec<f64> = hard.iter().map(|hard| hard + 1.5 * dice.normal()).collect();
        let again: Vec<f64> = hard.iter().map(|hard| hard + 1.5 * dice.normal()).collect();
        let mut tallies = vec![pope(&mut Dice::new(i, 1), &again, 0.0)];
        tallies.extend((2..7).map(|seed| pope(&mut Dice::new(i, seed), &moved, 0.0)));
        let statistics: Vec<Statistic> =
            tallies.iter().map(|tally| statistic(world.0, world.1, tally)).collect();
        let runs: Vec<(&Tally, Vec<&Statistic>)> =
            tallies.iter().zip(&statistics).map(|(tally, one)| (tally, vec![one])).collect();
        let drawn = Resampled::new(&runs, 400, u64::from(i));
        let values: Vec<f64> = (1..6).map(|run| drawn.value(run, 0)).collect();
        let mean = values.iter().sum::<f64>() / 5.0;
        let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 4.0 / 5.0).sqrt();
        let student = (mean - drawn.value(0, 0)).abs() > 2.776 * deviation;
        (student, drawn.difference(&[1, 2, 3, 4, 5], &[0], 0).1.unwrap() < 0.05)
    };
    let all: Vec<(bool, bool)> = (0..150).into_par_iter().map(seeds_alone).collect();
    let share =
        |pick: fn(&(bool, bool)) -> bool| all.iter().filter(|x| pick(x)).count() as f64 / 150.0;
    let (student, images) = (share(|x| x.0), share(|x| x.1));
    println!("over seeds alone {student:.2}, over images and seeds {images:.2}");
    assert!(student > 0.2 && images < 0.12, "{student} {images}");
}
