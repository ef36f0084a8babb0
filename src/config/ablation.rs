//! How cells are judged and what they are compared with; `docs/config.md` lists every field.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, eval::run::chosen};

/// Benchmarks of every trained model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// Folder with a folder for each metric, in the benchmark's own layout, or `demo-benchmarks`.
    pub data: PathBuf,
    /// Folder of all benchmarks' images; `images` in `data` where absent.
    pub images: Option<PathBuf>,
    /// Metrics; all eight where empty.
    pub metrics: Vec<String>,
    /// Model that judges (OPENAI_BASE_URL, OPENAI_API_KEY), or `demo-judge`.
    pub judge: Option<String>,
    /// TextVQA: whether prompts list OCR tokens; as the protocol does where absent.
    pub ocr: Option<bool>,
    /// Most tokens of an answer; the reference's where absent.
    pub max_new_tokens: Option<u32>,
    /// Bootstrap resamples of every interval and test; where absent, 1,000 for a model's own intervals, and for tests 400 a model and
    /// at least 10,000, with which Holm's adjustment can still reject.
    pub resamples: Option<u32>,
}

impl Default for Eval {
    fn default() -> Self {
        Self {
            data: PathBuf::new(),
            images: None,
            metrics: Vec::new(),
            judge: None,
            ocr: None,
            max_new_tokens: None,
            resamples: None,
        }
    }
}

/// What the trained cells are compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ablation {
    /// The cell that others are tested against, as `all-mpnet-base-v2__0.97`; the first encoder with the threshold nearest
    /// to 0.97 where absent.
    pub default_cell: Option<String>,
    /// Trainings of the default cell and of the control, each with a seed of its own: `train.seed`, `train.seed` + 1, ...
    pub seeds: u32,
    /// Also train on the chosen answers of the default cell alone (supervised): does it take rejected answers at all?
    pub control: bool,
    /// Highest learning rate of the control; `train.learning_rate` where absent.
    pub control_learning_rate: Option<f64>,
}

impl Default for Ablation {
    fn default() -> Self {
        Self { default_cell: None, seeds: 1, control: true, control_learning_rate: None }
    }
}

impl Eval {
    /// Checks what can be checked without opening files.
    ///
    /// # Errors
    /// The first field that does not hold.
    pub fn validate(&self) -> Result<()> {
        if self.data.as_os_str().is_empty() {
            let message = "is not set, expected the folder of the benchmarks";
            return Err(Error::invalid("configuration", "field eval.data", message));
        }
        chosen(&self.metrics).map(|_| ())
    }
}

impl Ablation {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<()> {
        let invalid = |field: &str, message: String| {
            Err(Error::invalid("configuration", format!("field ablation.{field}"), message))
        };
        if self.seeds == 0 {
            return invalid("seeds", "is 0, expected at least 1".into());
        }
        match self.control_learning_rate {
            Some(rate) if !(rate.is_finite() && rate > 0.0) => {
                invalid("control_learning_rate", format!("is {rate}, expected a positive number"))
            }
            _ => Ok(()),
        }
    }
}
