//! `bdhs eval`: benchmarks.

use std::{cell::RefCell, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::{
    Global,
    sweep::PixelArgs,
    ui::{Bars, print_json, print_text},
};
use crate::{
    Error, Result,
    config::{self, named},
    demo::{
        embedded::{BENCHMARKS, is_embedded, resolve},
        folder,
        judge::Service,
    },
    engine::{Answering, Images},
    eval::{
        self, Files, Protocol, Settings, Singular, Sources, Unit, compare,
        judge::{Cost, Endpoint, Judge},
        run::{self, Benchmarks, Callbacks},
    },
    lock::check_folder,
    models::{Model, Source, device, memory},
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
    /// All eight with one model; without arguments, the embedded demo with its own benchmarks and judge
    All(All),
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
    #[arg(long, value_name = "FILE", conflicts_with = "judge_model")]
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
    #[command(flatten)]
    bootstrap: Bootstrap,
    /// Folder for answers, replies, result.json, items.jsonl and lmms-eval's layout; an interrupted run continues in it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// LLaVA folder, or its name on the hub, that answers the questions, instead of --predictions; needs --images and --out
    #[arg(long, value_name = "DIR|NAME", requires_all = ["images", "out"], conflicts_with = "predictions")]
    model: Option<PathBuf>,
    /// Folder of the benchmark's images
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Answering with a model")]
    answer: Answer,
    #[command(
        flatten,
        next_help_heading = "Asking a judge (OPENAI_BASE_URL or OPENAI_API_BASE, OPENAI_API_KEY)"
    )]
    judge: Ask,
}

/// Intervals.
#[derive(Args)]
struct Bootstrap {
    /// What the bootstrap draws: image (with all its questions) or item
    #[arg(long, value_name = "NAME", default_value = "image")]
    unit: Unit,
    /// Bootstrap resamples; 0 = no intervals
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: u32,
    /// Key of the bootstrap's draws and of hidden tokens
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

/// How a model answers.
#[derive(Args)]
struct Answer {
    /// LoRA adapter's folder, in PEFT's layout, that changes the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    pixels: PixelArgs,
    /// Storage type of the model: f32, f16, bf16, or auto: f32 on a CPU, the checkpoint's 16-bit
    /// type on a GPU
    #[arg(long, value_name = "TYPE", default_value = device::AUTO)]
    dtype: String,
    /// Most tokens of an answer [default: the reference's]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<u32>,
    /// Most key-value slots at a time [default: what half of the free memory holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    token_budget: Option<u32>,
    /// Share of image tokens that is hidden, in [0, 1]; 1 = no image
    #[arg(long, value_name = "R", default_value_t = 0.0)]
    rho: f64,
}

impl Answer {
    fn load(&self, model: &std::path::Path, global: &Global, bars: &Bars) -> Result<Model> {
        if self.dtype != device::AUTO {
            device::dtype(&self.dtype)?;
        }
        let device = global.device()?;
        let adapter = self.adapter.as_deref().map(|path| named::adapter(path, bars)).transpose()?;
        let source = Source::new(&named::model(model, bars)?, adapter.as_deref())?;
        let source = source.with_pixels(self.pixels.bounds());
        let dtype = source.dtype(&self.dtype, &device)?;
        Model::open(&source, &device, dtype)
    }

    fn answering(&self, seed: u64) -> Answering {
        let Self { token_budget, rho, .. } = *self;
        let token_budget = token_budget.map_or(usize::MAX, |slots| slots as usize);
        Answering { token_budget, rho, seed, ..Answering::default() }
    }
}

/// A memory of images for a model's answers.
fn features(model: Option<&Model>) -> crate::Result<RefCell<Images>> {
    let budget = model.map(|model| memory::features(model.language.device())).transpose()?;
    Ok(RefCell::new(Images::new(budget.unwrap_or_default())))
}

/// A judge.
#[derive(Args)]
struct Ask {
    /// Model that judges the answers; needs --out. `demo-judge` is a service of this program that knows the demo's scenes
    #[arg(long = "judge", value_name = "MODEL")]
    judge_model: Option<String>,
    /// Runs over all items
    #[arg(long = "judge-runs", value_name = "N", default_value_t = Judge::RUNS)]
    judge_runs: u32,
    /// Requests under way at once
    #[arg(long = "judge-threads", value_name = "N", default_value_t = Judge::THREADS)]
    judge_threads: usize,
    /// Tries of one request
    #[arg(long = "judge-tries", value_name = "N", default_value_t = Judge::TRIES)]
    judge_tries: u32,
    /// Most tokens of a reply [default: the protocol's]; for models that think before they answer
    #[arg(long = "judge-max-tokens", value_name = "N")]
    judge_max_tokens: Option<u32>,
    /// Seconds for one request
    #[arg(long = "judge-timeout", value_name = "S", default_value_t = Judge::TIMEOUT)]
    judge_timeout: f64,
    /// Seconds before the second try; doubles up to a minute
    #[arg(long = "judge-backoff", value_name = "S", default_value_t = Judge::BACKOFF)]
    judge_backoff: f64,
    /// Also use replies that name this model
    #[arg(long = "judge-accept", value_name = "MODEL")]
    judge_accept: Option<String>,
    /// Detail level of images for vision judges: auto, low or high
    #[arg(long = "judge-detail", value_name = "LEVEL", default_value = Judge::DETAIL)]
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

/// A judge, and the service behind it where that is ours.
struct Asked {
    judge: Judge,
    service: Option<Service>,
}

impl Ask {
    /// The judge of this name.
    fn judge(&self, model: &str) -> Result<Asked> {
        let seconds = |name, value: f64| {
            Duration::try_from_secs_f64(value)
                .map_err(|_| Error::argument("judge", name, value, "seconds, 0 or more"))
        };
        let (named, service) = named::judge(model)?;
        let judge = Judge {
            runs: self.judge_runs,
            threads: self.judge_threads,
            tries: self.judge_tries,
            backoff: seconds("--judge-backoff", self.judge_backoff)?,
            timeout: seconds("--judge-timeout", self.judge_timeout)?,
            max_tokens: self.judge_max_tokens,
            accept_model: self.judge_accept.clone(),
            detail: self.judge_detail.clone(),
            prices: self.judge_prices,
            ..named
        };
        judge.validate()?;
        Ok(Asked { judge, service })
    }
}

/// Arguments of `bdhs eval all`.
#[derive(Args)]
struct All {
    /// LLaVA folder, or its name on the hub, that answers the questions
    #[arg(long, value_name = "DIR|NAME", default_value = folder::LLAVA)]
    model: PathBuf,
    /// Folder with a folder for each metric, by its name, in the benchmark's own layout
    #[arg(long, value_name = "DIR", default_value = BENCHMARKS)]
    data: PathBuf,
    /// Folder of all benchmarks' images [default: images in the folder of --data]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Folder for a folder a metric, and eval.json; an interrupted run continues in it
    #[arg(long, value_name = "DIR", default_value = "runs/eval")]
    out: PathBuf,
    /// Only these metrics, with commas between
    #[arg(long, value_name = "METRIC", value_delimiter = ',')]
    only: Vec<String>,
    /// TextVQA: whether prompts list OCR tokens [default: yes, and no for the demo's benchmarks]
    #[arg(long, value_name = "BOOL")]
    ocr: Option<bool>,
    #[command(flatten)]
    bootstrap: Bootstrap,
    #[command(flatten, next_help_heading = "Answering")]
    answer: Answer,
    #[command(
        flatten,
        next_help_heading = "Asking a judge (OPENAI_BASE_URL or OPENAI_API_BASE, OPENAI_API_KEY) [default: demo-judge for the demo's benchmarks]"
    )]
    judge: Ask,
}

impl All {
    fn run(&self, global: &Global) -> Result<()> {
        check_folder(&self.out)?;
        let demo = is_embedded(&self.data);
        let data = resolve(&self.data)?;
        let bars = Bars::new(global);
        let model = self.answer.load(&self.model, global, &bars)?;
        let usual = if demo { config::demo().eval } else { config::Eval::default() };
        let judge = self.judge.judge_model.as_deref().or(usual.judge.as_deref());
        let judge = judge.map(|name| self.judge.judge(name)).transpose()?;
        let settings = Settings {
            ocr: self.ocr.or(usual.ocr),
            max_new_tokens: self.answer.max_new_tokens.or(usual.max_new_tokens),
            unit: self.bootstrap.unit,
            resamples: self.bootstrap.resamples,
            seed: self.bootstrap.seed,
            ..Settings::default()
        };
        let images = self.images.clone().unwrap_or_else(|| data.join("images"));
        let benchmarks = Benchmarks { data: &data, label: demo.then(|| BENCHMARKS.to_owned()) };
        let run = run::Run {
            model: Some((&model, self.answer.answering(self.bootstrap.seed))),
            judge: judge.as_ref().map(|asked| &asked.judge),
            images: Some(&images),
            features: &features(Some(&model))?,
            out: Some(&self.out),
        };
        let tell = Asked::tell(judge.as_ref());
        let callbacks = Callbacks { progress: &bars, cost: &tell };
        let metrics = run::chosen(&self.only)?;
        let summary = run::all(&run, &benchmarks, &metrics, &settings, &callbacks)?;
        bars.clear();
        if global.json { print_json(&summary) } else { print_text(&summary.table()) }
    }
}

impl Asked {
    /// Tells what the judge will cost, or has cost, unless it is ours.
    fn tell(asked: Option<&Self>) -> impl Fn(bool, Cost) + use<> {
        let other = asked.filter(|asked| asked.service.is_none());
        let endpoint = other.map(|asked| asked.judge.endpoint.clone());
        move |before, cost| {
            if let Some(Endpoint { base_url, model, .. }) = &endpoint {
                let when = if before { "about" } else { "now" };
                eprintln!("judge {model} at {base_url}, {when}: {cost}");
            }
        }
    }
}

/// Arguments of `bdhs eval compare`.
#[derive(Args)]
struct Compare {
    /// A result: result.json, or the output of --json
    a: PathBuf,
    /// Another one, of the same metric and protocol
    b: PathBuf,
    /// Compare in spite of another judge, prompt, unit or data; what differs is listed
    #[arg(long)]
    allow_different: bool,
    /// Bootstrap resamples
    #[arg(long, value_name = "N", default_value_t = 10_000)]
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
    /// Whether answers and replies are kept as they come.
    pub(super) fn resumes(&self) -> bool {
        match &self.what {
            What::All(_) => true,
            What::Compare(_) => false,
            What::Pope(run) | What::Mmhal(run) | What::Mmhalv(run) | What::Llavaw(run) => {
                run.out.is_some()
            }
            What::Vqat(run) | What::Gqa(run) | What::Mmvet(run) | What::RecallCoco(run) => {
                run.out.is_some()
            }
        }
    }

    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let (name, run) = match &self.what {
            What::Compare(compare) => return compare.run(global),
            What::All(all) => return all.run(global),
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
        let (metric, settings) = (eval::metric(name)?, self.settings());
        metric.spec().protocol(settings.protocol)?;
        if let (None, Some(adapter)) = (&self.model, &self.answer.adapter) {
            let expected = "a --model beside it";
            return Err(Error::argument("eval", "--adapter", adapter.display(), expected));
        }
        if let Some(out) = &self.out {
            check_folder(out)?;
        }
        let bars = Bars::new(global);
        let load = |model| self.answer.load(model, global, &bars);
        let model = self.model.as_deref().map(load).transpose()?;
        let judge = self.judge.judge_model.as_deref();
        let judge = judge.map(|name| self.judge.judge(name)).transpose()?;
        let run = run::Run {
            model: model.as_ref().map(|model| (model, self.answer.answering(self.bootstrap.seed))),
            judge: judge.as_ref().map(|asked| &asked.judge),
            images: self.images.as_deref(),
            features: &features(model.as_ref())?,
            out: self.out.as_deref(),
        };
        let files = Files {
            folder: self.data.clone(),
            named: self.files.iter().cloned().collect(),
            label: None,
        };
        let sources =
            Sources { predictions: self.predictions.clone(), replies: self.judge_replies.clone() };
        let tell = Asked::tell(judge.as_ref());
        let callbacks = Callbacks { progress: &bars, cost: &tell };
        let outcome = run.run(metric, &files, &settings, sources, &callbacks)?;
        bars.clear();
        if global.json { print_json(&outcome) } else { print_text(&outcome.table()) }
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
            unit: self.bootstrap.unit,
            resamples: self.bootstrap.resamples,
            seed: self.bootstrap.seed,
        }
    }
}

impl Compare {
    fn run(&self, global: &Global) -> Result<()> {
        let (a, b) = (compare::read(&self.a)?, compare::read(&self.b)?);
        let names = [self.a.as_path(), self.b.as_path()];
        let comparison = compare::compare(&a, b, names, self.resamples, self.seed)?;
        if let (false, Some((name, values))) =
            (self.allow_different, comparison.cautions.iter().next())
        {
            let message = format!(
                "{name} is {}, but {} has {}: the results differ by more than the model; score both alike, or compare \
                 in spite of it with --allow-different",
                values[1],
                self.a.display(),
                values[0]
            );
            return Err(Error::invalid(&self.b, "", message));
        }
        if global.json { print_json(&comparison) } else { print_text(&comparison.table()) }
    }
}
