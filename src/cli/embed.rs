//! `bdhs embed`: texts to vectors.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{
    Global,
    ui::{Bars, print_json, print_text},
};
use crate::{
    Result,
    config::named,
    data::read_texts,
    engine::{Progress, checkpoint},
    models::{device, encoder::SentenceEncoder},
    sweep::npy::MatrixWriter,
};

/// Texts that are embedded between two looks at the progress bar.
const CHUNK: usize = 1024;

/// Arguments of `bdhs embed`.
#[derive(Args)]
pub(super) struct Embed {
    /// sentence-transformers folder, its name on the hub, or a demo-* encoder
    #[arg(long, value_name = "DIR|NAME")]
    encoder: PathBuf,
    /// Rows {"id", "text"}, JSONL or a JSON array
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Vectors in input order, f32: .npy, .safetensors or .jsonl
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Storage type of the encoder: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: String,
}

#[derive(Serialize)]
struct Report {
    encoder: String,
    output: PathBuf,
    rows: usize,
    dim: usize,
    max_tokens: usize,
    truncated: usize,
    seconds: f64,
}

impl Embed {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let rows = read_texts(&self.input)?;
        let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
        let (device, dtype) = (global.device()?, device::dtype(&self.dtype)?);
        let bars = Bars::new(global);
        let encoder = SentenceEncoder::load(named::encoder(&self.encoder, &bars)?, &device, dtype)?;
        encoder.warnings().iter().for_each(|text| bars.warn(text));
        bars.begin("embedding", Some(texts.len() as u64));
        let begun = std::time::Instant::now();
        let mut writer = MatrixWriter::create(&self.output, texts.len(), encoder.dim())?;
        let mut truncated = 0;
        for chunk in texts.chunks(CHUNK) {
            checkpoint(&bars)?;
            let embedded = encoder.embed(chunk)?;
            writer.write(&embedded.vectors.flatten_all()?.to_vec1::<f32>()?)?;
            truncated += embedded.truncated.iter().filter(|&&cut| cut).count();
            bars.advance(chunk.len() as u64);
        }
        writer.finish()?;
        bars.clear();
        let report = Report {
            encoder: encoder.name().to_owned(),
            output: self.output.clone(),
            rows: texts.len(),
            dim: encoder.dim(),
            max_tokens: encoder.max_tokens(),
            truncated,
            seconds: begun.elapsed().as_secs_f64(),
        };
        if global.json {
            return print_json(&report);
        }
        print_text(&format!(
            "{} rows of {} numbers written to {} ({truncated} texts longer than {} tokens)",
            report.rows,
            report.dim,
            self.output.display(),
            report.max_tokens,
        ))
    }
}
