//! `bdhs sample`: one cell.

use std::path::PathBuf;

use clap::Args;

use super::{
    Global,
    sweep::{RunArgs, finish},
    ui::Bars,
};
use crate::{
    Error, Result, config::Config, sampling::acceptance::PAPER_THRESHOLD, store::Shard,
    sweep::summary::Summary,
};

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
        self.own_folder(&mut config)?;
        match &self.encoder {
            Some(encoder) => config.grid.encoders = vec![encoder.clone()],
            None => config.grid.encoders.truncate(1),
        }
        config.grid.thresholds = vec![self.threshold];
        config.variants.clear();
        finish(&config, Shard::WHOLE, global, &Bars::new(global))
    }

    /// Where no folder was asked for, one that no sweep uses by default. The summary of a sweep is not replaced.
    fn own_folder(&self, config: &mut Config) -> Result<()> {
        let out = &mut config.run.out;
        if !self.run.chose_folder() {
            let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = if name == "sweep" { "sample".to_owned() } else { format!("{name}-sample") };
            out.set_file_name(name);
        }
        match Summary::read(out) {
            Ok(summary) if summary.cells.len() > 1 => {
                let message = format!(
                    "holds a sweep of {} cells, whose summary and page would be replaced by those of one: give another --out, \
                     or take the cell's pairs from {}",
                    summary.cells.len(),
                    out.join("cells").display()
                );
                Err(Error::Store { path: out.clone(), message })
            }
            _ => Ok(()),
        }
    }
}
