//! Sentence encoders: BERT, DistilBERT, MPNet, RoBERTa, CamemBERT and XLM-RoBERTa, from sentence-transformers folders as they are.
//!
//! Batches are ragged from end to end: sequences lie packed one after the other, `[sum T, H]`, beside their offsets
//! `cu_seqlens`. No padding is ever computed, and a sequence does not see its neighbours.
//!
//! [`SentenceEncoder`] is the whole pipeline from text to vector; [`Encoder`] is the network inside.

mod bert;
mod choice;
mod config;
mod distilbert;
mod modules;
mod mpnet;
mod roberta;
mod sentence;
mod stack;
mod text;
mod xlm_roberta;

pub use bert::Bert;
pub use choice::{Choice, Variant};
pub use config::Config;
pub use distilbert::DistilBert;
pub use mpnet::Mpnet;
pub use roberta::Roberta;
pub use sentence::{Embeddings, SentenceEncoder};
pub use xlm_roberta::XlmRoberta;

use crate::models::weights::Weights;
use crate::{Error, Result};
use candle_core::Tensor;
use std::path::Path;

/// A network from token ids to token states.
pub trait Encoder: Send + Sync {
    /// States `[sum T, H]`, in the dtype of the weights, of sequences packed one after the other; sequence b owns ids
    /// `cu_seqlens[b]..cu_seqlens[b + 1]`.
    ///
    /// # Errors
    /// [`Error::Argument`] for offsets that do not fit the ids, an id outside the vocabulary, or a sequence longer
    /// than [`Encoder::max_tokens`].
    fn forward(&self, ids: &[u32], cu_seqlens: &[u32]) -> Result<Tensor>;

    /// H.
    fn hidden_size(&self) -> usize;

    /// The longest sequence that has positions, special tokens included.
    fn max_tokens(&self) -> usize;
}

/// Builds the network that `config.json` in `dir` names, with its weights.
///
/// # Errors
/// [`Error::Unsupported`] for an architecture or option we do not have; else as [`Config::load`] and [`Weights::get`].
pub fn load_network(dir: &Path, weights: &Weights) -> Result<Box<dyn Encoder>> {
    let config = Config::load(dir)?;
    Ok(match config.model_type.as_str() {
        "bert" => Box::new(Bert::load(&config, weights)?),
        "distilbert" => Box::new(DistilBert::load(&config, weights)?),
        "mpnet" => Box::new(Mpnet::load(&config, weights)?),
        // CamemBERT is RoBERTa on French.
        "roberta" | "camembert" => Box::new(Roberta::load(&config, weights)?),
        "xlm-roberta" => Box::new(XlmRoberta::load(&config, weights)?),
        other => {
            return Err(Error::unsupported(
                format!("model_type {other:?} in {}", dir.join("config.json").display()),
                "encoders are bert, distilbert, mpnet, roberta, camembert or xlm-roberta",
            ));
        }
    })
}
