//! An adapter and its base as one checkpoint folder, for programs that read no adapters and for training on top of it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use safetensors::{Dtype, View};

use super::adapter;
use super::weights::{Weights, is_weight_file};
use crate::{Error, Result};

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The base's folder.
    pub base: PathBuf,
    /// Tensors of the checkpoint.
    pub tensors: usize,
    /// Of these, changed by the adapter.
    pub changed: usize,
}

/// Writes the checkpoint that the adapter's folder `dir` means into the new folder `out`: the base's files, in which the
/// changed tensors hold W + (alpha / r) B A, computed in f32 and rounded to the type that the base stores them in. Other
/// tensors keep their bytes. One file of weights is in memory at a time. The folder gets its name when it is whole.
///
/// # Errors
/// [`Error::Argument`] if `dir` holds no adapter, or `out` is there already; else as [`Weights::open`], [`Weights::get`] and
/// [`Weights::with_adapter`]; [`Error::Io`].
pub fn merge(dir: &Path, out: &Path) -> Result<Merged> {
    let base = adapter::base(dir)?;
    let given = |field, path: &Path, expected: &str| {
        Err(Error::argument("merge", field, path.display(), expected))
    };
    if base == dir {
        return given("adapter", dir, "a folder with adapter_config.json");
    }
    if out.exists() {
        return given("out", out, "a folder that does not exist yet");
    }
    let weights = Weights::open(&base, &Device::Cpu, DType::F32)?.with_adapter(dir)?;
    let part = out.with_extension(format!("part-{}", std::process::id()));
    fs::create_dir_all(&part).map_err(Error::io(&part))?;
    let merged = write(&weights, &base, &part).and_then(|merged| {
        fs::rename(&part, out).map_err(Error::io(out))?;
        Ok(merged)
    });
    if merged.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&part);
    }
    merged
}

fn write(weights: &Weights, base: &Path, part: &Path) -> Result<Merged> {
    let mut merged = Merged { base: base.to_owned(), tensors: 0, changed: 0 };
    for entry in fs::read_dir(base).map_err(Error::io(base))? {
        let path = entry.map_err(Error::io(base))?.path();
        if path.is_file() && !is_weight_file(&path) {
            let to = part.join(path.file_name().unwrap_or_default());
            fs::copy(&path, &to).map_err(Error::io(&to))?;
        }
    }
    for (file, names) in weights.shards() {
        let mut tensors = Vec::with_capacity(names.len());
        for name in names {
            let tensor = Stored::of(weights, name)?;
            merged.tensors += 1;
            merged.changed += usize::from(matches!(tensor.bytes, Cow::Owned(_)));
            tensors.push((name, tensor));
        }
        let to = part.join(file.file_name().unwrap_or_default());
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(tensors, Some(metadata), &to)
            .map_err(|error| Error::invalid(&to, "", error.to_string()))?;
    }
    Ok(merged)
}

/// A tensor as it goes into the file.
struct Stored<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    bytes: Cow<'a, [u8]>,
}

impl<'a> Stored<'a> {
    fn of(weights: &'a Weights, name: &str) -> Result<Self> {
        let (dtype, shape, bytes) = weights.stored(name)?;
        if !weights.is_changed(name) {
            return Ok(Self { dtype, shape, bytes: bytes.into() });
        }
        let as_stored = match dtype {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            // What is no float is named by this.
            _ => DType::F32,
        };
        let tensor = weights.get_as(shape, name, as_stored)?;
        let bytes = View::data(&tensor).into_owned().into();
        Ok(Self { dtype, shape, bytes })
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
