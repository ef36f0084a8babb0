//! Floor 4: the ablation. Every cell (encoder, threshold) from candidates that are generated once.

mod block;
pub mod export;
mod finish;
mod given;
pub mod grid;
pub mod npy;
mod plan;
mod prompts;
mod run;
mod runner;
mod score;
mod seconds;
pub mod summary;
pub mod survey;

pub use plan::{blocks, parse_shard};
pub use prompts::prompts;
pub use run::{run, run_all};
pub use runner::{Options, check_data, divide, load_encoders, store_path};
pub use score::score;
