//! The result as Markdown, CSV, and a table for the terminal.

use std::fmt::Write;

use super::plan::{BASELINE, Kind};
use super::table::{Ablation, Difference, ModelResult, Score, Seeds, Spread};
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
        let mut text = "row,model,seed,pairs,metric,statistic,value,low,high,vs_baseline,vs_baseline_p,vs_baseline_p_holm,\
                        vs_default,vs_default_p,vs_default_p_holm\n"
            .to_owned();
        let number = |x: Option<f64>| x.map_or_else(String::new, |x| format!("{x:.6}"));
        for (row, model) in self.rows() {
            for (statistic, score) in self.statistics.iter().zip(&model.scores) {
                let value = |of: fn(&crate::eval::tally::Estimate) -> Option<f64>| {
                    number(score.value.as_ref().and_then(of))
                };
                let test = |difference: &Option<Difference>| match difference {
                    None => ",,".to_owned(),
                    Some(d) => [d.difference.value, d.p, d.p_holm].map(number).join(","),
                };
                let _ = writeln!(
                    text,
                    "\"{row}\",{},{},{},{},{},{},{},{},{},{}",
                    model.name,
                    model.seed,
                    model.pairs,
                    statistic.metric,
                    statistic.name,
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

    /// Everything, for people.
    pub fn markdown(&self) -> String {
        let mut text = format!("# Ablation on {}\n\n", self.data);
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text.push_str("\n## Scores\n\nValue [95 % interval].\n\n");
        self.rows_into(&mut text, |score| score.value.map_or_else(dash, |e| e.to_string()));
        text.push_str(
            "\n## Difference to the baseline\n\nDifference [95 % interval] p (Holm).\n\n",
        );
        self.rows_into(&mut text, |score| score.baseline.as_ref().map_or_else(dash, test));
        let _ = writeln!(text, "\n## Difference to {}\n", self.default);
        self.rows_into(&mut text, |score| score.default.as_ref().map_or_else(dash, test));
        text.push_str("\n## Over seeds\n\nMean [95 % interval over trainings].\n\n");
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

    fn seeds_markdown(&self) -> String {
        let heads = self.seed_heads();
        let mut text = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
        for row in self.seed_rows() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
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

fn test(difference: &Difference) -> String {
    let p = |p: Option<f64>| p.map_or_else(dash, |p| format!("{p:.3}"));
    format!("{} {} ({})", difference.difference, p(difference.p), p(difference.p_holm))
}
