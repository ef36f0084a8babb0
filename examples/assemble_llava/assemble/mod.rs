//! GGUF in, LLaVA folder out; shared by the example's `main` and by `tests/models/assemble.rs`.

mod folder;
mod gguf;
mod template;
mod tokenizer;
mod vision;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bdhs::{Error, Result};
use candle_core::{DType, Tensor};

use gguf::Gguf;

/// What the user chooses.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seed of the random vision tower and projector.
    pub seed: u64,
    /// Number format of all weights: F32, F16 or BF16.
    pub dtype: DType,
    /// Which LLaVA.
    pub shape: Shape,
}

/// A family of checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// LLaVA-1.5: one view through CLIP.
    Llava,
    /// LLaVA-1.6: AnyRes tiles through CLIP.
    Next,
    /// LLaVA-OneVision: AnyRes tiles through SigLIP, shrunk where there are many.
    OneVision,
}

/// Reads the language model `gguf` and writes a complete LLaVA checkpoint to the folder `out`.
///
/// All weights are held in memory at once, in `options.dtype` plus one tensor in f32.
///
/// # Errors
/// `gguf` cannot be read, is not a plain Llama or Qwen2 model, or has a tokenizer that is not known exactly; `out` cannot be
/// written. Every error names the file and the field or tensor.
pub fn assemble(gguf: &Path, out: &Path, options: &Options) -> Result<()> {
    let mut gguf = Gguf::open(gguf)?;
    let language = gguf.language_config()?;
    let tokenizer = tokenizer::build(&gguf, language.rows)?;
    let mut weights = gguf.language_weights(&language, tokenizer.image_token, options.dtype)?;
    let spread = gguf.embedding_spread;
    weights.extend(vision::weights(language.hidden, spread, options)?);

    fs::create_dir_all(out).map_err(Error::io(out))?;
    folder::write_json_files(out, &gguf, &language, &tokenizer, options)?;
    write_weights(&out.join("model.safetensors"), &weights)
}

/// Writes under a temporary name first: a folder that has `model.safetensors` is complete.
///
/// The serialiser makes its file private to the user; the permissions of its neighbours are right.
fn write_weights(path: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()> {
    let partial = path.with_extension("safetensors.partial");
    // transformers asks which framework wrote the file.
    let about = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(weights, Some(about), &partial)
        .map_err(|error| Error::invalid(&partial, "", error.to_string()))?;
    let neighbour = path.with_file_name("config.json");
    let permissions = fs::metadata(&neighbour).map_err(Error::io(&neighbour))?.permissions();
    fs::set_permissions(&partial, permissions).map_err(Error::io(&partial))?;
    fs::rename(&partial, path).map_err(Error::io(path))
}
