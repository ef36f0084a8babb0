//! Weights from safetensors files: one `model.safetensors`, or shards with `model.safetensors.index.json`.
//!
//! Every tensor is checked when it is asked for: present, of the shape the network expects, a float (F32, F16, BF16),
//! and finite both as stored and after conversion. Pickle files are refused: loading them can run code.
//!
//! Files may call tensors otherwise than the networks do; errors name them as the files do.
//!
//! Tensors can also be given as they are ([`Weights::from_tensors`]), which is how networks are trained.

use super::adapter::Adapter;
use super::lora::{Lora, Trainable};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Tensors of one checkpoint by name, read from the mapped files on demand, or given. Cloning and [`Weights::pp`] are cheap.
#[derive(Clone, Debug)]
pub struct Weights {
    files: Arc<Files>,
    prefix: String,
    device: Device,
    dtype: DType,
    /// Changes what is read.
    adapter: Option<Arc<Adapter>>,
    /// What is trained of them.
    trainable: Option<Arc<Trainable>>,
    /// Names and element counts of what was asked for, if values are not read.
    outline: Option<Arc<Mutex<BTreeMap<String, u64>>>>,
}

#[derive(Debug)]
struct Files {
    /// What was opened: names errors about absent tensors.
    path: PathBuf,
    shards: Vec<(PathBuf, Mmap)>,
    entries: HashMap<String, Entry>,
    /// Tensors that come from no file.
    given: HashMap<String, Tensor>,
    /// From a tensor's name here to what the files should call it.
    spell: fn(&str) -> String,
}

impl Files {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            shards: Vec::new(),
            entries: HashMap::new(),
            given: HashMap::new(),
            spell: str::to_owned,
        }
    }

    fn open(path: &Path) -> Result<Self> {
        if path.is_dir() { open_folder(path) } else { open_file(path) }
    }

    /// Takes over the tensors of other files, under other names.
    fn add(&mut self, other: Files, rename: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        let before = self.shards.len();
        self.shards.extend(other.shards);
        for (stored, entry) in other.entries {
            let Some(name) = rename(&stored) else { continue };
            let entry = Entry { shard: before + entry.shard, ..entry };
            let shard = entry.shard;
            if let Some(first) = self.entries.insert(name, entry) {
                let message = format!("stands for the same tensor as {}", first.stored);
                let at = format!("tensor {stored}");
                return Err(Error::invalid(&self.shards[shard].0, at, message));
            }
        }
        Ok(())
    }
}

/// A folder or file of weights, and what its tensors are called here; none leaves a tensor out.
pub(super) struct Part<'a> {
    pub path: &'a Path,
    pub rename: &'a dyn Fn(&str) -> Option<String>,
}

#[derive(Debug)]
struct Entry {
    /// The tensor's name in its file.
    stored: String,
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes within the shard.
    start: usize,
    end: usize,
}

impl Weights {
    /// Opens a model folder, or one `.safetensors` file. Tensors come as `dtype` (F32, F16 or BF16) on `device`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the folder has weights in other formats only; [`Error::Invalid`] where it has none,
    /// or a file is damaged; [`Error::Io`]; [`Error::Argument`] for another dtype.
    pub fn open(path: impl AsRef<Path>, device: &Device, dtype: DType) -> Result<Self> {
        check_dtype(dtype)?;
        Ok(Self::new(Files::open(path.as_ref())?, device, dtype))
    }

    /// As [`Weights::open`] of several folders at once, the first of which stands for all, under other names. `spell` turns
    /// such a name into what the files should call it.
    ///
    /// # Errors
    /// As [`Weights::open`]; [`Error::Invalid`] for two tensors of one name.
    pub(super) fn open_parts(
        parts: &[Part],
        spell: fn(&str) -> String,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        check_dtype(dtype)?;
        let path = parts.first().map(|part| part.path.to_owned()).unwrap_or_default();
        let mut files = Files { spell, ..Files::new(path) };
        for part in parts {
            files.add(Files::open(part.path)?, part.rename)?;
        }
        Ok(Self::new(files, device, dtype))
    }

    fn new(files: Files, device: &Device, dtype: DType) -> Self {
        let (files, device) = (Arc::new(files), device.clone());
        Self {
            files,
            prefix: String::new(),
            device,
            dtype,
            adapter: None,
            trainable: None,
            outline: None,
        }
    }

    /// The same weights, of which some are trained: networks made from them get the pairs, and the tracked tensors in place of
    /// the files'.
    pub fn with_trainable(self, trainable: Trainable) -> Self {
        Self { trainable: Some(Arc::new(trainable)), ..self }
    }

    /// Whether anything of them is trained.
    pub fn is_trained(&self) -> bool {
        self.trainable.is_some()
    }

    /// The pair that is trained beside the tensor `name` below the prefix.
    pub fn lora(&self, name: &str) -> Option<Lora> {
        self.trainable.as_ref()?.pairs.get(&self.full_name(name)).cloned()
    }

    /// Whether an adapter changes what an image becomes.
    pub(super) fn sees_anew(&self) -> bool {
        self.adapter.as_ref().is_some_and(|adapter| adapter.sees())
    }

    /// The same weights, changed by the adapter in `dir`.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn with_adapter(self, dir: &Path) -> Result<Self> {
        let adapter = Some(Arc::new(Adapter::open(dir, &self)?));
        Ok(Self { adapter, ..self })
    }

    /// Names, shapes and types alone: values are not read, and every tensor is a view of one zero.
    pub fn outline(self) -> Self {
        Self { outline: Some(Arc::default()), ..self }
    }

    /// Of an outline, the full names of the tensors that were asked for, with their numbers of elements.
    pub fn used(&self) -> BTreeMap<String, u64> {
        let used = self.outline.as_ref().and_then(|used| used.lock().ok());
        used.map(|used| used.clone()).unwrap_or_default()
    }

    /// Bytes of all tensors in the files, by stored type.
    pub fn stored_bytes(&self) -> BTreeMap<String, u64> {
        let mut bytes = BTreeMap::new();
        for entry in self.files.entries.values() {
            *bytes.entry(format!("{:?}", entry.dtype)).or_default() +=
                (entry.end - entry.start) as u64;
        }
        bytes
    }

    /// Tensors as they are, by full name; gradients reach those that are tracked. `name` stands for the file in errors.
    /// All are on one device and of one dtype, which is what networks get.
    pub fn from_tensors(
        name: &str,
        tensors: HashMap<String, Tensor>,
        device: &Device,
        dtype: DType,
    ) -> Self {
        let files = Files { given: tensors, ..Files::new(name.into()) };
        Self::new(files, device, dtype)
    }

    /// The same weights below `prefix` (no trailing dot): `w.pp("encoder").pp(3)` reads `encoder.3.*`.
    pub fn pp(&self, prefix: impl std::fmt::Display) -> Self {
        Self { prefix: self.full_name(&prefix.to_string()), ..self.clone() }
    }

    /// Whether a tensor of this name exists below the current prefix.
    pub fn contains(&self, name: &str) -> bool {
        let name = self.full_name(name);
        self.files.entries.contains_key(&name) || self.files.given.contains_key(&name)
    }

    /// The shape of a tensor as stored, if it exists.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let name = self.full_name(name);
        let stored = self.files.entries.get(&name).map(|e| &e.shape[..]);
        stored.or_else(|| Some(self.files.given.get(&name)?.dims()))
    }

    /// All full names, sorted.
    pub fn names(&self) -> Vec<&str> {
        let all = self.files.entries.keys().chain(self.files.given.keys());
        let mut names: Vec<&str> = all.map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The files, and the full names of the tensors in each in the order of their bytes.
    pub(super) fn shards(&self) -> Vec<(&Path, Vec<&str>)> {
        let names = |shard: usize| {
            let of = self.files.entries.iter().filter(|(_, entry)| entry.shard == shard);
            let mut names: Vec<(usize, &str)> =
                of.map(|(name, entry)| (entry.start, &name[..])).collect();
            names.sort_unstable();
            names.into_iter().map(|(_, name)| name).collect()
        };
        let files = self.files.shards.iter().enumerate();
        files.map(|(i, (path, _))| (path.as_path(), names(i))).collect()
    }

    /// Type, shape and bytes of a tensor in its file, by full name.
    pub(super) fn stored(&self, name: &str) -> Result<(Dtype, &[usize], &[u8])> {
        let Some(entry) = self.files.entries.get(name) else {
            return Err(Error::invalid(&self.files.path, format!("tensor {name}"), "absent"));
        };
        let bytes = &self.files.shards[entry.shard].1[entry.start..entry.end];
        Ok((entry.dtype, &entry.shape, bytes))
    }

    /// Whether an adapter changes the tensor of this full name.
    pub(super) fn is_changed(&self, name: &str) -> bool {
        self.adapter.as_ref().is_some_and(|adapter| adapter.changes(name))
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.files.path
    }

    /// Where tensors go.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What tensors become.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The tensor `name` below the prefix, of exactly this shape.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming file and tensor: absent, another shape, not a float, or a value that is not finite.
    pub fn get(&self, shape: &[usize], name: &str) -> Result<Tensor> {
        self.get_as(shape, name, self.dtype)
    }

    /// [`Weights::get`] in a dtype of its own, for the few parameters that stay f32.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn get_as(&self, shape: &[usize], name: &str, dtype: DType) -> Result<Tensor> {
        let read = |dtype| self.read(shape, name, dtype);
        match &self.adapter {
            Some(adapter) if self.outline.is_none() => {
                adapter.apply(&self.full_name(name), dtype, &self.device, read)
            }
            _ => read(dtype),
        }
    }

    /// As [`Weights::get_as`], whatever an adapter changes.
    fn read(&self, shape: &[usize], name: &str, dtype: DType) -> Result<Tensor> {
        let name = self.full_name(name);
        let at = || {
            let stored = self.files.entries.get(&name).map(|entry| entry.stored.clone());
            format!("tensor {}", stored.unwrap_or_else(|| (self.files.spell)(&name)))
        };
        if let Some(tensor) = self.trainable.as_ref().and_then(|all| all.whole.get(&name)) {
            return Ok(tensor.clone());
        }
        if let Some(tensor) = self.files.given.get(&name) {
            if tensor.dims() != shape {
                let message = format!("shape {:?}, expected {shape:?}", tensor.dims());
                return Err(Error::invalid(&self.files.path, at(), message));
            }
            return Ok(tensor.to_dtype(dtype)?);
        }
        let Some(entry) = self.files.entries.get(&name) else {
            let message = format!("absent, expected shape {shape:?}");
            return Err(Error::invalid(&self.files.path, at(), message));
        };
        let (path, map) = &self.files.shards[entry.shard];
        let invalid = |message: String| Error::invalid(path, at(), message);
        if entry.shape != shape {
            return Err(invalid(format!("shape {:?}, expected {shape:?}", entry.shape)));
        }
        if let Some(used) = &self.outline {
            if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(invalid(format!("dtype {:?}, expected F32, F16 or BF16", entry.dtype)));
            }
            if let Ok(mut used) = used.lock() {
                used.insert(name.clone(), shape.iter().map(|&side| side as u64).product());
            }
            return Ok(Tensor::zeros((), dtype, &self.device)?.broadcast_as(shape)?);
        }
        let bytes = &map[entry.start..entry.end];
        let tensor = match dtype {
            DType::F32 => self.tensor(convert(bytes, entry.dtype, |x| x, f32::is_finite), shape),
            DType::F16 => {
                self.tensor(convert(bytes, entry.dtype, f16::from_f32, |x| x.is_finite()), shape)
            }
            DType::BF16 => {
                self.tensor(convert(bytes, entry.dtype, bf16::from_f32, |x| x.is_finite()), shape)
            }
            other => {
                return Err(Error::argument(
                    "Weights::get",
                    "dtype",
                    format!("{other:?}"),
                    "a float",
                ));
            }
        };
        tensor?.map_err(invalid)
    }

    /// Puts converted values on the device; a conversion error stays one.
    fn tensor<T: candle_core::WithDType>(
        &self,
        values: Result<Vec<T>, String>,
        shape: &[usize],
    ) -> Result<Result<Tensor, String>> {
        Ok(match values {
            Ok(values) => Ok(Tensor::from_vec(values, shape, &self.device)?),
            Err(message) => Err(message),
        })
    }

    fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

/// Converts stored floats, each through f32; the error says what is wrong with them.
fn convert<T: Copy + Default + Send + Sync>(
    bytes: &[u8],
    dtype: Dtype,
    to: impl Fn(f32) -> T + Sync,
    finite: impl Fn(T) -> bool + Sync,
) -> Result<Vec<T>, String> {
    match dtype {
        Dtype::F32 => convert_from::<4, T>(bytes, f32::from_le_bytes, to, finite),
        Dtype::F16 => convert_from::<2, T>(bytes, |b| f16::from_le_bytes(b).to_f32(), to, finite),
        Dtype::BF16 => convert_from::<2, T>(bytes, |b| bf16::from_le_bytes(b).to_f32(), to, finite),
        other => Err(format!("dtype {other:?}, expected F32, F16 or BF16")),
    }
}

fn convert_from<const N: usize, T: Copy + Default + Send + Sync>(
    bytes: &[u8],
    from: impl Fn([u8; N]) -> f32 + Sync,
    to: impl Fn(f32) -> T + Sync,
    finite: impl Fn(T) -> bool + Sync,
) -> Result<Vec<T>, String> {
    const CHUNK: usize = 1 << 16;
    let (values, _) = bytes.as_chunks::<N>();
    let mut out = vec![T::default(); values.len()];
    let bad = out
        .par_chunks_mut(CHUNK)
        .zip(values.par_chunks(CHUNK))
        .enumerate()
        .filter_map(|(chunk, (out, values))| {
            let mut all = true;
            for (out, value) in out.iter_mut().zip(values) {
                *out = to(from(*value));
                all &= finite(*out);
            }
            if all {
                return None;
            }
            let i = out.iter().position(|&x| !finite(x))?;
            Some((chunk * CHUNK + i, from(values[i])))
        })
        .min_by_key(|&(i, _)| i);
    match bad {
        None => Ok(out),
        Some((i, x)) if x.is_finite() => {
            Err(format!("value {i} is {x}, which overflows the dtype asked for"))
        }
        Some((i, x)) => Err(format!("value {i} is {x}, expected finite values")),
    }
}

fn check_dtype(dtype: DType) -> Result<()> {
    if matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Ok(());
    }
    Err(Error::argument("Weights::open", "dtype", format!("{dtype:?}"), "F32, F16 or BF16"))
}

fn open_file(path: &Path) -> Result<Files> {
    refuse_pickle(path)?;
    let mut files = Files::new(path.into());
    add_shard(&mut files, path.into())?;
    Ok(files)
}

fn open_folder(dir: &Path) -> Result<Files> {
    let single = dir.join(SINGLE);
    if single.is_file() {
        return open_file(&single);
    }
    let index = dir.join(INDEX);
    if index.is_file() {
        return open_shards(dir, index);
    }
    let mut names: Vec<PathBuf> = fs::read_dir(dir)
        .map_err(Error::io(dir))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .collect();
    names.sort();
    for path in &names {
        refuse_pickle(path)?;
    }
    Err(Error::invalid(dir, "", format!("no weights found, expected {SINGLE} or {INDEX}")))
}

/// Whether a file holds weights, ours or another framework's, by its extension.
pub(super) fn is_weight_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
        || refuse_pickle(path).is_err()
}

/// Refuses weight files of other frameworks and formats, by their extension.
pub(super) fn refuse_pickle(path: &Path) -> Result<()> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let message = match extension {
        "bin" | "pt" | "pth" | "ckpt" => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            format!(
                "it is a pickle, which can run any code when it is loaded; use the model's safetensors files, or make \
                 them, with bdhs's sources at hand: python scripts/pickle_to_safetensors.py {}",
                folder.unwrap_or(Path::new(".")).display()
            )
        }
        "ot" | "h5" | "msgpack" | "onnx" | "gguf" => {
            "it is in another framework's format; use the model's safetensors files, or convert it to safetensors"
                .to_owned()
        }
        _ => return Ok(()),
    };
    Err(Error::unsupported(format!("weight file {}", path.display()), message))
}

/// Which file holds which tensor.
pub(super) struct Index {
    /// Tensors and the names of their files.
    tensors: Vec<(String, String)>,
    /// The files, in order.
    pub(super) shards: Vec<String>,
}

impl Index {
    /// # Errors
    /// If the file is malformed, or names a file elsewhere.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io(path))?;
        let json: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| Error::invalid(path, "", e.to_string()))?;
        let Some(map) = json.get("weight_map").and_then(|m| m.as_object()) else {
            return Err(Error::invalid(path, "field weight_map", "absent, expected an object"));
        };
        let mut tensors = Vec::new();
        for (name, file) in map {
            // A shard outside the folder would let an index read any file.
            match file.as_str() {
                Some(file)
                    if !file.is_empty() && Path::new(file).file_name() == Some(file.as_ref()) =>
                {
                    tensors.push((name.clone(), file.to_owned()));
                }
                _ => {
                    let message = format!("{file}, expected the name of a file beside the index");
                    return Err(Error::invalid(path, format!("field weight_map.{name}"), message));
                }
            }
        }
        let mut shards: Vec<String> = tensors.iter().map(|(_, file)| file.clone()).collect();
        shards.sort_unstable();
        shards.dedup();
        Ok(Self { tensors, shards })
    }
}

fn open_shards(dir: &Path, path: PathBuf) -> Result<Files> {
    let index = Index::read(&path)?;
    let mut files = Files::new(path.clone());
    for shard in &index.shards {
        refuse_pickle(&dir.join(shard))?;
        add_shard(&mut files, dir.join(shard))?;
    }
    for (name, file) in &index.tensors {
        if !files.entries.contains_key(name) {
            let message = format!("absent from {file}, where the index places it");
            return Err(Error::invalid(&path, format!("tensor {name}"), message));
        }
    }
    Ok(files)
}

/// What to say of a file that [`is_lfs_pointer`].
pub(super) const LFS_POINTER: &str = "is a Git LFS pointer, which stands for the file in a clone without Git LFS: run \
     git lfs pull in the clone, or fetch the model with hf download";

/// Whether the bytes are those of a pointer that Git LFS puts in a file's place.
pub(super) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}

fn add_shard(files: &mut Files, path: PathBuf) -> Result<()> {
    let file = File::open(&path).map_err(Error::io(&path))?;
    // SAFETY: the map is read only; that nobody rewrites a checkpoint in use is the same trust as in reading it twice.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
    let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| {
        let message = match is_lfs_pointer(&map) {
            true => LFS_POINTER.to_owned(),
            false => format!("not a whole safetensors file of {} bytes: {e}", map.len()),
        };
        Error::invalid(&path, "", message)
    })?;
    // Eight bytes of header length come before the header, the tensors after it.
    let data = 8 + header;
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let entry = Entry {
            stored: name.clone(),
            shard: files.shards.len(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            start: data + info.data_offsets.0,
            end: data + info.data_offsets.1,
        };
        if files.entries.insert(name.clone(), entry).is_some() {
            return Err(Error::invalid(&path, format!("tensor {name}"), "also in another shard"));
        }
    }
    files.shards.push((path, map));
    Ok(())
}
