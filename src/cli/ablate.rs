//! What `bdhs sweep --train` does after the sweep: models by several processes, then the result.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use candle_core::Device;

use super::{
    Global,
    ui::{Bars, print_json, print_text},
};
use crate::{
    Error, Result,
    ablation::{self, Plan, Share, Stage},
    engine::{Progress, checkpoint},
    sweep::{Config, summary::Summary},
};

/// Trains, and judges if asked to; prints what there is then.
pub(super) fn ablate(
    config: &Config,
    summary: &Summary,
    eval: bool,
    device: &Device,
    global: &Global,
    bars: &Bars,
) -> Result<()> {
    let plan = ablation::plan(config, summary)?;
    let stages: &[Stage] = if eval { &[Stage::Train, Stage::Judge] } else { &[Stage::Train] };
    let workers = ablation::workers(config, device)?;
    if workers > 1 {
        share(config, &plan, stages, workers, global, bars)?;
    }
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
    bars.clear();
    match global.json {
        true => print_json(&result),
        false => {
            print_text(&format!("{}\nwritten to {}", result.table(), config.run.out.display()))
        }
    }
}

/// Has several processes of one thread each work on the models, and waits for them. What one of them fails at is left.
fn share(
    config: &Config,
    plan: &Plan,
    stages: &[Stage],
    workers: usize,
    global: &Global,
    bars: &Bars,
) -> Result<()> {
    let judged = usize::from(stages.contains(&Stage::Judge));
    let missing = plan.models.len() - ablation::done(config, plan)?[judged];
    if missing < 2 {
        return Ok(());
    }
    let what = if judged == 1 { "training and judging models" } else { "training models" };
    bars.begin(what, Some(plan.models.len() as u64));
    let mut children = Children(Vec::new());
    for _ in 0..workers.min(missing) {
        children.0.push(worker(&config.run.out, stages, global)?);
    }
    let mut seen = 0;
    while children.working()? {
        std::thread::sleep(Duration::from_millis(200));
        let now = ablation::done(config, plan)?[judged];
        bars.advance((now - seen) as u64);
        seen = now;
        checkpoint(bars)?;
    }
    Ok(())
}

fn worker(run: &Path, stages: &[Stage], global: &Global) -> Result<Child> {
    let program = std::env::current_exe().map_err(Error::io("this program"))?;
    let mut command = Command::new(&program);
    command.args(["sweep", "--quiet", "--threads", "1", "--device", &global.device]);
    command.arg("--from-run").arg(run).arg("--stage");
    command.arg(stages.iter().map(|stage| stage.name()).collect::<Vec<_>>().join(","));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(Error::io(program))
}

/// Processes at work; those that still are when this is dropped are ended: what they finished is kept.
struct Children(Vec<Child>);

impl Children {
    fn working(&mut self) -> Result<bool> {
        let mut working = false;
        for child in &mut self.0 {
            working |= child.try_wait().map_err(Error::io("a worker"))?.is_none();
        }
        Ok(working)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended already cannot be ended again, which is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
