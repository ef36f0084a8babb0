//! The ablation as SLURM job arrays over a shared run folder: generate, decide, train, judge, report.
//!
//! Each job is the command that a person would type, on a run folder that says everything else (`run.json`), and does nothing that
//! is done: a job may be requeued at any time, and submitting again submits what is missing. A shard has a store file of its own;
//! a model is one task of the training array and the same task of the judging array.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::plan::Plan;
use super::run::done;
use super::table::Ablation;
use super::{RESULT, plan};
use crate::config::{Config, SavedRun};
use crate::data::Described;
use crate::data::json::read_document;
use crate::files::{write_file, write_json};
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

/// What `RUN/slurm/jobs.json` remembers of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    stage: String,
    /// SLURM's number; none while `sbatch` is at it, and after one that gave no number.
    job: Option<String>,
    tasks: Option<usize>,
}

/// Writes `run.json` and the jobs' scripts into the run folder, and submits them. A job of an earlier call that is still queued or
/// at work is not submitted again.
///
/// # Errors
/// Before anything is written: no `sbatch`. A run folder that cannot be written; an `sbatch` that refuses, with its message, or
/// gives no number, with how to find the job; jobs of an earlier call of which nothing can be said.
pub fn submit(config: &Config, cluster: &Cluster) -> Result<Vec<Submitted>> {
    match Command::new("sbatch").arg("--version").output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let message = "there is no sbatch on this machine's PATH; run this on a login node of the cluster, \
                           or give the parts of the run to machines yourself with --shard I/N";
            return Err(Error::unsupported("--slurm", message));
        }
        // What else it has to say, it says of a job.
        _ => {}
    }
    config.check_folder()?;
    let run = std::path::absolute(&config.run.out).map_err(Error::io(&config.run.out))?;
    let folder = run.join("slurm");
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let path = folder.join("jobs.json");
    let mut known = still_there(&path)?;
    SavedRun::of(config, Described::default()).write(&run)?;
    let program = std::env::current_exe().map_err(Error::io("this program"))?;
    let mut submitted: Vec<Submitted> = Vec::new();
    for job in jobs(config, cluster) {
        let script = folder.join(format!("{}.sh", job.name));
        if let Some(entry) = known.iter().find(|entry| entry.stage == job.name) {
            submitted.push(reuse(entry, &job)?);
            continue;
        }
        write_file(&script, text(&job, cluster, &program, &run).as_bytes())?;
        // Written before the job can be there: whatever ends this process, it is not submitted again unseen.
        known.push(Entry { stage: job.name.to_owned(), job: None, tasks: job.tasks });
        write_json(&path, &known)?;
        let number = sbatch(&job, cluster, &submitted, &folder, &script);
        match &number {
            Ok(Some(number)) => {
                if let Some(entry) = known.last_mut() {
                    entry.job = Some(number.clone());
                }
            }
            // Refused: there is no job.
            Err(_) => known.truncate(known.len() - 1),
            Ok(None) => {}
        }
        write_json(&path, &known)?;
        let Some(number) = number? else { return Err(lost(&path, job.name)) };
        submitted.push(Submitted { stage: job.name.to_owned(), job: number, tasks: job.tasks });
    }
    Ok(submitted)
}

/// A job of an earlier call in place of a new one.
fn reuse(entry: &Entry, job: &Job) -> Result<Submitted> {
    let number = entry.job.clone().unwrap_or_default();
    if entry.tasks != job.tasks {
        let tasks =
            |tasks: Option<usize>| tasks.map_or("one task".to_owned(), |n| format!("{n} tasks"));
        let message = format!(
            "job {number} of an earlier call is still there with {}, this call has {}; wait for it, or cancel it \
             (scancel {number}), and submit again",
            tasks(entry.tasks),
            tasks(job.tasks)
        );
        return Err(Error::invalid("--slurm", format!("stage {}", job.name), message));
    }
    Ok(Submitted { stage: entry.stage.clone(), job: number, tasks: entry.tasks })
}

/// The jobs of earlier calls that are still queued or at work.
fn still_there(path: &Path) -> Result<Vec<Entry>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let mut entries: Vec<Entry> = read_document(path)?;
    let mut there = Vec::new();
    for entry in entries.drain(..) {
        let Some(job) = &entry.job else { return Err(lost(path, &entry.stage)) };
        let output =
            Command::new("squeue").args(["--noheader", "--format=%A", "--jobs", job]).output();
        let output = output.map_err(|error| {
            let message = format!(
                "has job {job} of stage {}, and squeue, which knows whether it is still there, did not start: {error}; \
                 once no job of this run is left, delete the file and submit again",
                entry.stage
            );
            Error::invalid(path, "", message)
        })?;
        // Of a number that it no longer knows, squeue says so and fails.
        let gone = String::from_utf8_lossy(&output.stderr).contains("Invalid job id");
        if !output.status.success() && !gone {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let message = format!("squeue does not say whether job {job} is still there: {reason}");
            return Err(Error::invalid(path, format!("stage {}", entry.stage), message));
        }
        if !output.stdout.trim_ascii().is_empty() {
            there.push(entry);
        }
    }
    Ok(there)
}

/// A job may be there whose number nobody knows.
fn lost(path: &Path, stage: &str) -> Error {
    let message = format!(
        "sbatch gave no number, so a job bdhs-{stage} may have been submitted: look for it with \
         `squeue --me --name=bdhs-{stage}`, cancel it with `scancel --me --name=bdhs-{stage}`, then delete this file and \
         submit again"
    );
    Error::invalid(path, format!("stage {stage}"), message)
}

/// Submits a job; its number, if `sbatch` told one.
fn sbatch(
    job: &Job,
    cluster: &Cluster,
    submitted: &[Submitted],
    folder: &Path,
    script: &Path,
) -> Result<Option<String>> {
    let mut command = Command::new("sbatch");
    command.args(["--parsable", "--requeue", "--open-mode=append", "--kill-on-invalid-dep=yes"]);
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
    command.args(&cluster.options).arg(script);
    let output = command.output().map_err(Error::io("sbatch"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let message = format!("sbatch did not take it: {reason} {}", said.trim());
        return Err(Error::invalid(script, "", message.trim().to_owned()));
    }
    Ok(job_number(&said))
}

/// The number in what `sbatch` printed: its last line that is a number, which the cluster's name may follow, or that says
/// `Submitted batch job N`. Wrappers of sites print other lines, too.
fn job_number(said: &str) -> Option<String> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.to_owned())
    };
    let line = |line: &str| {
        let line = line.trim();
        number(line.split(';').next().unwrap_or_default()).or_else(|| {
            number(line.strip_prefix("Submitted batch job ")?.split_whitespace().next()?)
        })
    };
    said.lines().rev().find_map(line)
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

#[cfg(test)]
mod tests {
    use super::job_number;

    #[test]
    fn a_job_number_is_found_among_other_lines() {
        for (said, wanted) in [
            ("101\n", Some("101")),
            ("101;alpha\n", Some("101")),
            ("INFO: your project has 1200 GPU hours left\n101\n", Some("101")),
            ("7\n101\nSee https://site/101 for help\n", Some("101")),
            ("Submitted batch job 101 on cluster alpha\n", Some("101")),
            ("INFO 12\nSubmitted batch job 101\n", Some("101")),
            ("", None),
            ("INFO: 1200 hours left\n", None),
            ("job-101\n", None),
        ] {
            assert_eq!(job_number(said).as_deref(), wanted, "{said:?}");
        }
    }
}
