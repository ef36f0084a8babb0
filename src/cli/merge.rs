//! `bdhs merge`: an adapter and its base as one checkpoint.

use std::path::PathBuf;

use clap::Args;

use super::{
    Global,
    ui::{print_json, print_text},
};
use crate::{Result, models::merge::merge};

/// Arguments of `bdhs merge`.
#[derive(Args)]
pub(super) struct Merge {
    /// Folder of an adapter in PEFT's layout, as train leaves it
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,
    /// The new folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Merge {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let merged = merge(&self.adapter, &self.out)?;
        if global.json {
            return print_json(&serde_json::json!({
                "out": self.out,
                "base": merged.base,
                "tensors": merged.tensors,
                "changed": merged.changed,
            }));
        }
        print_text(&format!(
            "{}: {} tensors, {} of them changed, on {}",
            self.out.display(),
            merged.tensors,
            merged.changed,
            merged.base.display()
        ))
    }
}
