//! `bdhs bench`: how fast this machine is.

use std::path::PathBuf;

use clap::Args;

use super::{
    Global,
    ui::{Bars, print_json, print_text},
};
use crate::{
    Result,
    bench::{Options, run},
    models::device,
};

/// Arguments of `bdhs bench`.
#[derive(Args)]
pub(super) struct Bench {
    /// Model folder (docs/models.md), its name on the hub, or demo-llava
    #[arg(long, value_name = "DIR|NAME", default_value = "demo-llava")]
    model: PathBuf,
    /// sentence-transformers folder, its name on the hub, or a demo-* encoder; repeat for several
    #[arg(long = "encoder", value_name = "DIR|NAME", default_value = "demo-mpnet")]
    encoders: Vec<PathBuf>,
    /// Storage type of the networks: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: String,
    /// Seconds that each line is measured for, at least
    #[arg(long, value_name = "S", default_value_t = 1.0, allow_negative_numbers = true)]
    seconds: f64,
}

impl Bench {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let options = Options {
            device: global.device()?,
            dtype: device::dtype(&self.dtype)?,
            model: self.model.clone(),
            encoders: self.encoders.clone(),
            seconds: self.seconds,
        };
        let bars = Bars::new(global);
        let report = run(&options, &bars)?;
        bars.clear();
        if global.json { print_json(&report) } else { print_text(&report.table()) }
    }
}
