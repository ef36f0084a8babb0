//! The vision tower of Qwen2-VL and Qwen2.5-VL: pictures of any size, rotary positions of two components, windows.
//!
//! ```text
//! [3, H, W] ──► patches, merge x merge of them a block ──► layers ──► [patches, width] ──► merger ──► [blocks, hidden]
//!               (window by window, where there are windows)          (blocks row by row again)
//! ```
//!
//! A picture is a film of equal frames: the patch embedding is a convolution over `frames` of them, hence a product over
//! flattened patches whose values are there `frames` times. The first quarter of a head's pairs turns with the row of a
//! patch, the second with its column. Qwen2-VL has layer norms and a feed-forward part of two layers, Qwen2.5-VL RMS norms
//! and a gated one. In Qwen2.5-VL most layers see a window of the picture only: windows are cut from the upper left corner,
//! those at the right and lower edge are smaller. Rows are in the order of the windows, so that a window is a run of rows.
//!
//! Source: Wang et al. 2024 (Qwen2-VL), Bai et al. 2025 (Qwen2.5-VL), as in transformers 5.

use candle_core::{DType, Device, Tensor};

use crate::models::linear::{Group, Linear, Weight};
use crate::models::weights::Weights;
use crate::ops::act::{Activation, silu_mul};
use crate::ops::attend::{AttendPlan, attend};
use crate::ops::norm::{Add, layer_norm, layer_norm_sum, rms_norm, rms_norm_sum};
use crate::ops::rope::rotate;
use crate::{Error, Result};

/// Of all norms; no checkpoint names it.
const EPS: f64 = 1e-6;

/// Patches of a pass over several pictures; a larger picture has a pass of its own.
const PASS: usize = 4096;

/// Rows that go through a feed-forward part at a time: its inner states are several times as wide as the others.
const ROWS: usize = 4096;

/// Sizes and options of a tower.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerConfig {
    /// Width of the states.
    pub width: usize,
    /// Inner width of the feed-forward part.
    pub inner: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads; `width / heads` is a multiple of 4.
    pub heads: usize,
    /// Side of a patch, pixels.
    pub patch: usize,
    /// Equal frames that a patch goes through.
    pub frames: usize,
    /// Side of a block of patches that becomes one row of the decoder.
    pub merge: usize,
    /// Width of those rows.
    pub output: usize,
    /// Base of the rotary frequencies.
    pub theta: f64,
    /// Which generation, with what it has of its own.
    pub kind: Kind,
}

/// A generation of towers.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Qwen2-VL: layer norms, two layers with this activation between them.
    Plain(Activation),
    /// Qwen2.5-VL: RMS norms, a gated feed-forward part, windows.
    Windowed {
        /// Side of a window, blocks.
        window: usize,
        /// Layers that see whole pictures.
        full: Vec<usize>,
    },
}

impl TowerConfig {
    /// Side of a block, pixels. Sides of pictures are multiples of it.
    pub fn block(&self) -> usize {
        self.patch * self.merge
    }

    /// Patches of a block.
    pub fn patches(&self) -> usize {
        self.merge * self.merge
    }

    /// In which order the blocks of a picture of `rows` x `cols` blocks go through the layers, and how many of them are in
    /// each window.
    pub fn windows(&self, rows: usize, cols: usize) -> (Vec<u32>, Vec<usize>) {
        let Kind::Windowed { window, .. } = self.kind else {
            return ((0..(rows * cols) as u32).collect(), vec![rows * cols]);
        };
        let (mut order, mut counts) = (Vec::with_capacity(rows * cols), Vec::new());
        for top in (0..rows).step_by(window) {
            for left in (0..cols).step_by(window) {
                let (bottom, right) = ((top + window).min(rows), (left + window).min(cols));
                order.extend(
                    (top..bottom).flat_map(|r| (left..right).map(move |c| (r * cols + c) as u32)),
                );
                counts.push((bottom - top) * (right - left));
            }
        }
        (order, counts)
    }

    /// The flattened patches `[blocks * merge^2, 3 * frames * patch^2]` of a picture `[3, H, W]` of `rows` x `cols` blocks: block by
    /// block in this order; in a block and in a patch row by row.
    pub fn flatten(&self, picture: &[f32], rows: usize, cols: usize, order: &[u32]) -> Vec<f32> {
        let (p, m) = (self.patch, self.merge);
        let (height, width) = (rows * self.block(), cols * self.block());
        let mut out = Vec::with_capacity(picture.len() * self.frames);
        for &block in order {
            let (row, col) = (block as usize / cols, block as usize % cols);
            for (y, x) in (0..m).flat_map(|y| (0..m).map(move |x| (y, x))) {
                let (top, left) = ((row * m + y) * p, (col * m + x) * p);
                for channel in picture.chunks_exact(height * width) {
                    for _ in 0..self.frames {
                        for line in top..top + p {
                            out.extend_from_slice(&channel[line * width + left..][..p]);
                        }
                    }
                }
            }
        }
        out
    }
}

/// A picture as it goes through the layers.
struct Picture {
    /// Blocks in the order of the layers.
    order: Vec<u32>,
    /// Patches of each window.
    windows: Vec<usize>,
    rows: usize,
    cols: usize,
}

impl Picture {
    fn patches(&self, c: &TowerConfig) -> usize {
        self.order.len() * c.patches()
    }
}

/// The tower.
pub struct Tower {
    config: TowerConfig,
    patch: Weight,
    layers: Vec<Layer>,
    device: Device,
}

impl Tower {
    /// Loads the tower from `weights` (the prefix before `patch_embed` and `blocks`).
    pub(in crate::models) fn load(config: &TowerConfig, weights: &Weights) -> Result<Self> {
        let c = config;
        let embedding = weights.pp("patch_embed");
        let patch = embedding.get(&[c.width, 3, c.frames, c.patch, c.patch], "proj.weight")?;
        let layers = (0..c.layers)
            .map(|i| Layer::load(c, &weights.pp(format!("blocks.{i}"))))
            .collect::<Result<_>>()?;
        let values = 3 * c.frames * c.patch * c.patch;
        Ok(Self {
            patch: Weight::of(&embedding, patch.reshape((c.width, values))?)?,
            device: weights.device().clone(),
            config: c.clone(),
            layers,
        })
    }

    /// States `[patches, width]` of each of these pictures `[1, 3, H, W]`, in the order that the merger takes: blocks row by row.
    /// What a picture gives does not depend on the others: on a GPU each has a pass of its own, since the last bits of
    /// a product may depend on its shape there.
    pub(in crate::models) fn forward(&self, pictures: &[&Tensor]) -> Result<Vec<Tensor>> {
        let c = &self.config;
        let mut states = Vec::with_capacity(pictures.len());
        let (mut pass, mut values, mut patches) = (Vec::new(), Vec::new(), 0);
        for (i, pixels) in pictures.iter().enumerate() {
            let (picture, flat) = self.read(pixels)?;
            patches += picture.patches(c);
            pass.push(picture);
            values.extend(flat);
            let next =
                pictures.get(i + 1).map_or(0, |next| next.elem_count() / (3 * c.patch * c.patch));
            if next == 0 || patches + next > PASS || !self.device.is_cpu() {
                states.extend(self.pass(&pass, std::mem::take(&mut values))?);
                pass.clear();
                patches = 0;
            }
        }
        Ok(states)
    }

    /// A picture's blocks and flattened patches.
    fn read(&self, pixels: &Tensor) -> Result<(Picture, Vec<f32>)> {
        let c = &self.config;
        let (one, channels, height, width) = pixels.dims4()?;
        let block = c.block();
        let fits =
            height.is_multiple_of(block) && width.is_multiple_of(block) && height * width > 0;
        if (one, channels) != (1, 3) || !fits {
            return Err(Error::argument(
                "Tower::forward",
                "picture",
                format!("{:?}", pixels.dims()),
                format!("[1, 3, H, W] with H and W positive multiples of {block}"),
            ));
        }
        let (rows, cols) = (height / block, width / block);
        let (order, counts) = c.windows(rows, cols);
        let values = pixels.flatten_all()?.to_vec1::<f32>()?;
        let flat = c.flatten(&values, rows, cols, &order);
        let windows = counts.into_iter().map(|count| count * c.patches()).collect();
        Ok((Picture { order, windows, rows, cols }, flat))
    }

    /// All layers on the patches of some pictures.
    fn pass(&self, pictures: &[Picture], values: Vec<f32>) -> Result<Vec<Tensor>> {
        let c = &self.config;
        let count: usize = pictures.iter().map(|picture| picture.patches(c)).sum();
        let patches =
            Tensor::from_vec(values, (count, 3 * c.frames * c.patch * c.patch), &Device::Cpu)?;
        let patches = patches.to_dtype(self.patch.dtype())?.to_device(&self.device)?;
        let mut x = self.patch.product(&patches)?;
        drop(patches);
        let rotary = self.rotary(pictures)?;
        let whole = plan(pictures.iter().map(|picture| picture.patches(c)));
        let parts = plan(pictures.iter().flat_map(|picture| picture.windows.iter().copied()));
        for (i, layer) in self.layers.iter().enumerate() {
            let windowed = matches!(&c.kind, Kind::Windowed { full, .. } if !full.contains(&i));
            x = layer.forward(c, &x, &rotary, if windowed { &parts } else { &whole })?;
        }
        let mut first = 0;
        let mut states = Vec::with_capacity(pictures.len());
        for picture in pictures {
            let own = x.narrow(0, first, picture.patches(c))?;
            first += picture.patches(c);
            states.push(row_by_row(c, &own, &picture.order)?);
        }
        Ok(states)
    }

    /// Cosines and sines of each patch, `[patches, width of a head / 2]` in f32.
    fn rotary(&self, pictures: &[Picture]) -> Result<(Tensor, Tensor)> {
        let c = &self.config;
        let quarter = c.width / c.heads / 4;
        // Rounded to f32 where transformers rounds; the power itself is taken in f64.
        let frequency = |i: usize| {
            let exponent = (2 * i) as f32 / (2 * quarter) as f32;
            1.0 / c.theta.powf(f64::from(exponent)) as f32
        };
        let frequencies: Vec<f32> = (0..quarter).map(frequency).collect();
        let longest = pictures.iter().map(|p| p.rows.max(p.cols) * c.merge).max().unwrap_or(0);
        let table: Vec<(f32, f32)> = (0..longest)
            .flat_map(|at| frequencies.iter().map(move |f| (at as f32 * f).sin_cos()))
            .collect();
        let (mut cos, mut sin) = (Vec::<f32>::new(), Vec::<f32>::new());
        for picture in pictures {
            for &block in &picture.order {
                let (row, col) = (block as usize / picture.cols, block as usize % picture.cols);
                for (y, x) in (0..c.merge).flat_map(|y| (0..c.merge).map(move |x| (y, x))) {
                    for at in [row * c.merge + y, col * c.merge + x] {
                        let angles = &table[at * quarter..][..quarter];
                        sin.extend(angles.iter().map(|(sin, _)| sin));
                        cos.extend(angles.iter().map(|(_, cos)| cos));
                    }
                }
            }
        }
        let shape = (cos.len() / (2 * quarter), 2 * quarter);
        let tensor = |values| Tensor::from_vec(values, shape, &self.device);
        Ok((tensor(cos)?, tensor(sin)?))
    }
}

/// Runs of so many rows, each of which sees itself.
fn plan(counts: impl Iterator<Item = usize>) -> AttendPlan {
    let mut bounds = vec![0];
    let mut end = 0;
    bounds.extend(counts.map(|count| {
        end += count as u32;
        end
    }));
    AttendPlan::ragged(&bounds, false)
}

/// States of blocks in this order, as those of blocks row by row.
fn row_by_row(c: &TowerConfig, states: &Tensor, order: &[u32]) -> Result<Tensor> {
    if order.iter().enumerate().all(|(i, &block)| i as u32 == block) {
        return Ok(states.contiguous()?);
    }
    let mut places = vec![0u32; order.len()];
    for (i, &block) in order.iter().enumerate() {
        places[block as usize] = i as u32;
    }
    let places = Tensor::new(places, states.device())?;
    let blocks = states.contiguous()?.reshape((order.len(), c.patches() * c.width))?;
    Ok(blocks.index_select(&places, 0)?.reshape(states.shape())?)
}

/// A norm of either kind.
struct Norm {
    weight: Tensor,
    /// Of a layer norm; an RMS norm has none.
    bias: Option<Tensor>,
}

impl Norm {
    fn load(c: &TowerConfig, weights: &Weights, name: &str) -> Result<Self> {
        let weights = weights.pp(name);
        let bias = match c.kind {
            Kind::Plain(_) => Some(weights.get(&[c.width], "bias")?),
            Kind::Windowed { .. } => None,
        };
        Ok(Self { weight: weights.get(&[c.width], "weight")?, bias })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => layer_norm(x, None, &self.weight, Some(bias), EPS),
            None => rms_norm(x, None, &self.weight, EPS),
        }
    }

    /// `(x + before, its norm)`.
    fn forward_sum(&self, x: &Tensor, before: Add) -> Result<(Tensor, Tensor)> {
        match &self.bias {
            Some(bias) => layer_norm_sum(x, before, &self.weight, Some(bias), EPS),
            None => rms_norm_sum(x, before, &self.weight, EPS),
        }
    }
}

struct Layer {
    norm1: Norm,
    qkv: Linear,
    output: Linear,
    norm2: Norm,
    feed: Feed,
}

enum Feed {
    Plain { up: Linear, act: Activation, down: Linear },
    Gated { gate_up: Group<2>, down: Linear },
}

impl Layer {
    fn load(c: &TowerConfig, weights: &Weights) -> Result<Self> {
        let (attention, mlp) = (weights.pp("attn"), weights.pp("mlp"));
        let feed = match c.kind {
            Kind::Plain(act) => Feed::Plain {
                up: Linear::load(&mlp, "fc1", c.width, c.inner, true)?,
                act,
                down: Linear::load(&mlp, "fc2", c.inner, c.width, true)?,
            },
            Kind::Windowed { .. } => {
                let gate_up = [("gate_proj", c.inner), ("up_proj", c.inner)];
                Feed::Gated {
                    gate_up: Group::load(&mlp, c.width, gate_up, true)?,
                    down: Linear::load(&mlp, "down_proj", c.inner, c.width, true)?,
                }
            }
        };
        Ok(Self {
            norm1: Norm::load(c, weights, "norm1")?,
            qkv: Linear::load(&attention, "qkv", c.width, 3 * c.width, true)?,
            output: Linear::load(&attention, "proj", c.width, c.width, true)?,
            norm2: Norm::load(c, weights, "norm2")?,
            feed,
        })
    }

    fn forward(
        &self,
        c: &TowerConfig,
        x: &Tensor,
        (cos, sin): &(Tensor, Tensor),
        plan: &AttendPlan,
    ) -> Result<Tensor> {
        let (rows, heads, width) = (x.dim(0)?, c.heads, c.width / c.heads);
        let all = self.qkv.forward(&self.norm1.forward(x)?)?.reshape((rows, 3 * heads, width))?;
        let turned = rotate(&all.narrow(1, 0, 2 * heads)?, cos, sin)?;
        let (query, key) = (turned.narrow(1, 0, heads)?, turned.narrow(1, heads, heads)?);
        let value = all.narrow(1, 2 * heads, heads)?;
        let scale = 1.0 / (width as f32).sqrt();
        let seen = attend(&query, &key, &value, plan, scale, None)?.reshape((rows, c.width))?;
        let add = Add { residual: x, bias: self.output.bias() };
        let (x, h) = self.norm2.forward_sum(&self.output.product(&seen)?, add)?;
        Ok((x + self.feed.forward(c, &h)?)?)
    }
}

impl Feed {
    /// Some rows at a time; rows do not depend on one another.
    fn forward(&self, c: &TowerConfig, h: &Tensor) -> Result<Tensor> {
        let rows = h.dim(0)?;
        if rows <= ROWS {
            return self.rows(c, h);
        }
        let parts: Vec<Tensor> = (0..rows)
            .step_by(ROWS)
            .map(|first| self.rows(c, &h.narrow(0, first, ROWS.min(rows - first))?))
            .collect::<Result<_>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }

    fn rows(&self, c: &TowerConfig, h: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain { up, act, down } => down.forward(&up.activated(h, *act)?),
            Self::Gated { gate_up, down } => {
                let [gate, up] = gate_up.forward(h)?.heads([1, 1], c.inner)?;
                down.forward(&silu_mul(&gate, &up)?.reshape((h.dim(0)?, c.inner))?)
            }
        }
    }
}

/// From the states of a block's patches to one row of the decoder.
pub struct Merger {
    config: TowerConfig,
    norm: Norm,
    inner: Linear,
    last: Linear,
}

impl Merger {
    /// Loads the merger from `weights` (the prefix before `ln_q` and `mlp`).
    pub(in crate::models) fn load(config: &TowerConfig, weights: &Weights) -> Result<Self> {
        let c = config;
        let (mlp, wide) = (weights.pp("mlp"), c.patches() * c.width);
        Ok(Self {
            norm: Norm::load(c, weights, "ln_q")?,
            inner: Linear::load(&mlp, "0", wide, wide, true)?,
            last: Linear::load(&mlp, "2", wide, c.output, true)?,
            config: c.clone(),
        })
    }

    /// `[patches, width]` to `[blocks, output]`, in the dtype of `x`. A merger in training is f32 in a model of any dtype.
    pub(in crate::models) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let c = &self.config;
        let dtype: DType = self.last.dtype();
        let blocks = x.dim(0)? / c.patches();
        let h = self.norm.forward(&x.to_dtype(dtype)?)?.reshape((blocks, c.patches() * c.width))?;
        let h = self.inner.activated(&h, Activation::GeluErf)?;
        Ok(self.last.forward(&h)?.to_dtype(x.dtype())?)
    }
}
