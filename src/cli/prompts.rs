//! `bdhs prompts`: attempts for another engine.

use std::path::PathBuf;

use clap::Args;

use super::{
    Global,
    sweep::RunArgs,
    ui::{Bars, print_json, print_text},
};
use crate::{Result, sweep};

/// Arguments of `bdhs prompts`.
#[derive(Args)]
pub(super) struct Prompts {
    #[command(flatten)]
    run: RunArgs,
    /// The file of JSON lines
    #[arg(long, value_name = "FILE", default_value = "prompts.jsonl")]
    prompts: PathBuf,
}

impl Prompts {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let bars = Bars::new(global);
        let config = self.run.config()?;
        sweep::check_data(&config.clone().with_data()?, &bars)?;
        let config = config.resolved(&bars)?;
        let count = sweep::prompts(&config, &self.prompts, &bars)?;
        bars.clear();
        match global.json {
            true => print_json(&serde_json::json!({ "attempts": count, "file": self.prompts })),
            false => print_text(&format!("{count} attempts written to {}", self.prompts.display())),
        }
    }
}
