//! Where a model is read from.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

use super::families::{self, Config};
use crate::models::adapter::{self, is_adapter};
use crate::models::device;
use crate::models::fingerprint::fingerprint;
use crate::models::weights::Weights;
use crate::{Error, Result};

/// Bounds of a picture's pixels, in place of those that a checkpoint's image processor has. Of families whose pictures keep
/// nearly their own size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Smaller pictures are enlarged.
    pub min: Option<usize>,
    /// Larger pictures are made smaller.
    pub max: Option<usize>,
}

/// A checkpoint's folder, and that of the adapter that changes it, if one does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    base: PathBuf,
    adapter: Option<PathBuf>,
    pixels: Bounds,
}

impl Source {
    /// The checkpoint in `model` with an adapter; without one, `model` may itself be an adapter's folder, which says where its
    /// base is ([`adapter::base`]).
    ///
    /// # Errors
    /// Two adapters; a folder of an adapter that has none; a base that is not here; a GGUF file.
    pub fn new(model: &Path, adapter: Option<&Path>) -> Result<Self> {
        refuse_file(model)?;
        let (base, adapter) = match (adapter, is_adapter(model)) {
            (None, false) => return Ok(Self::of(model.to_owned(), None)),
            (None, true) => (adapter::base(model)?, model),
            (Some(adapter), false) => (model.to_owned(), adapter),
            (Some(adapter), true) => return Err(two_adapters(adapter, model)),
        };
        if !is_adapter(adapter) {
            let message =
                "has no adapter_config.json, expected an adapter's folder in PEFT's layout";
            return Err(Error::invalid(adapter, "", message));
        }
        if is_adapter(&base) {
            return Err(two_adapters(adapter, &base));
        }
        families::check_base(&base, adapter)?;
        Ok(Self::of(base, Some(adapter.to_owned())))
    }

    fn of(base: PathBuf, adapter: Option<PathBuf>) -> Self {
        Self { base, adapter, pixels: Bounds::default() }
    }

    /// The same with other bounds of pictures.
    pub fn with_pixels(self, pixels: Bounds) -> Self {
        Self { pixels, ..self }
    }

    /// The bounds of pictures.
    pub fn pixels(&self) -> Bounds {
        self.pixels
    }

    /// What `config.json` says, with the bounds of pictures.
    ///
    /// # Errors
    /// As [`Config::read`]; bounds for a family whose pictures have one size.
    pub fn config(&self) -> Result<Config> {
        Config::read(&self.base)?.with_pixels(self.pixels)
    }

    /// Where configuration, tokenizer, processor and base weights are.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The folder that the model is called by: the adapter's, if there is one.
    pub fn dir(&self) -> &Path {
        self.adapter.as_deref().unwrap_or(&self.base)
    }

    /// The base, of a model that no adapter changes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if one does: only bases are trained.
    pub fn unadapted(&self) -> Result<&Path> {
        match &self.adapter {
            None => Ok(&self.base),
            Some(adapter) => Err(Error::unsupported(
                format!("training on the adapter {}", adapter.display()),
                "merge it into its base first (bdhs merge), or train its base",
            )),
        }
    }

    /// The weights, in whichever layout, under the names of the Hugging Face layout.
    ///
    /// # Errors
    /// As [`Weights::open`] and [`Weights::with_adapter`]; a vision tower that is nowhere.
    pub fn weights(&self, device: &Device, dtype: DType) -> Result<Weights> {
        let weights = Config::read(&self.base)?.weights(&self.base, device, dtype)?;
        match &self.adapter {
            None => Ok(weights),
            Some(adapter) => weights.with_adapter(adapter),
        }
    }

    /// The storage type of a name: `f32`, `f16`, `bf16`, or `auto`, which is f32 on a CPU and on a
    /// GPU the 16-bit type that most bytes of the checkpoint are stored in, if most are.
    ///
    /// # Errors
    /// Another name; for `auto` on a GPU as [`Source::weights`].
    pub fn dtype(&self, name: &str, device: &Device) -> Result<DType> {
        if name != device::AUTO {
            return device::dtype(name);
        }
        if device.is_cpu() {
            return Ok(DType::F32);
        }
        let base = Self { adapter: None, ..self.clone() };
        let stored = base.weights(&Device::Cpu, DType::F32)?.stored_bytes();
        let most = stored.into_iter().max_by_key(|(_, bytes)| *bytes);
        Ok(match most.as_ref().map(|(name, _)| name.as_str()) {
            Some("F16") => DType::F16,
            Some("BF16") => DType::BF16,
            _ => DType::F32,
        })
    }

    /// A hash (64 hex digits) of all that decides what the model computes, see [`fingerprint`]: of the checkpoint, of a vision
    /// tower that lies elsewhere, of the adapter, and of bounds of pictures. However the folders are named, the same content has the same hash.
    ///
    /// # Errors
    /// [`Error::Io`] if a folder or a file cannot be read; as [`Config::read`].
    pub fn fingerprint(&self) -> Result<String> {
        let mut hashes = Vec::new();
        if let Some(adapter) = &self.adapter {
            hashes.push(fingerprint(adapter)?);
        }
        hashes.push(fingerprint(&self.base)?);
        if let Some(folder) = Config::read(&self.base)?.elsewhere() {
            hashes.push(fingerprint(folder)?);
        }
        if self.pixels != Bounds::default() {
            hashes.push(format!("{:?}", self.pixels));
        }
        if let [one] = &mut hashes[..] {
            return Ok(std::mem::take(one));
        }
        Ok(blake3::hash(hashes.concat().as_bytes()).to_hex().to_string())
    }
}

fn two_adapters(first: &Path, second: &Path) -> Error {
    Error::unsupported(
        format!("two adapters ({}, {})", first.display(), second.display()),
        "expected one on its base; merge the first into the base (bdhs merge)",
    )
}

/// A model is a folder; of files, a GGUF is what people have.
fn refuse_file(model: &Path) -> Result<()> {
    if !model.is_file() {
        return Ok(());
    }
    if model.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        let message = format!(
            "it holds a language model alone; with bdhs's sources at hand, cargo run --release --example assemble_llava -- \
             --gguf {} --out FOLDER makes a LLaVA folder of it, whose vision part is random",
            model.display()
        );
        return Err(Error::unsupported(format!("the GGUF file {}", model.display()), message));
    }
    Err(Error::invalid(model, "", "is a file, expected the folder of a checkpoint"))
}
