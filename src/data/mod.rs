//! Floor 3: data sets and images as they come from disk.

mod dataset;
pub mod image;
pub(crate) mod json;
mod picture;
mod row;
mod shapes;
mod table;
mod talk;
mod templates;
mod texts;

pub use dataset::{Dataset, DatasetOptions, Described, Sample, TurnChoice, reasons};
pub use picture::Picture;
pub use row::{Reason, Skipped};
pub(crate) use shapes::is_column;
pub use texts::{TextRow, read_texts};
