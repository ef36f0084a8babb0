//! The result as Markdown, CSV, and a table for the terminal.

use std::fmt::Write;

use super::effects::{Difference, Effects, JointTest, Power, Recipes};
use super::plan::{BASELINE, Kind};
use super::table::{Ablation, ModelResult, Score, Seeds, Spread, Statistic};
use crate::eval::intervals::{floor, p_text};
use crate::eval::layout::new_table;

impl ModelResult {
    /// The model in few words: cells by their label, others by what they are.
    pub fn title(&self) -> String {
        match &self.kind {
            Kind::Baseline => "baseline".to_owned(),
            Kind::Control => format!("control (SFT), seed {}", self.seed),
            Kind::Variant(name) => format!("{name}, seed {}", self.seed),
            Kind::Cells(cells) => match self.name.contains("__seed") {
                true => format!("{}, seed {}", cells[0], self.seed),
                false => cells.join(" = "),
            },
        }
    }

    /// Seconds of all stages.
    pub fn cost(&self) -> f64 {
        self.seconds.values().sum()
    }
}

impl Ablation {
    /// The model that answers for a cell.
    pub fn model(&self, name: &str) -> Option<&ModelResult> {
        self.models.iter().find(|model| model.name == name)
    }

    /// Column titles of the statistics.
    pub fn heads(&self) -> Vec<String> {
        let all = self.statistics.iter();
        all.map(|s| {
            format!(
                "{} {}{}",
                s.metric,
                s.name,
                if s.less_is_better { " (less is better)" } else { "" }
            )
        })
        .collect()
    }

    /// Baseline, every cell, and the other seeds, with their costs.
    fn rows(&self) -> Vec<(String, &ModelResult)> {
        let baseline = self.model(BASELINE).map(|model| ("baseline".to_owned(), model));
        let cells = self
            .cells
            .iter()
            .filter_map(|cell| Some((cell.cell.clone(), self.model(&cell.model)?)));
        let grid = |model: &&ModelResult| {
            model.kind != Kind::Baseline && !self.cells.iter().any(|cell| cell.model == model.name)
        };
        let others = self.models.iter().filter(grid).map(|model| (model.title(), model));
        baseline.into_iter().chain(cells).chain(others).collect()
    }

    /// Values, their differences to baseline and default cell, p-values: one row a model and statistic. No times, so that two
    /// runs give the same bytes.
    pub fn csv(&self) -> String {
        let test = ["", "_low", "_high", "_sees", "_p", "_p_holm"];
        let heads =
            ["vs_baseline", "vs_default"].map(|of| test.map(|end| format!("{of}{end}")).join(","));
        let mut text = format!(
            "row,model,seed,pairs,metric,statistic,units,value,low,high,{}\n",
            heads.join(",")
        );
        for (row, model) in self.rows() {
            for (statistic, score) in self.statistics.iter().zip(&model.scores) {
                let value = |of: fn(&crate::eval::tally::Estimate) -> Option<f64>| {
                    number(score.value.as_ref().and_then(of))
                };
                let test = |difference: &Option<Difference>| match difference {
                    None => ",,,,,".to_owned(),
                    Some(test) => test_columns(test),
                };
                let _ = writeln!(
                    text,
                    "\"{row}\",{},{},{},{},{},{},{},{},{},{},{}",
                    model.name,
                    model.seed,
                    model.pairs,
                    statistic.metric,
                    statistic.name,
                    score.value.map_or(0, |value| value.units),
                    value(|e| e.value),
                    value(|e| e.low),
                    value(|e| e.high),
                    test(&score.baseline),
                    test(&score.default),
                );
            }
        }
        text
    }

    /// The axes of the grid and the recipes: one row a test and statistic.
    pub fn tests_csv(&self) -> String {
        let mut text = "metric,statistic,test,difference,low,high,sees,p,p_holm\n".to_owned();
        for (i, statistic) in self.statistics.iter().enumerate() {
            let mut row = |name: String, columns: String| {
                let Statistic { metric, name: own, .. } = statistic;
                let _ = writeln!(text, "{metric},{own},{name},{columns}");
            };
            if let Some(effects) = self.effects.get(i) {
                if let Some(test) = &effects.threshold {
                    row("threshold (.01 more)".to_owned(), test_columns(test));
                }
                for (name, test) in
                    [("encoder", effects.encoder), ("interaction", effects.interaction)]
                {
                    if let Some(JointTest { deviation, p }) = test {
                        row(name.to_owned(), format!("{},,,,{},", number(deviation), number(p)));
                    }
                }
            }
            for Recipes { a, b, test, .. } in self.recipes.get(i).into_iter().flatten() {
                row(format!("{a} - {b}"), test_columns(test));
            }
        }
        text
    }

    /// Everything, for people.
    pub fn markdown(&self) -> String {
        let mut text = format!("# Ablation on {}\n\n", self.data);
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text.push_str("\n## Recipes over images and seeds\n\nMean over seeds, difference [95 % interval] p, sees.\n\n");
        text.push_str(&table_markdown(&self.recipe_heads(), &self.recipe_rows()));
        text.push_str("\n## Threshold and encoder\n\n");
        text.push_str(&table_markdown(&EFFECT_HEADS.map(str::to_owned), &self.effect_rows()));
        text.push_str("\n## What this run can see\n\n");
        text.push_str(&table_markdown(&POWER_HEADS.map(str::to_owned), &self.power_rows()));
        text.push_str("\n## Scores\n\nValue [95 % interval].\n\n");
        self.rows_into(&mut text, |score| score.value.map_or_else(dash, |e| e.to_string()));
        text.push_str(
            "\n## Difference to the baseline\n\nDifference [95 % interval] p (Holm), sees.\n\n",
        );
        let test = |test: &Difference| self.test(test);
        self.rows_into(&mut text, |score| score.baseline.as_ref().map_or_else(dash, test));
        let _ = writeln!(text, "\n## Difference to {}\n", self.default);
        self.rows_into(&mut text, |score| score.default.as_ref().map_or_else(dash, test));
        text.push_str(
            "\n## Over seeds alone\n\nMean [95 % interval over trainings, for these images].\n\n",
        );
        text.push_str(&self.seeds_markdown());
        text.push_str("\n## Cost\n\n| model | pairs | left out | reference s | train s | judge s |\n|---|---|---|---|---|---|\n");
        for model in &self.models {
            let seconds =
                |stage: &str| model.seconds.get(stage).map_or_else(dash, |s| format!("{s:.1}"));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} |",
                model.title(),
                model.pairs,
                model.excluded,
                seconds("reference"),
                seconds("train"),
                seconds("judge")
            );
        }
        text
    }

    fn rows_into(&self, text: &mut String, cell: impl Fn(&Score) -> String) {
        let heads = self.heads();
        let _ = writeln!(text, "| | {} |", heads.join(" | "));
        let _ = writeln!(text, "|---{}|", "|---".repeat(heads.len()));
        for (row, model) in self.rows() {
            let cells: Vec<String> = model.scores.iter().map(&cell).collect();
            let _ = writeln!(text, "| {row} | {} |", cells.join(" | "));
        }
    }

    /// Titles of the columns over seeds.
    pub fn seed_heads(&self) -> Vec<String> {
        let own = ["statistic", "baseline", "default cell", "control (SFT)"].map(str::to_owned);
        own.into_iter().chain(self.variants.iter().map(|variant| variant.name.clone())).collect()
    }

    /// Values over seeds: a row a statistic, in the order of [`Ablation::seed_heads`].
    pub fn seed_rows(&self) -> Vec<Vec<String>> {
        let row = |(head, seeds): (String, &Seeds)| {
            let baseline = seeds.baseline.map_or_else(dash, |x| format!("{x:.2}"));
            let control = seeds.control.as_ref().map_or_else(dash, Spread::to_string);
            let own = [head, baseline, seeds.default.to_string(), control];
            own.into_iter().chain(seeds.variants.iter().map(Spread::to_string)).collect()
        };
        self.heads().into_iter().zip(&self.seeds).map(row).collect()
    }

    /// Titles of [`Ablation::recipe_rows`].
    pub fn recipe_heads(&self) -> Vec<String> {
        let pairs = self.recipes.first().into_iter().flatten();
        let head = |Recipes { a, b, seeds: [n, m], .. }: &Recipes| format!("{a} ({n}) - {b} ({m})");
        ["statistic".to_owned()].into_iter().chain(pairs.map(head)).collect()
    }

    /// Recipes in pairs, a row a statistic.
    pub fn recipe_rows(&self) -> Vec<Vec<String>> {
        let row = |(head, pairs): (String, &Vec<Recipes>)| {
            let tests = pairs.iter().map(|pair| self.test(&pair.test));
            [head].into_iter().chain(tests).collect()
        };
        self.heads().into_iter().zip(&self.recipes).map(row).collect()
    }

    /// The grid's axes, a row a statistic, in the order of [`EFFECT_HEADS`].
    pub fn effect_rows(&self) -> Vec<Vec<String>> {
        let joint = |test: Option<JointTest>| {
            test.and_then(|test| Some((test.deviation?, test.p?))).map_or_else(dash, |(x, p)| {
                format!("{x:.2}, p {}", p_text(p, 2 * self.resamples + 1))
            })
        };
        let row = |(head, effects): (String, &Effects)| {
            let (cells, seeds, ratio) = match &effects.variances {
                None => (dash(), dash(), dash()),
                Some(both) => (
                    format!("{:.3} ({})", both.cells, both.cells_freedom),
                    both.seeds.map_or_else(dash, |x| format!("{x:.3} ({})", both.seeds_freedom)),
                    both.ratio().map_or_else(dash, |x| format!("{x:.2}")),
                ),
            };
            let threshold = effects.threshold.as_ref().map_or_else(dash, |test| self.test(test));
            let (encoder, interaction) = (joint(effects.encoder), joint(effects.interaction));
            vec![head, threshold, encoder, interaction, cells, seeds, ratio]
        };
        self.heads().into_iter().zip(&self.effects).map(row).collect()
    }

    /// What a test can see, a row a statistic, in the order of [`POWER_HEADS`].
    pub fn power_rows(&self) -> Vec<Vec<String>> {
        let row = |(head, power): (String, &Power)| {
            let numbers = [power.stderr, power.alone, power.holm]
                .map(|x| x.map_or_else(dash, |x| format!("{x:.2}")));
            [head].into_iter().chain(numbers).collect()
        };
        self.heads().into_iter().zip(&self.power).map(row).collect()
    }

    /// A difference with its interval, p-values, and what its test sees.
    fn test(&self, test: &Difference) -> String {
        let p = |p: f64| p_text(p, self.resamples);
        // An adjusted p-value at the floor's is only known to be below it, too.
        let floored = test.p.is_some_and(|p| p <= floor(self.resamples) * (1.0 + 1e-9));
        let holm = test.p_holm.map_or_else(String::new, |p| match floored && p < 1.0 {
            true => format!(" (< {:.3})", (p * 1000.0).ceil() / 1000.0),
            false => format!(" ({p:.3})"),
        });
        let sees = test.sees().map_or_else(String::new, |sees| format!(", sees {sees:.2}"));
        format!("{} {}{holm}{sees}", test.difference, test.p.map_or_else(dash, p))
    }

    fn seeds_markdown(&self) -> String {
        let mut text = table_markdown(&self.seed_heads(), &self.seed_rows());
        if !self.variants.is_empty() {
            text.push_str("\nVariants of the default cell:\n\n");
        }
        for variant in &self.variants {
            let _ = writeln!(text, "- {}: {}", variant.name, variant.settings);
        }
        text
    }

    /// Scores for the terminal: values only.
    pub fn table(&self) -> String {
        let heads = self.statistics.iter().map(|s| format!("{}\n{}", s.metric, s.name));
        let heads: Vec<String> =
            [String::new()].into_iter().chain(heads).chain(["s".to_owned()]).collect();
        let mut table = new_table(&heads.iter().map(String::as_str).collect::<Vec<_>>());
        for (row, model) in self.rows() {
            let values = model.scores.iter().map(|score| match score.value.and_then(|e| e.value) {
                Some(value) => format!("{value:.2}"),
                None => dash(),
            });
            let cost = format!("{:.0}", model.cost());
            table.add_row(std::iter::once(row).chain(values).chain([cost]));
        }
        format!("{table}\n\n{}", self.notes.join("\n"))
    }
}

fn dash() -> String {
    "–".to_owned()
}

/// Titles of [`Ablation::effect_rows`].
pub const EFFECT_HEADS: [&str; 7] = [
    "statistic",
    "threshold, for .01 more",
    "encoders, deviation",
    "interaction, deviation",
    "variance between models of cells (degrees of freedom)",
    "between seeds",
    "ratio",
];

/// Titles of [`Ablation::power_rows`].
pub const POWER_HEADS: [&str; 4] = [
    "statistic",
    "standard error of a difference to the baseline",
    "seen with 80 % power",
    "seen as the first of the grid (Holm)",
];

fn table_markdown(heads: &[String], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

fn number(x: Option<f64>) -> String {
    x.map_or_else(String::new, |x| format!("{x:.6}"))
}

/// Difference, interval, what the test sees, p-values.
fn test_columns(test: &Difference) -> String {
    let Difference { difference, p, p_holm } = test;
    [difference.value, difference.low, difference.high, test.sees(), *p, *p_holm]
        .map(number)
        .join(",")
}
