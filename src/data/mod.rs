//! Floor 3: data sets and images as they come from disk.

mod dataset;
pub mod image;
pub(crate) mod json;
mod texts;

pub use dataset::{Dataset, DatasetOptions, Sample, TurnChoice};
pub(crate) use dataset::{image_folder, image_path};
pub use texts::{TextRow, read_texts};
