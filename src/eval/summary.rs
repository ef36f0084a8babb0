//! The scores of one model on several metrics.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Protocol, Replies, tally::Estimate};

/// One model on several metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The model's folder name.
    pub model: String,
    /// The benchmarks' label, or their folder.
    pub data: String,
    /// Share of image tokens that was hidden.
    pub rho: f64,
    /// Folder of the images.
    pub images: PathBuf,
    /// In the order of [`METRICS`](super::METRICS).
    pub metrics: Vec<Headline>,
}

/// A metric's score in a [`Summary`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Headline {
    /// The metric.
    pub metric: String,
    /// Whose rules.
    pub protocol: Protocol,
    /// The statistic that is the score.
    pub name: String,
    /// Its value and interval.
    pub score: Estimate,
    /// Items.
    pub items: u64,
    /// How the judge's replies came out; absent for metrics without a judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replies: Option<Replies>,
}

/// Name of a [`Summary`] in the folder of its run.
pub const SUMMARY: &str = "eval.json";
