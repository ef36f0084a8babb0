//! Floor 4: the ablation's second half. A decided sweep's cells become trained models, judged by the benchmarks, in one table.
//!
//! [`Plan`] says which models there are (cells with the same pairs share one), [`stages`] trains and judges them in any
//! order and by any number of processes, [`table`] reads what they left. [`finish`] does the whole of it.

mod effects;
mod plan;
mod run;
pub mod slurm;
mod table;
mod text;

use candle_core::Device;

pub use effects::{Difference, Effects, Grid, JointTest, Power, Recipes, Variances};
pub use plan::{BASELINE, CONTROL, CellModel, Kind, Model, Plan, Training};
pub use run::{
    Share, Stage, check, done, judged, judged_folder, model_folder, stages, trained, workers,
};
pub use table::{Ablation, Changed, ModelResult, Score, Seeds, Spread, Statistic, table};
pub use text::{EFFECT_HEADS, POWER_HEADS};

use crate::Result;
use crate::config::Config;
use crate::engine::Progress;
use crate::files::{write_file, write_json};
use crate::sweep::summary::Summary;

/// Name of the result in a run folder; beside it the same as Markdown and CSV.
pub const RESULT: &str = "ablation.json";

/// The plan of a decided run, whose encoders its summary names.
///
/// # Errors
/// As [`Plan::new`].
pub fn plan(config: &Config, summary: &Summary) -> Result<Plan> {
    let mut encoders: Vec<String> = Vec::new();
    for cell in &summary.cells {
        if !encoders.contains(&cell.encoder) {
            encoders.push(cell.encoder.clone());
        }
    }
    Plan::new(config, &encoders)
}

/// Trains and judges whatever is missing, then writes the result.
///
/// # Errors
/// As [`stages`] and [`table`].
pub fn finish(
    config: &Config,
    plan: &Plan,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Ablation> {
    stages(config, plan, &[Stage::Train, Stage::Judge], Share::All, device, progress)?;
    progress.begin("comparing", None);
    let result = table(config, plan)?;
    let run = &config.run.out;
    write_json(&run.join(RESULT), &result)?;
    write_file(run.join("ablation.csv"), result.csv().as_bytes())?;
    write_file(run.join("ablation.tests.csv"), result.tests_csv().as_bytes())?;
    write_file(run.join("ablation.md"), result.markdown().as_bytes())?;
    Ok(result)
}
