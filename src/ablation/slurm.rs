//! The ablation as SLURM job arrays over a shared run folder: generate, decide, train, judge, report.
//!
//! Each job is the command that a person would type, on a run folder that says everything else (`run.json`), and does nothing that
//! is done: a job may be requeued at any time, and submitting again submits what is missing. A shard has a store file of its own;
//! a model is one task of the training array and the same task of the judging array.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use super::plan::Plan;
use super::run::done;
use super::table::Ablation;
use super::{RESULT, plan};
use crate::config::{Config, SavedRun};
use crate::data::json::read_document;
use crate::files::write_file;
use crate::store::Store;
use crate::sweep::summary::Summary;
use crate::{Error, Result};

/// How jobs are submitted.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Parts that candidates are generated in.
    pub shards: u32,
    /// Also train and judge.
    pub train: bool,
    /// Options of every `sbatch`, as `--partition=gpu`.
    pub options: Vec<String>,
    /// Arguments of every job's command, as `--device cuda`.
    pub arguments: Vec<String>,
}

/// A job or job array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its stage.
    pub name: &'static str,
    /// Tasks of the array; none for a single job.
    pub tasks: Option<usize>,
    /// What it waits for, and how: the whole, or its own task.
    pub after: Option<(&'static str, After)>,
    /// Arguments of the command after `--from-run RUN`.
    pub arguments: String,
}

/// How a job waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// For all tasks.
    Whole,
    /// For the task of the same number.
    Task,
}

/// A job that was submitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Submitted {
    /// Its stage.
    pub stage: String,
    /// SLURM's number.
    pub job: String,
    /// Tasks, if it is an array.
    pub tasks: Option<usize>,
}

/// The jobs of a run, each after those that it waits for.
pub fn jobs(config: &Config, cluster: &Cluster) -> Vec<Job> {
    // Which cells share a model is known once they are decided; no more models than this can come of them.
    let cells = config.grid.encoders.len() * config.grid.thresholds.len();
    let seeds = config.ablation.seeds as usize;
    let repeated = 1 + usize::from(config.ablation.control) + config.variants.len();
    let models = cells + repeated * seeds;
    let part = |text: &str, n: usize| format!("{text} $SLURM_ARRAY_TASK_ID/{n}");
    let shards = cluster.shards as usize;
    let mut jobs = vec![
        Job {
            name: "generate",
            tasks: Some(shards),
            after: None,
            arguments: part("--shard", shards),
        },
        Job {
            name: "decide",
            tasks: None,
            after: Some(("generate", After::Whole)),
            arguments: String::new(),
        },
    ];
    if cluster.train {
        jobs.push(Job {
            name: "train",
            tasks: Some(models),
            after: Some(("decide", After::Whole)),
            arguments: part("--stage train --part", models),
        });
        jobs.push(Job {
            name: "judge",
            tasks: Some(models),
            after: Some(("train", After::Task)),
            arguments: part("--stage judge --part", models),
        });
        jobs.push(Job {
            name: "report",
            tasks: None,
            after: Some(("judge", After::Whole)),
            arguments: "--train --eval".to_owned(),
        });
    }
    jobs
}

/// Writes `run.json` and the jobs' scripts into the run folder, and submits them.
///
/// # Errors
/// A run folder that cannot be written; an `sbatch` that is missing or refuses, with its message.
pub fn submit(config: &Config, cluster: &Cluster) -> Result<Vec<Submitted>> {
    let run = std::path::absolute(&config.run.out).map_err(Error::io(&config.run.out))?;
    let folder = run.join("slurm");
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    SavedRun::of(config).write(&run)?;
    let program = std::env::current_exe().map_err(Error::io("this program"))?;
    let mut submitted: Vec<Submitted> = Vec::new();
    for job in jobs(config, cluster) {
        let script = folder.join(format!("{}.sh", job.name));
        write_file(&script, text(&job, cluster, &program, &run).as_bytes())?;
        let mut command = Command::new("sbatch");
        command.args([
            "--parsable",
            "--requeue",
            "--open-mode=append",
            "--kill-on-invalid-dep=yes",
        ]);
        command.arg(format!("--job-name=bdhs-{}", job.name));
        let number = if job.tasks.is_some() { "%A_%a" } else { "%j" };
        command.arg(format!("--output={}/{}-{number}.log", folder.display(), job.name));
        if let Some(tasks) = job.tasks {
            command.arg(format!("--array=1-{tasks}"));
        }
        if let Some((stage, how)) = job.after {
            let before = submitted.iter().find(|other| other.stage == stage);
            let number = before.map_or("", |other| other.job.as_str());
            let kind = match how {
                After::Whole => "afterok",
                After::Task => "aftercorr",
            };
            command.arg(format!("--dependency={kind}:{number}"));
        }
        command.args(&cluster.options).arg(&script);
        let output = command.output().map_err(Error::io("sbatch"))?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // On clusters of several, the number is followed by the cluster's name.
        let number = said.split(';').next().unwrap_or_default().to_owned();
        if !output.status.success() || number.parse::<u64>().is_err() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let message = format!("sbatch did not take it: {reason}{said}");
            return Err(Error::invalid(script, "", message));
        }
        submitted.push(Submitted { stage: job.name.to_owned(), job: number, tasks: job.tasks });
    }
    Ok(submitted)
}

/// A job's script.
fn text(job: &Job, cluster: &Cluster, program: &Path, run: &Path) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let mut line = format!("exec {} sweep --quiet", quote(&program.to_string_lossy()));
    for argument in &cluster.arguments {
        let _ = write!(line, " {}", quote(argument));
    }
    let _ = write!(line, " --from-run {} {}", quote(&run.to_string_lossy()), job.arguments);
    format!("#!/bin/sh\n{}\n", line.trim_end())
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Store files, and the candidates in each.
    pub stores: Vec<(PathBuf, usize)>,
    /// Whether cells are decided and exported.
    pub decided: bool,
    /// Models of the plan; 0 as long as it is not decided.
    pub models: usize,
    /// Of these, trained.
    pub trained: usize,
    /// Of these, judged.
    pub judged: usize,
    /// Whether the result is written.
    pub finished: bool,
}

/// Reads a run folder; nothing is changed.
///
/// # Errors
/// A file that is malformed.
pub fn status(config: &Config) -> Result<Status> {
    let run = &config.run.out;
    let folders: Vec<PathBuf> = config.runs()?.into_iter().map(|own| own.run.out).collect();
    let mut stores = Vec::new();
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
        let mut paths: Vec<PathBuf> =
            entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "db")) {
            let candidates = Store::open(&path)?.candidate_refs()?.len();
            stores.push((path, candidates));
        }
    }
    let decided = folders.iter().all(|folder| folder.join("summary.json").is_file());
    let (mut models, mut counts) = (0, [0, 0]);
    if decided {
        let plan: Plan = plan(config, &Summary::read(run)?)?;
        (models, counts) = (plan.models.len(), done(config, &plan)?);
    }
    let result = run.join(RESULT);
    let finished = result.is_file() && read_document::<Ablation>(&result).is_ok();
    let [trained, judged] = counts;
    Ok(Status { stores, decided, models, trained, judged, finished })
}

impl Status {
    /// A few lines for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let run = self.stores.first().and_then(|(path, _)| path.parent());
        for (path, candidates) in &self.stores {
            let inside = run.and_then(|run| path.strip_prefix(run).ok()).unwrap_or(path);
            let name = inside.to_string_lossy();
            let _ = writeln!(text, "{name:<28} {candidates} candidates");
        }
        let yes = |yes: bool| if yes { "yes" } else { "no" };
        let _ = writeln!(text, "decided                      {}", yes(self.decided));
        let _ = writeln!(text, "trained                      {} of {}", self.trained, self.models);
        let _ = writeln!(text, "judged                       {} of {}", self.judged, self.models);
        let _ = write!(text, "result                       {}", yes(self.finished));
        text
    }
}
