//! `bdhs eval`: benchmarks.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};

use super::{
    Global,
    ui::{Bars, print_json, print_text},
};
use crate::{
    Error, Result,
    engine::Answering,
    eval::{
        self, Files, Protocol, Settings, Singular, Sources, Unit,
        answer::{Folders, answer_items},
        compare,
        judge::{Cost, Endpoint, Judge},
        layout,
    },
    models::{device, llava::Llava},
};

/// Arguments of `bdhs eval`.
#[derive(Args)]
pub(super) struct Eval {
    #[command(subcommand)]
    what: What,
}

/// One command a metric.
#[derive(Subcommand)]
enum What {
    #[command(about = title("pope"), after_help = help("pope"))]
    Pope(Run),
    #[command(about = title("mmhal"), after_help = help("mmhal"))]
    Mmhal(Run),
    #[command(about = title("mmhalv"), after_help = help("mmhalv"))]
    Mmhalv(Run),
    #[command(about = title("llavaw"), after_help = help("llavaw"))]
    Llavaw(Run),
    #[command(about = title("vqat"), after_help = help("vqat"))]
    Vqat(Run),
    #[command(about = title("gqa"), after_help = help("gqa"))]
    Gqa(Run),
    #[command(about = title("mmvet"), after_help = help("mmvet"))]
    Mmvet(Run),
    #[command(about = title("recall-coco"), after_help = help("recall-coco"))]
    RecallCoco(Run),
    /// Compare two results of one metric: differences with intervals, and the items that differ
    Compare(Compare),
}

fn title(name: &str) -> String {
    eval::metric(name).map_or_else(|error| error.to_string(), |metric| metric.spec().title.into())
}

fn help(name: &str) -> String {
    eval::metric(name).map_or_else(|error| error.to_string(), |metric| metric.spec().help())
}

/// What every metric takes.
#[derive(Args)]
struct Run {
    /// Folder with the benchmark's files, in its own layout
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// One of the benchmark's files, by its key (below); repeat for several
    #[arg(long = "file", value_name = "KEY=PATH", value_parser = named_file)]
    files: Vec<(String, PathBuf)>,
    /// Answers: rows with an id and a text, or an object from ids to texts
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
    /// Replies of a judge, for judged metrics; repeat for several runs
    #[arg(long, value_name = "FILE")]
    judge_replies: Vec<PathBuf>,
    /// Whose rules: see below
    #[arg(long, value_name = "NAME")]
    protocol: Option<Protocol>,
    /// Text after each question [default: the reference's]
    #[arg(long, value_name = "TEXT")]
    suffix: Option<String>,
    /// TextVQA: whether prompts list OCR tokens [default: as the protocol does]
    #[arg(long, value_name = "BOOL")]
    ocr: Option<bool>,
    /// Recall_coco: pattern, wordnet or none
    #[arg(long, value_name = "NAME", default_value = "pattern")]
    singular: Singular,
    /// Score missing answers as empty ones
    #[arg(long)]
    allow_missing: bool,
    /// Skip answers to questions that the benchmark does not have
    #[arg(long)]
    allow_extra: bool,
    /// What the bootstrap draws: image (with all its questions) or item
    #[arg(long, value_name = "NAME", default_value = "image")]
    unit: Unit,
    /// Bootstrap resamples; 0 = no intervals
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: u32,
    /// Key of the bootstrap's draws
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Folder for answers, replies, result.json, items.jsonl and lmms-eval's layout; an interrupted run continues in it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Answering with a model")]
    answer: Answer,
    #[command(flatten, next_help_heading = "Asking a judge (OPENAI_BASE_URL, OPENAI_API_KEY)")]
    judge: Ask,
}

/// A model of one's own.
#[derive(Args)]
struct Answer {
    /// LLaVA folder that answers the questions; needs --images and --out
    #[arg(long, value_name = "DIR", requires_all = ["images", "out"], conflicts_with = "predictions")]
    model: Option<PathBuf>,
    /// Folder of the benchmark's images
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Storage type of the model: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: String,
    /// Most tokens of an answer [default: the reference's]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<u32>,
    /// Key-value slots of one wave
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    token_budget: usize,
    /// Share of image tokens that is hidden, in [0, 1]; 1 = no image
    #[arg(long, value_name = "R", default_value_t = 0.0)]
    rho: f64,
}

/// A judge.
#[derive(Args)]
struct Ask {
    /// Model that judges the answers; needs --out
    #[arg(
        long = "judge",
        value_name = "MODEL",
        requires = "out",
        conflicts_with = "judge_replies"
    )]
    judge_model: Option<String>,
    /// Runs over all items
    #[arg(long = "judge-runs", value_name = "N", default_value_t = 1)]
    judge_runs: u32,
    /// Requests under way at once
    #[arg(long = "judge-threads", value_name = "N", default_value_t = 4)]
    judge_threads: usize,
    /// Tries of one request
    #[arg(long = "judge-tries", value_name = "N", default_value_t = 8)]
    judge_tries: u32,
    /// Seconds for one request
    #[arg(long = "judge-timeout", value_name = "S", default_value_t = 120.0)]
    judge_timeout: f64,
    /// Seconds before the second try; doubles up to a minute
    #[arg(long = "judge-backoff", value_name = "S", default_value_t = 1.0)]
    judge_backoff: f64,
    /// Also use replies that name this model
    #[arg(long = "judge-accept", value_name = "MODEL")]
    judge_accept: Option<String>,
    /// Detail level of images for vision judges: auto, low or high
    #[arg(long = "judge-detail", value_name = "LEVEL", default_value = "auto")]
    judge_detail: String,
    /// Prices of a million prompt and reply tokens, to show the cost
    #[arg(long = "judge-prices", value_name = "PROMPT,REPLY", value_parser = prices)]
    judge_prices: Option<(f64, f64)>,
}

fn prices(text: &str) -> Result<(f64, f64), String> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|price| *price >= 0.0);
    text.split_once(',')
        .and_then(|(prompt, reply)| Some((number(prompt)?, number(reply)?)))
        .ok_or_else(|| "expected two numbers, as 2.5,10".to_owned())
}

impl Ask {
    fn judge(&self, model: &str) -> Result<Judge> {
        let seconds = |name, value: f64| {
            Duration::try_from_secs_f64(value)
                .map_err(|_| Error::argument("judge", name, value, "seconds, 0 or more"))
        };
        Ok(Judge {
            endpoint: Endpoint::from_env(model),
            runs: self.judge_runs,
            threads: self.judge_threads,
            tries: self.judge_tries,
            backoff: seconds("--judge-backoff", self.judge_backoff)?,
            timeout: seconds("--judge-timeout", self.judge_timeout)?,
            accept_model: self.judge_accept.clone(),
            detail: self.judge_detail.clone(),
            prices: self.judge_prices,
        })
    }
}

/// Arguments of `bdhs eval compare`.
#[derive(Args)]
struct Compare {
    /// A result: result.json, or the output of --json
    a: PathBuf,
    /// Another one, of the same metric and protocol
    b: PathBuf,
    /// Bootstrap resamples
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: u32,
    /// Key of the bootstrap's draws
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((key, path)) if !key.is_empty() && !path.is_empty() => Ok((key.into(), path.into())),
        _ => Err("expected KEY=PATH".to_owned()),
    }
}

impl Eval {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let (name, run) = match &self.what {
            What::Compare(compare) => return compare.run(global),
            What::Pope(run) => ("pope", run),
            What::Mmhal(run) => ("mmhal", run),
            What::Mmhalv(run) => ("mmhalv", run),
            What::Llavaw(run) => ("llavaw", run),
            What::Vqat(run) => ("vqat", run),
            What::Gqa(run) => ("gqa", run),
            What::Mmvet(run) => ("mmvet", run),
            What::RecallCoco(run) => ("recall-coco", run),
        };
        run.run(name, global)
    }
}

impl Run {
    fn run(&self, name: &'static str, global: &Global) -> Result<()> {
        let files =
            Files { folder: self.data.clone(), named: self.files.iter().cloned().collect() };
        let (metric, settings) = (eval::metric(name)?, self.settings());
        let mut sources =
            Sources { predictions: self.predictions.clone(), replies: self.judge_replies.clone() };
        let bars = Bars::new(global);
        if let Some((model, folders)) = self.model() {
            metric.spec().protocol(settings.protocol)?;
            let model = Llava::load(model, &global.device()?, device::dtype(&self.answer.dtype)?)?;
            let answering = Answering {
                token_budget: self.answer.token_budget,
                rho: self.answer.rho,
                seed: self.seed,
                ..Answering::default()
            };
            let path = answer_items(metric, &files, &settings, &model, folders, answering, &bars)?;
            sources.predictions = Some(path);
        }
        if let (Some(model), Some(out)) = (&self.judge.judge_model, &self.out) {
            let Some(predictions) = &sources.predictions else {
                let expected = "answers to judge, or --model";
                return Err(Error::argument(name, "--predictions", "not given", expected));
            };
            let places = (predictions.as_path(), self.answer.images.as_deref(), out.as_path());
            let estimate = |cost: Cost| eprintln!("judge, about: {cost}");
            let judge = self.judge.judge(model)?;
            let (path, cost) =
                eval::ask_judge(metric, &files, &settings, places, &judge, (&bars, &estimate))?;
            eprintln!("judge, now: {cost}");
            sources.replies = vec![path];
        }
        bars.clear();
        let outcome = eval::evaluate(metric, &files, &settings, &sources)?;
        if let Some(folder) = &self.out {
            let named = self.answer.model.as_deref().map(Path::file_name);
            let stem = || sources.predictions.as_deref().and_then(Path::file_stem);
            let model = named.unwrap_or_else(stem).unwrap_or_default();
            layout::write(folder, &outcome, &model.to_string_lossy(), layout::now()?)?;
        }
        if global.json { print_json(&outcome) } else { print_text(&outcome.table()) }
    }

    /// The model and the folders that it needs; the parser has seen to it that they are there together.
    fn model(&self) -> Option<(&Path, Folders<'_>)> {
        let folders = Folders { images: self.answer.images.as_deref()?, out: self.out.as_deref()? };
        Some((self.answer.model.as_deref()?, folders))
    }

    fn settings(&self) -> Settings {
        Settings {
            protocol: self.protocol,
            suffix: self.suffix.clone(),
            ocr: self.ocr,
            singular: self.singular,
            max_new_tokens: self.answer.max_new_tokens,
            allow_missing: self.allow_missing,
            allow_extra: self.allow_extra,
            unit: self.unit,
            resamples: self.resamples,
            seed: self.seed,
        }
    }
}

impl Compare {
    fn run(&self, global: &Global) -> Result<()> {
        let (a, b) = (compare::read(&self.a)?, compare::read(&self.b)?);
        let names = [self.a.as_path(), self.b.as_path()];
        let comparison = compare::compare(&a, b, names, self.resamples, self.seed)?;
        if global.json { print_json(&comparison) } else { print_text(&comparison.table()) }
    }
}
