//! Floor 4: training on preference pairs: LoRA and DPO (Sec. 3.1 and App. A of the paper), with the supervised control.
//!
//! The networks are those that sample and answer. An adapter's pair joins its layer in `models::lora`; the base stays
//! frozen and gets no gradients. A pair's prompt, image and whatever its answers have in common are computed once
//! ([`sequence`](Sequences)); layers are recomputed on the way down, so that memory grows with one layer's activations.
//! Everything is a function of settings, pairs and base: the order of pairs, the adapters' start and dropout are addressed
//! draws. What is written is PEFT's: `adapter_config.json`, `adapter_model.safetensors`.

mod adam;
mod loss;
mod online;
mod pairs;
mod parameters;
mod pass;
mod references;
mod run;
mod sequence;
mod settings;
mod source;
mod trainer;

pub use loss::{LogProbs, Value};
pub use pairs::{Pair, Pairs, read_exported, read_pairs, read_some};
pub use run::{Line, Means, Options, Outcome, run};
pub use sequence::Sequences;
pub use settings::{Loss, Online, Settings, Tokens};
pub use source::PairSource;
pub use trainer::{BatchStats, Example, Trainer};
