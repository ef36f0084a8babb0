//! `bdhs sample`: one cell.

use std::path::PathBuf;

use clap::Args;

use super::{
    Global,
    sweep::{RunArgs, finish},
    ui::Bars,
};
use crate::{Result, sampling::acceptance::PAPER_THRESHOLD, store::Shard};

/// Arguments of `bdhs sample`.
#[derive(Args)]
pub(super) struct Sample {
    #[command(flatten)]
    run: RunArgs,
    /// sentence-transformers folder, or its name on the hub, that decides [default: the configuration's first]
    #[arg(long, value_name = "DIR|NAME")]
    encoder: Option<PathBuf>,
    /// A candidate is accepted if its similarity to the reference is below X
    #[arg(long, value_name = "X", default_value_t = PAPER_THRESHOLD, allow_negative_numbers = true)]
    threshold: f64,
}

impl Sample {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let mut config = self.run.config()?;
        match &self.encoder {
            Some(encoder) => config.grid.encoders = vec![encoder.clone()],
            None => config.grid.encoders.truncate(1),
        }
        config.grid.thresholds = vec![self.threshold];
        config.variants.clear();
        finish(&config, Shard::WHOLE, global, &Bars::new(global))
    }
}
