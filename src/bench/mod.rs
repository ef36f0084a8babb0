//! Floor 4: how fast this machine runs the networks, beside what it gives at most.
//!
//! Ceilings are measured first: the rate of a large product in the networks' types (the fastest at hand, `ceilings`), and on a
//! CPU the rate of reading memory that no cache holds. The share of a row is the time that its operations take at the one rate,
//! or its bytes at the other, whichever is longer, over the time measured. Operations are those of the dense layers, bytes those
//! of their weights: attention, norms, activations and whatever the host does count as loss.

mod ceilings;
mod networks;

use std::path::PathBuf;
use std::time::Instant;

use candle_core::{DType, Device};
use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use serde::Serialize;

pub use ceilings::Ceilings;

use crate::{
    Error, Result,
    engine::{Progress, checkpoint},
    models::memory,
};

/// What is measured.
pub struct Options {
    /// Where networks run.
    pub device: Device,
    /// Storage type of the networks: F32, F16 or BF16.
    pub dtype: DType,
    /// A LLaVA folder, or a name as [`crate::config::named`] has it.
    pub model: PathBuf,
    /// sentence-transformers folders, or names.
    pub encoders: Vec<PathBuf>,
    /// Seconds that each row is measured for, at least.
    pub seconds: f64,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this program.
    pub version: &'static str,
    /// `cpu`, or the place of the GPU.
    pub device: String,
    /// Worker threads.
    pub threads: usize,
    /// `f32`, `f16` or `bf16`.
    pub dtype: &'static str,
    /// What the machine gives at most.
    pub ceilings: Ceilings,
    /// One entry a measurement.
    pub rows: Vec<Row>,
    /// The most memory that the process held at a time, where the system tells.
    pub peak_bytes: Option<u64>,
}

/// A rate of a network.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Whose, and doing what.
    pub what: String,
    /// What is counted.
    pub unit: &'static str,
    /// So many a second; the median of the runs.
    pub rate: f64,
    /// Of the nearer ceiling, see the module's docs; `None` where nothing of it was counted.
    pub share: Option<f64>,
}

/// Measures one after another.
///
/// # Errors
/// Seconds that are no time; models that cannot be loaded, each named; failing tensor operations; a requested stop.
pub fn run(options: &Options, progress: &dyn Progress) -> Result<Report> {
    let seconds = options.seconds;
    if !(0.0..=3600.0).contains(&seconds) {
        return Err(Error::argument("bench", "seconds", seconds, "between 0 and 3600"));
    }
    let clock = Clock { device: &options.device, seconds, progress };
    progress.begin("ceilings", None);
    let ceilings = Ceilings::measure(&clock, options.dtype)?;
    let mut rows = Vec::new();
    for encoder in &options.encoders {
        progress.begin(&encoder.display().to_string(), None);
        rows.push(networks::encoder(options, encoder, &clock, &ceilings)?);
    }
    progress.begin(&options.model.display().to_string(), None);
    rows.extend(networks::model(options, &clock, &ceilings)?);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        device: place(&options.device),
        threads: rayon::current_num_threads(),
        dtype: options.dtype.as_str(),
        ceilings,
        rows,
        peak_bytes: memory::peak(),
    })
}

impl Report {
    /// A table for people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─')));
        table.set_header(["", "a second", "", "of ceiling"]);
        for (what, rate, unit) in self.ceilings.rows() {
            table.add_row([what, format!("{rate:.0}"), unit.to_owned(), String::new()]);
        }
        for row in &self.rows {
            let rate = match row.rate {
                rate if rate < 10.0 => format!("{rate:.2}"),
                rate => format!("{rate:.0}"),
            };
            let share = row.share.map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
            table.add_row([row.what.clone(), rate, row.unit.to_owned(), share]);
        }
        for index in [1, 3] {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let peak = self.peak_bytes.map_or(String::new(), |bytes| {
            format!("; peak memory {:.0} MiB", bytes as f64 / (1 << 20) as f64)
        });
        let threads = self.threads;
        format!("{table}\n{}, {threads} threads, {}{peak}", self.device, self.dtype)
    }
}

/// Times runs on a device.
struct Clock<'a> {
    device: &'a Device,
    seconds: f64,
    progress: &'a dyn Progress,
}

impl Clock<'_> {
    /// The median seconds of a run, from an idle device to an idle device: of three runs at least, after one that does not count.
    fn time(&self, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
        run()?;
        self.device.synchronize()?;
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.len() < 3 || start.elapsed().as_secs_f64() < self.seconds {
            checkpoint(self.progress)?;
            let begin = Instant::now();
            run()?;
            self.device.synchronize()?;
            times.push(begin.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }
}

fn place(device: &Device) -> String {
    match device {
        Device::Cpu => "cpu".into(),
        other => format!("{:?}", other.location()),
    }
}
