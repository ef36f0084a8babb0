//! Carrying out a run, block by block, and the end.

use super::{
    blocks,
    finish::finish,
    runner::{Options, Runner},
    seconds,
    summary::Summary,
};
use crate::{Result, config::Config, engine::Progress, store::Shard};

/// Carries out a run, or continues it: whatever its folder already holds is not computed again.
///
/// A part of a run ([`Shard::Part`] of several) only fills its own store and returns `None`; a whole run
/// first takes over the stores of all parts that lie in its folder, then decides, exports and returns the
/// summary.
///
/// # Errors
/// Settings, data, models or a run folder that do not fit, each named; a requested stop. What was
/// committed stays.
pub fn run(config: &Config, options: &Options, progress: &dyn Progress) -> Result<Option<Summary>> {
    config.validate()?;
    let config = &config.on(&options.device)?;
    let mut runner = Runner::new(config, options, progress)?;
    let ranges = blocks(runner.dataset.len(), config.run.block, options.shard);
    if ranges.is_empty() {
        let block = config.run.block;
        progress.warn(&format!(
            "this part has no block: a run is divided by blocks of run.block = {block} samples"
        ));
    }
    for range in ranges {
        let before = runner.seconds.clone();
        let done = runner.block(range);
        if runner.seconds != before {
            seconds::write(runner.store.path(), &runner.seconds)?;
        }
        done?;
    }
    if options.shard != Shard::WHOLE {
        return Ok(None);
    }
    progress.begin("deciding and exporting", None);
    runner.release();
    let summary = finish(&runner)?;
    Ok(Some(summary))
}

/// Carries out a run, then the runs of its variants. Calls `decided` with the configuration of each run that has its results,
/// and returns the summary of the run itself, as [`run`] does.
///
/// # Errors
/// As [`run`] and [`Config::variants`].
pub fn run_all(
    config: &Config,
    options: &Options,
    progress: &dyn Progress,
    decided: &dyn Fn(&Config),
) -> Result<Option<Summary>> {
    let mut first = None;
    for (i, config) in config.runs()?.iter().enumerate() {
        let summary = run(config, options, progress)?;
        if summary.is_some() {
            decided(config);
        }
        if i == 0 {
            first = summary;
        }
    }
    Ok(first)
}
