//! Floor 4: the ablation. Every cell (encoder, threshold) from candidates that are generated once.

pub mod atomic;
mod block;
mod config;
pub mod export;
mod finish;
pub mod grid;
pub mod named;
pub mod npy;
mod plan;
mod run;
mod saved;
mod score;
mod seconds;
pub mod summary;
mod variant;

pub use config::{Config, Data, Export, Grid, Model, Run, THRESHOLDS, check_thresholds};
pub use plan::{blocks, parse_shard};
pub use run::{Options, divide, load_encoders, run, store_path};
pub use saved::SavedRun;
pub use score::score;
pub use variant::{Variant, run_all};
