//! One metric from its files to a result in a folder, or all of them: answers, replies, scores.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::{
    Files, METRICS, Metric, Outcome, Settings, Sources,
    answer::{Folders, answer_items},
    ask_judge, evaluate,
    evaluate::open,
    judge::{Cost, Judge},
    layout,
    summary::{Headline, SUMMARY, Summary},
};
use crate::{
    Error, Result,
    engine::{Answering, Images, Progress},
    files::write_json,
    models::Model,
};

/// What makes answers and replies that are not there yet, and where they go.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// Answers the questions, where there is no prediction file.
    pub model: Option<(&'a Model, Answering)>,
    /// Judges the answers, where there is no file of replies.
    pub judge: Option<&'a Judge>,
    /// The benchmark's images, for the model and for judges that see them.
    pub images: Option<&'a Path>,
    /// Features of images that were seen before.
    pub features: &'a RefCell<Images>,
    /// Folder for answers, replies and the result, which a later run continues.
    pub out: Option<&'a Path>,
}

/// Called while a run goes on.
pub struct Callbacks<'a> {
    /// Of answers and replies.
    pub progress: &'a dyn Progress,
    /// The judge's cost: before (true) and after.
    pub cost: &'a dyn Fn(bool, Cost),
}

impl Run<'_> {
    /// Answers, judges and scores one metric; with a folder, leaves everything in it.
    ///
    /// # Errors
    /// As [`answer_items`], [`ask_judge`], [`evaluate`] and [`layout::write`], and if something needs a folder that is not given.
    pub fn run(
        &self,
        metric: &dyn Metric,
        files: &Files,
        settings: &Settings,
        mut sources: Sources,
        callbacks: &Callbacks,
    ) -> Result<Outcome> {
        let name = metric.spec().name;
        let missing = |what| Error::argument(name, what, "not given", "a folder");
        if let (Some((model, answering)), None) = (self.model, &sources.predictions) {
            let images = self.images.ok_or_else(|| missing("--images"))?;
            let out = self.out.ok_or_else(|| missing("--out"))?;
            let folders = Folders { images, out, features: self.features };
            let path = answer_items(
                metric,
                files,
                settings,
                model,
                folders,
                answering,
                callbacks.progress,
            )?;
            sources.predictions = Some(path);
        }
        if let (Some(judge), true) = (self.judge, sources.replies.is_empty()) {
            let out = self.out.ok_or_else(|| missing("--out"))?;
            let Some(predictions) = &sources.predictions else {
                let expected = "answers to judge, or --model";
                return Err(Error::argument(name, "--predictions", "not given", expected));
            };
            let estimate = |cost: Cost| (callbacks.cost)(true, cost);
            let places = (predictions.as_path(), self.images, out);
            let reports = (callbacks.progress, &estimate as &dyn Fn(Cost));
            let (path, cost) = ask_judge(metric, files, settings, places, judge, reports)?;
            (callbacks.cost)(false, cost);
            sources.replies = vec![path];
        }
        let outcome = evaluate(metric, files, settings, &sources)?;
        if let Some(replies) = outcome.replies().filter(|replies| replies.no_grade > 0) {
            callbacks.progress.warn(&format!("{name}: {replies}"));
        }
        if let Some(folder) = self.out {
            let stem = || sources.predictions.as_deref().and_then(Path::file_stem);
            let named = self.model.map(|(model, _)| model.dir().file_name());
            let model = named.unwrap_or_else(stem).unwrap_or_default();
            layout::write(folder, &outcome, &model.to_string_lossy(), layout::now()?)?;
        }
        Ok(outcome)
    }
}

/// Where all metrics' files are.
#[derive(Clone, Debug)]
pub struct Benchmarks<'a> {
    /// Has a folder for each metric, by its name; MMHALv also takes MMHAL's.
    pub data: &'a Path,
    /// What the data is called in results, where it is not the benchmarks themselves.
    pub label: Option<String>,
}

impl Benchmarks<'_> {
    fn files(&self, metric: &dyn Metric) -> Result<Files> {
        let name = metric.spec().name;
        let mut folders = vec![self.data.join(name)];
        if name == "mmhalv" {
            folders.push(self.data.join("mmhal"));
        }
        let folder = folders.iter().find(|folder| folder.is_dir()).ok_or_else(|| {
            let message = format!("has no folder {name}, expected the files of {name} in it");
            Error::invalid(self.data, "", message)
        })?;
        Ok(Files { folder: Some(folder.clone()), label: self.label.clone(), ..Files::default() })
    }
}

/// Checks that several metrics can be run, and finds their files.
///
/// # Errors
/// Files that are missing or malformed, or a judged metric without a judge.
pub fn check(
    benchmarks: &Benchmarks,
    metrics: &[&'static dyn Metric],
    settings: &Settings,
    judge: bool,
) -> Result<Vec<Files>> {
    let mut files = Vec::new();
    for metric in metrics {
        let found = benchmarks.files(*metric)?;
        open(*metric, &found, settings)?;
        metric.can_ask(&found, settings)?;
        if metric.spec().judged && !judge {
            let message =
                format!("one: {} is judged; leave it out or name a judge", metric.spec().name);
            return Err(Error::argument("eval", "judge", "not given", message));
        }
        files.push(found);
    }
    Ok(files)
}

/// Runs several metrics in the order of [`METRICS`], each into its folder in `out`, and writes the summary there. Files are checked
/// before anything is computed. MMHALv takes MMHAL's answers where both ask the same.
///
/// # Errors
/// As [`Run::run`], and if a judged metric has no judge.
pub fn all(
    run: &Run,
    benchmarks: &Benchmarks,
    metrics: &[&'static dyn Metric],
    settings: &Settings,
    callbacks: &Callbacks,
) -> Result<Summary> {
    let missing = |what| Error::argument("eval all", what, "not given", "a value");
    let (model, answering) = run.model.ok_or_else(|| missing("--model"))?;
    let (images, out) =
        (run.images.ok_or_else(|| missing("--images"))?, run.out.ok_or_else(|| missing("--out"))?);
    let files = check(benchmarks, metrics, settings, run.judge.is_some())?;
    let mut summary = Summary {
        model: model.dir().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        data: benchmarks.label.clone().unwrap_or_else(|| benchmarks.data.display().to_string()),
        rho: answering.rho,
        images: images.to_owned(),
        metrics: Vec::new(),
    };
    // What has been answered: a folder of files, and its prediction file.
    let mut answered: Vec<(&Files, PathBuf)> = Vec::new();
    for (metric, files) in metrics.iter().zip(&files) {
        let spec = metric.spec();
        let folder = out.join(spec.name);
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let known = answered.iter().find(|(other, _)| *other == files);
        let sources =
            Sources { predictions: known.map(|(_, path)| path.clone()), ..Sources::default() };
        let judge = run.judge.filter(|_| spec.judged);
        let one = Run { judge, out: Some(&folder), ..*run };
        let outcome = one.run(*metric, files, settings, sources, callbacks)?;
        answered.push((files, folder.join("predictions.jsonl")));
        summary.metrics.extend(outcome.headline());
    }
    write_json(&out.join(SUMMARY), &summary)?;
    Ok(summary)
}

impl Outcome {
    /// The score with its interval; none where nothing was scored.
    pub fn headline(&self) -> Option<Headline> {
        let (name, score) = self.details.get("scores")?.as_object()?.iter().next()?;
        Some(Headline {
            metric: self.metric.clone(),
            protocol: self.protocol,
            name: name.clone(),
            score: serde_json::from_value(score.clone()).ok()?,
            items: self.items.len() as u64,
            replies: self.replies(),
        })
    }
}

/// The metrics of these names, in the order of [`METRICS`]; all where there is none.
///
/// # Errors
/// If one does not exist.
pub fn chosen(names: &[String]) -> Result<Vec<&'static dyn Metric>> {
    for name in names {
        super::metric(name)?;
    }
    let wanted = |metric: &&dyn Metric| {
        names.is_empty() || names.iter().any(|name| name == metric.spec().name)
    };
    Ok(METRICS.into_iter().filter(wanted).collect())
}
