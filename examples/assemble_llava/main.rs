//! Builds a LLaVA checkpoint folder (Hugging Face layout) around a GGUF file of the Llama or Qwen2 architecture.
//!
//! The language model is the real one of the GGUF. The vision tower and the projector are small and *random*: no CLIP
//! tower or LLaVA can be had from a package registry. Such a folder runs the whole pipeline, and its text is real, but
//! it cannot see: use it to try the tool, to test it and to measure its speed, never for results.
//!
//! ```text
//! cargo run --release --example assemble_llava -- --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out llava-smollm2
//! ```

mod assemble;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use assemble::{Options, Shape, assemble};

#[derive(Parser)]
#[command(
    about = "Builds a LLaVA checkpoint folder around a Llama or Qwen2 GGUF; the vision part is random"
)]
struct Args {
    /// The language model: a GGUF file of the Llama or Qwen2 architecture
    #[arg(long)]
    gguf: PathBuf,
    /// The folder to write; made if absent, files of the same names are replaced
    #[arg(long)]
    out: PathBuf,
    /// Seed of the random vision tower and projector
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number format of the weights
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// LLaVA-1.6 (AnyRes tiles) instead of LLaVA-1.5
    #[arg(long)]
    anyres: bool,
    /// LLaVA-OneVision (SigLIP, AnyRes tiles that are shrunk) instead of LLaVA-1.5
    #[arg(long, conflicts_with = "anyres")]
    onevision: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let dtype = match args.dtype {
        Dtype::F32 => candle_core::DType::F32,
        Dtype::F16 => candle_core::DType::F16,
        Dtype::Bf16 => candle_core::DType::BF16,
    };
    let shape = match (args.anyres, args.onevision) {
        (_, true) => Shape::OneVision,
        (true, _) => Shape::Next,
        _ => Shape::Llava,
    };
    let options = Options { seed: args.seed, dtype, shape };
    match assemble(&args.gguf, &args.out, &options) {
        Ok(()) => {
            println!("{}", args.out.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
