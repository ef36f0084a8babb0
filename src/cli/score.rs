//! `bdhs score`: the grid for texts that exist already.

use std::path::PathBuf;

use clap::Args;

use super::{
    Global,
    ui::{Bars, print_json, print_text},
};
use crate::{
    Result,
    config::{Config, THRESHOLDS, named},
    sweep,
};

/// Arguments of `bdhs score`.
#[derive(Args)]
pub(super) struct Score {
    /// Preferred answers: rows {"id", "text"}, JSONL or a JSON array
    #[arg(long, value_name = "FILE")]
    references: PathBuf,
    /// Candidates by the same ids; the k-th file holds attempt k
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    candidates: Vec<PathBuf>,
    /// sentence-transformers folders, their names on the hub, or demo-* encoders
    #[arg(long = "encoder", value_name = "DIR|NAME", num_args = 1.., required = true)]
    encoders: Vec<PathBuf>,
    /// Similarity thresholds in [-1, 1] [default: 0.9 0.93 0.95 0.97 0.99]
    #[arg(long = "threshold", value_name = "X", num_args = 1.., allow_negative_numbers = true)]
    thresholds: Vec<f64>,
    /// Storage type of the encoders: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: String,
}

impl Score {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let thresholds =
            if self.thresholds.is_empty() { &THRESHOLDS[..] } else { &self.thresholds };
        let mut config = Config::default();
        config.grid.encoders.clone_from(&self.encoders);
        config.grid.dtype.clone_from(&self.dtype);
        let device = global.device()?;
        let bars = Bars::new(global);
        for encoder in &mut config.grid.encoders {
            *encoder = named::encoder(encoder, &bars)?;
        }
        let encoders = sweep::load_encoders(&config.grid, &device)?;
        let summary =
            sweep::score(&self.references, &self.candidates, &encoders, thresholds, &bars)?;
        bars.clear();
        if global.json { print_json(&summary) } else { print_text(&summary.table()) }
    }
}
