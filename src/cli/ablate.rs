//! What `bdhs sweep --train` does after the sweep: models by several processes, then the result.

use candle_core::Device;

use super::{
    Global,
    report::write_page,
    ui::{Bars, print_json, print_text},
    workers::{Workers, threads},
};
use crate::{
    Error, Result,
    ablation::{self, Plan, Share, Stage},
    config::Config,
    engine::Progress,
    sweep::summary::Summary,
};

/// Where models are trained and judged.
pub(super) struct Places<'a> {
    /// The first of the devices, open.
    pub(super) device: &'a Device,
    /// All that `--device` names.
    pub(super) devices: &'a [String],
}

impl Places<'_> {
    /// The processes that share the work: one a device, or of one CPU as many as do it soonest, each with its threads.
    fn workers(&self, config: &Config) -> Result<Vec<(String, usize)>> {
        let devices = match self.devices {
            [one] => vec![one.clone(); ablation::workers(config, self.device)?],
            several => several.to_vec(),
        };
        let count = devices.len();
        Ok(devices.into_iter().zip(threads(count)).collect())
    }
}

/// Trains, and judges if asked to; prints what there is then.
pub(super) fn ablate(
    config: &Config,
    summary: &Summary,
    eval: bool,
    places: &Places,
    global: &Global,
    bars: &Bars,
) -> Result<()> {
    let device = places.device;
    let plan = ablation::plan(config, summary)?;
    let stages: &[Stage] = if eval { &[Stage::Train, Stage::Judge] } else { &[Stage::Train] };
    share(config, &plan, stages, places, bars)?;
    // Whatever is left, and the errors of what failed.
    if !eval {
        bars.begin("training", None);
        ablation::stages(config, &plan, stages, Share::All, device, bars)?;
        bars.clear();
        let folder = config.run.out.join("models");
        return match global.json {
            true => print_json(&serde_json::json!({ "models": folder })),
            false => print_text(&format!("{}\nadapters in {}", summary.table(), folder.display())),
        };
    }
    let result = ablation::finish(config, &plan, device, bars)?;
    write_page(&config.run.out, bars);
    bars.clear();
    match global.json {
        true => print_json(&result),
        false => {
            print_text(&format!("{}\nwritten to {}", result.table(), config.run.out.display()))
        }
    }
}

/// Has several processes work on the models, and waits for them. What one of them fails at is left.
fn share(
    config: &Config,
    plan: &Plan,
    stages: &[Stage],
    places: &Places,
    bars: &Bars,
) -> Result<()> {
    let judged = usize::from(stages.contains(&Stage::Judge));
    let missing = plan.models.len() - ablation::done(config, plan)?[judged];
    let places = places.workers(config)?;
    if missing < 2 || places.len() < 2 {
        return Ok(());
    }
    let names = stages.iter().map(|stage| stage.name()).collect::<Vec<_>>().join(",");
    let run = config.run.out.as_os_str();
    let arguments = ["--from-run".as_ref(), run, "--stage".as_ref(), names.as_ref()];
    let mut workers = Workers::new();
    for (device, threads) in places.into_iter().take(missing) {
        workers.start(device.clone(), &device, threads, &arguments, None)?;
    }
    let what = if judged == 1 { "training and judging models" } else { "training models" };
    bars.begin(what, Some(plan.models.len() as u64));
    let mut seen = 0;
    let ended = workers.watch(bars, &mut |message| {
        if message.is_some() {
            return;
        }
        // What cannot be counted now is counted by the next look.
        let now = ablation::done(config, plan).map_or(seen, |done| done[judged]);
        bars.advance((now - seen) as u64);
        seen = now;
    });
    match ended {
        // Whoever does what is left meets it again, and names the model.
        Err(Error::Worker { .. }) => Ok(()),
        ended => ended,
    }
}
