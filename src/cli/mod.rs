//! Floor 5: the commands. Arguments, progress bars and tables; no logic.

mod ablate;
mod bench;
mod demo;
mod doctor;
mod embed;
mod eval;
mod merge;
mod prompts;
mod report;
mod sample;
mod score;
mod sweep;
mod train;
mod ui;
mod worker;
mod workers;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::{Error, Result, models::device};

/// Exit codes, also in `bdhs --help`.
const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bad input (file, field or \
    tensor named), 4 reading or writing failed, 5 the run folder does not fit this run, \
    130 interrupted (the same command resumes sweep, sample, train, and eval with --out).";

/// Bias-Driven Hallucination Sampling: rejected answers for DPO, written by the model's own language prior.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Subcommand)]
enum Command {
    /// Make pairs for every encoder x threshold cell and print the grid
    Sweep(sweep::Sweep),
    /// Make pairs for one encoder and one threshold
    Sample(sample::Sample),
    /// Write what another engine has to complete, for `sweep --candidates`
    Prompts(prompts::Prompts),
    /// Embed texts with a sentence-transformers model
    Embed(embed::Embed),
    /// Decide the grid for given references and candidates, without generating
    Score(score::Score),
    /// Train an adapter on pairs: LoRA and DPO
    Train(train::Train),
    /// Write an adapter and its base as one checkpoint
    Merge(merge::Merge),
    /// The embedded demo's models
    Demo(demo::Demo),
    /// Write report.html of a run folder anew
    Report(report::Report),
    /// Score a benchmark's answers as the published tables do
    Eval(Box<eval::Eval>),
    /// Show what this build and this machine can do
    Doctor(doctor::Doctor),
    /// Measure how fast this machine is, beside what it gives at most
    Bench(bench::Bench),
}

impl Command {
    /// Whether the same command goes on from what it had finished when it was interrupted.
    fn resumes(&self) -> bool {
        match self {
            Self::Sweep(_) | Self::Sample(_) | Self::Train(_) => true,
            Self::Eval(eval) => eval.resumes(),
            Self::Embed(_) | Self::Score(_) | Self::Merge(_) | Self::Demo(_) => false,
            Self::Prompts(_) => false,
            Self::Report(_) | Self::Doctor(_) | Self::Bench(_) => false,
        }
    }
}

/// Options that every command takes.
#[derive(Args)]
struct Global {
    /// cpu, cuda or cuda:N; sweep and sample also several, as cuda:0,1 or cuda:all; auto: every
    /// usable GPU, else the CPU
    #[arg(long, global = true, default_value = device::AUTO)]
    device: String,
    /// Worker threads [default: all cores]
    #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Print one JSON document to stdout and nothing else
    #[arg(long, global = true)]
    json: bool,
    /// No progress bars
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Work for the process that started this one (see worker.rs)
    #[arg(long, global = true, hide = true)]
    worker: bool,
}

impl Global {
    /// The devices of a command that takes several. What `auto` stands for is said on stderr.
    fn devices(&self) -> Result<Vec<String>> {
        if self.device != device::AUTO {
            return device::list(&self.device);
        }
        let (devices, why) = device::automatic();
        if !self.quiet && !self.worker {
            eprintln!("device: {why}");
        }
        Ok(devices)
    }

    /// The one device of a command that takes one: of those that `auto` stands for, the first.
    fn device(&self) -> Result<candle_core::Device> {
        match self.devices()?.as_slice() {
            [one] => device::open(one),
            [first, ..] if self.device == device::AUTO => device::open(first),
            several => Err(Error::unsupported(
                format!("--device {:?} of this command", self.device),
                format!(
                    "it runs on one device, as --device {}; sweep and sample divide a run among several",
                    several.first().map_or("cpu", String::as_str)
                ),
            )),
        }
    }
}

/// The command line as clap has it, so that tests can hold the documentation to it.
#[doc(hidden)]
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(threads) = cli.global.threads {
        // SAFETY: nothing has started a thread yet; candle reads the variable for its own products.
        unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    }
    ui::resumes(cli.command.resumes());
    let done = match &cli.command {
        Command::Sweep(command) => command.run(&cli.global),
        Command::Sample(command) => command.run(&cli.global),
        Command::Prompts(command) => command.run(&cli.global),
        Command::Embed(command) => command.run(&cli.global),
        Command::Score(command) => command.run(&cli.global),
        Command::Train(command) => command.run(&cli.global),
        Command::Merge(command) => command.run(&cli.global),
        Command::Demo(command) => command.run(&cli.global),
        Command::Report(command) => command.run(&cli.global),
        Command::Eval(command) => command.run(&cli.global),
        Command::Doctor(command) => command.run(&cli.global),
        Command::Bench(command) => command.run(&cli.global),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = match error {
                Error::Interrupted => ui::interrupted().to_owned(),
                _ => error.to_string(),
            };
            eprintln!("error: {}", ui::printable(&text));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Argument { .. } | Error::Invalid { .. } | Error::Unsupported { .. } => 3,
        Error::Io { .. } => 4,
        Error::Store { .. } => 5,
        Error::Interrupted => 130,
        Error::Worker { code, .. } => code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
        Error::Candle(_) | Error::Device { .. } | Error::Memory { .. } => 1,
    }
}
