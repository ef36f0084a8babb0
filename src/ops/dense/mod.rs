//! Products of rows with weights that stay as they are: laid out once on the CPU, used by every pass.
//!
//! ```text
//! y [n, out] = x [n, in] W^T + b          W [out, in]; b [out], or none
//!
//! laid out:  panel 0 = outputs 0..64      the weights of an input side by side, as many as a kernel takes at once
//!            panel 1 = outputs 64..128    ...   the last panel is filled up with zeros
//! ```
//!
//! A product that finds W as `[out, in]` lays it out anew in every call, which costs more than the product itself where rows are few.
//!
//! * x, W and b f32, f16 or bf16, all alike; products and sums in f32, rounded once at the end, after an activation where one is asked
//!   for ([`Dense::activated`]). Half types are widened on the way, so that memory is read at half the bytes of f32.
//! * **A row of y depends on its row of x alone**, to the bit: not on other rows, on how many there are, or on threads. Terms are
//!   added in order by fused products, 512 at a time; those sums are added in order.
//! * Where the CPU has dot products of bf16 (`avx512_bf16`), bf16 goes through them and is never widened: twice the rate. Terms come in
//!   pairs, the second of a pair first, with one rounding a term as above; subnormal operands count as zero, and so do subnormal sums.
//!   So **results in bf16 differ in the last bits between CPUs that have the instruction and CPUs that do not**; f32 and f16 do not.
//! * NaN and infinity give what the formula gives, in their row.
//! * The gradient of x is real; W and b have none.
//! * Bytes (floor): W once; x and y once.
//! * CPUs with AVX-512 (with or without dot products of bf16), or AVX2 and FMA ([`Dense::available`]). On others and on a GPU,
//!   libraries' products serve as well.
//!
//! # Example
//! ```
//! use bdhs::ops::dense::Dense;
//! use candle_core::{Device, Tensor};
//!
//! # fn main() -> bdhs::Result<()> {
//! if Dense::available() {
//!     let weight = Tensor::new(&[[1f32, 0.0], [1.0, 1.0], [0.0, 2.0]], &Device::Cpu)?;
//!     let dense = Dense::new(&weight)?;
//!     let x = Tensor::new(&[[3f32, 4.0]], &Device::Cpu)?;
//!     assert_eq!(dense.product(&x, None)?.to_vec2::<f32>()?, [[3.0, 7.0, 8.0]]);
//! }
//! # Ok(())
//! # }
//! ```

mod dots;
mod kernel;

use std::borrow::Cow;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use self::kernel::{Fused, Kernel};
use super::act::{self, Activation, bias_act};
use super::host::{Floats, Matrix, SharedMut, Stored, by_float, contiguous, each_float, gemm};
use super::simd;
use crate::{Error, Result};

/// Outputs of a panel.
const PANEL: usize = 64;
/// Terms that are summed before the sum joins the result. So many of a panel's weights stay in the L2 cache, and long sums keep
/// their last bits.
const DEPTH: usize = 512;
/// Rows that the kernels keep in registers.
#[cfg(target_arch = "x86_64")]
const REGISTER_ROWS: usize = 6;
/// Rows of a task at most: they and a panel stay in the L2 cache.
const ROWS: usize = 96;
/// Rows from which a panel of a half type is widened as a whole.
const MANY: usize = 12;
/// Multiplications below which one thread is faster than sharing them out.
const ALONE: usize = 1 << 18;

/// A weight `[out, in]` on the CPU, laid out in panels. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Dense {
    /// `[panels, width * PANEL]`, width the inputs filled up to whole groups of the kernel.
    panels: Tensor,
    outputs: usize,
    inputs: usize,
    kernel: Kernel,
}

impl Dense {
    /// Whether this CPU has a kernel.
    pub fn available() -> bool {
        !Kernel::all(DType::F32).is_empty()
    }

    /// Lays out `weight` `[out, in]`. The weight itself can be dropped.
    ///
    /// # Errors
    /// [`Error::Argument`] unless it is a matrix of at least one value, f32, f16 or bf16, on the CPU and not tracked;
    /// [`Error::Unsupported`] where no kernel is available.
    pub fn new(weight: &Tensor) -> Result<Self> {
        let kernel = Kernel::all(weight.dtype()).first().copied().ok_or_else(|| {
            Error::unsupported("a CPU without AVX2 and FMA", "use candle's product there")
        })?;
        Self::with_kernel(weight, kernel)
    }

    fn with_kernel(weight: &Tensor, kernel: Kernel) -> Result<Self> {
        const OP: &str = "Dense::new";
        let fail = |got: String, expected: &str| Err(Error::argument(OP, "weight", got, expected));
        let &[outputs, inputs] = weight.dims() else {
            return fail(format!("{:?}", weight.dims()), "[out, in]");
        };
        if outputs == 0 || inputs == 0 {
            return fail(format!("[{outputs}, {inputs}]"), "at least one value");
        }
        if !matches!(weight.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            return fail(format!("{:?}", weight.dtype()), "F32, F16 or BF16");
        }
        if weight.track_op() {
            return fail("tracked".into(), "detached: there is no gradient");
        }
        let weight = weight.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            return fail(format!("on {:?}", weight.device().location()), "on the CPU");
        };
        let shape = (outputs.div_ceil(PANEL), inputs.next_multiple_of(kernel.group()) * PANEL);
        let values = Floats::new(OP, "weight", storage, layout)?;
        let panels = each_float!(values, values => {
            Tensor::from_vec(lay_out(values, inputs, kernel), shape, weight.device())?
        });
        Ok(Self { panels, outputs, inputs, kernel })
    }

    /// Inputs of a panel: whole groups of the kernel.
    fn width(&self) -> usize {
        self.inputs.next_multiple_of(self.kernel.group())
    }

    /// What x, bias and result are stored as.
    pub fn dtype(&self) -> DType {
        self.panels.dtype()
    }

    /// `x W^T + bias`: x `[n, in]`, bias `[out]`; `[n, out]`.
    ///
    /// # Errors
    /// [`Error::Argument`] for another shape, dtype or device, or a tracked bias.
    pub fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        self.check(x, bias)?;
        Ok(x.contiguous()?.apply_op1(self.op(bias, Activation::Identity))?)
    }

    /// `f(x W^T + bias)`, shapes as in [`Dense::product`]. In between is rounded only where x is tracked.
    ///
    /// # Errors
    /// As [`Dense::product`].
    pub fn activated(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        self.check(x, bias)?;
        if x.track_op() {
            return bias_act(&self.product(x, None)?, bias, activation);
        }
        Ok(x.contiguous()?.apply_op1_no_bwd(&self.op(bias, activation))?)
    }

    fn op(&self, bias: Option<&Tensor>, activation: Activation) -> Product {
        Product { layer: self.clone(), bias: bias.cloned(), activation }
    }

    /// Rows of W `[ids, in]`, as an embedding table has them.
    ///
    /// # Errors
    /// [`Error::Argument`] for an id past the last row.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        const OP: &str = "Dense::rows";
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.outputs) {
            return Err(Error::argument(OP, "id", id, format!("below {}", self.outputs)));
        }
        let (storage, layout) = self.panels.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { return Err(not_here(OP)) };
        let panels = Floats::new(OP, "weight", storage, layout)?;
        let shape = (ids.len(), self.inputs);
        each_float!(panels, panels => {
            Ok(Tensor::from_vec(self.pick(panels, ids), shape, self.panels.device())?)
        })
    }

    fn pick<T: Stored>(&self, panels: &[T], ids: &[u32]) -> Vec<T> {
        let mut rows = vec![T::default(); ids.len() * self.inputs];
        rows.par_chunks_mut(self.inputs).zip(ids).with_min_len(16).for_each(|(row, &id)| {
            let (strip, group, id) = (self.kernel.strip(), self.kernel.group(), id as usize);
            let at = id / strip * self.width() * strip + id % strip * group;
            for part in 0..group {
                let weights = panels[at + part..].iter().step_by(strip * group);
                let row = row[part..].iter_mut().step_by(group);
                row.zip(weights).for_each(|(to, &w)| *to = w);
            }
        });
        rows
    }

    fn check(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<()> {
        const OP: &str = "Dense::product";
        let shape = |t: &Tensor| format!("{:?} {:?}", t.dims(), t.dtype());
        let fits = matches!(x.dims(), &[_, inputs] if inputs == self.inputs);
        if !fits || x.dtype() != self.dtype() {
            let expected = format!("[n, {}] {:?}", self.inputs, self.dtype());
            return Err(Error::argument(OP, "x", shape(x), expected));
        }
        if !x.device().is_cpu() {
            return Err(not_here(OP));
        }
        match bias {
            Some(bias) if bias.dims() != [self.outputs] || bias.dtype() != self.dtype() => {
                let expected = format!("[{}] {:?}", self.outputs, self.dtype());
                Err(Error::argument(OP, "bias", shape(bias), expected))
            }
            Some(bias) if bias.track_op() => {
                Err(Error::argument(OP, "bias", "tracked", "detached: there is no gradient"))
            }
            _ => Ok(()),
        }
    }
}

fn not_here(op: &'static str) -> Error {
    Error::argument(op, "device", "another", "the CPU, where the weight was laid out")
}

/// From `[out, in]` to strips `[in / group][strip][group]` one after another, the last panel and the last group full.
fn lay_out<T: Stored>(weight: &[T], inputs: usize, kernel: Kernel) -> Vec<T> {
    let (strip, group) = (kernel.strip(), kernel.group());
    let (outputs, width) = (weight.len() / inputs, inputs.next_multiple_of(group));
    let mut strips = vec![T::default(); outputs.div_ceil(PANEL) * width * PANEL];
    strips.par_chunks_mut(width * strip).zip(weight.par_chunks(inputs * strip)).for_each(
        |(to, rows)| {
            for (o, row) in rows.chunks(inputs).enumerate() {
                for part in 0..group.min(inputs) {
                    let to = to[o * group + part..].iter_mut().step_by(strip * group);
                    to.zip(row[part..].iter().step_by(group)).for_each(|(to, &w)| *to = w);
                }
            }
        },
    );
    strips
}

/// candle's view.
struct Product {
    layer: Dense,
    bias: Option<Tensor>,
    /// With one there is no backward pass.
    activation: Activation,
}

/// The layer inside a call.
struct Part<'a, T> {
    panels: &'a [T],
    bias: Option<&'a [T]>,
    outputs: usize,
    activation: Activation,
}

/// One panel, for rows `start..end`.
struct Task {
    panel: usize,
    start: usize,
    end: usize,
}

/// What a thread reuses for its next task.
#[derive(Default)]
struct Scratch {
    /// A panel as f32.
    panel: Vec<f32>,
    /// Results of a task, `[rows, PANEL]`.
    y: Vec<f32>,
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let layer = &self.layer;
        let (panels, panels_l) = layer.panels.storage_and_layout();
        let bias = self.bias.as_ref().map(Tensor::storage_and_layout);
        by_float!(x, self.name(), T => {
            let part = Part {
                panels: values::<T>(&panels, panels_l)?,
                bias: bias.as_ref().map(|(bias, l)| values::<T>(bias, l)).transpose()?,
                outputs: layer.outputs,
                activation: self.activation,
            };
            let x = Input::new(contiguous::<T>(x, l, self.name())?, layer);
            let n = l.dims()[0];
            Ok((T::wrap(products(&x, n, &part)), Shape::from((n, layer.outputs))))
        })
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        grad.contiguous()?.apply_op1_no_bwd(&Backward(&self.layer)).map(Some)
    }
}

fn values<'a, T: Stored>(storage: &'a Storage, layout: &Layout) -> candle_core::Result<&'a [T]> {
    let Storage::Cpu(storage) = storage else { bail!("dense: a weight is not on the CPU") };
    contiguous(storage, layout, "dense")
}

/// x as a kernel takes it.
enum Input<'a, T: Stored> {
    Fused(Fused, Cow<'a, [f32]>),
    /// Each row of whole pairs.
    Dots(Cow<'a, [T]>),
}

impl<'a, T: Stored> Input<'a, T> {
    fn new(x: &'a [T], layer: &Dense) -> Self {
        let (inputs, width) = (layer.inputs, layer.width());
        match (layer.kernel, T::as_f32(x)) {
            (Kernel::Fused(kernel), Some(x)) => Self::Fused(kernel, x.into()),
            (Kernel::Fused(kernel), None) => Self::Fused(kernel, T::to_f32_vec(x).into()),
            (Kernel::Dots, _) if width == inputs => Self::Dots(x.into()),
            (Kernel::Dots, _) => {
                let mut filled = vec![T::default(); x.len() / inputs * width];
                for (to, row) in filled.chunks_mut(width).zip(x.chunks(inputs)) {
                    to[..inputs].copy_from_slice(row);
                }
                Self::Dots(filled.into())
            }
        }
    }

    /// Values of all rows.
    fn len(&self) -> usize {
        match self {
            Self::Fused(_, x) => x.len(),
            Self::Dots(x) => x.len(),
        }
    }
}

/// The results for n rows of x.
fn products<T: Stored>(x: &Input<T>, n: usize, part: &Part<T>) -> Vec<T> {
    let outputs = part.outputs;
    let mut y = vec![T::default(); n * outputs];
    if n == 0 {
        return y;
    }
    let inputs = x.len() / n;
    let chunk = n.div_ceil(n.div_ceil(ROWS));
    let tasks: Vec<Task> = (0..n)
        .step_by(chunk)
        .flat_map(|start| {
            let end = (start + chunk).min(n);
            (0..outputs.div_ceil(PANEL)).map(move |panel| Task { panel, start, end })
        })
        .collect();
    let shared = SharedMut::new(&mut y);
    let work = |scratch: &mut Scratch, task: &Task| {
        let first = task.panel * PANEL;
        let width = PANEL.min(outputs - first);
        scratch.run(x, inputs, part, task);
        for (row, sums) in (task.start..task.end).zip(scratch.y.chunks_mut(PANEL)) {
            let sums = &mut sums[..width];
            if let Some(bias) = part.bias {
                simd::add_scaled(sums, &bias[first..first + width], 1.0);
            }
            act::apply(part.activation, sums);
            // SAFETY: no two tasks share a row of a panel.
            T::store(sums, unsafe { shared.range(row * outputs + first, width) });
        }
    };
    if n * inputs * outputs < ALONE {
        let mut scratch = Scratch::default();
        tasks.iter().for_each(|task| work(&mut scratch, task));
    } else {
        tasks.par_iter().for_each_init(Scratch::default, work);
    }
    y
}

impl Scratch {
    /// Leaves the sums of a task in `y`.
    fn run<T: Stored>(&mut self, x: &Input<T>, inputs: usize, part: &Part<T>, task: &Task) {
        let rows = task.end - task.start;
        let own = task.start * inputs..task.end * inputs;
        let size = inputs * PANEL;
        let panel = &part.panels[task.panel * size..(task.panel + 1) * size];
        self.y.resize(rows * PANEL, 0.0);
        match x {
            Input::Dots(x) => dots::run(&x[own], inputs, panel, &mut self.y),
            Input::Fused(kernel, x) if T::as_f32(panel).is_none() && rows >= MANY => {
                self.panel.resize(size, 0.0);
                simd::widen(panel, &mut self.panel);
                kernel.run(&x[own], inputs, &self.panel, &mut self.y);
            }
            Input::Fused(kernel, x) => kernel.run(&x[own], inputs, panel, &mut self.y),
        }
    }
}

/// From the gradient of the result to that of x.
struct Backward<'a>(&'a Dense);

impl CustomOp1 for Backward<'_> {
    fn name(&self) -> &'static str {
        "dense_backward"
    }

    fn cpu_fwd(&self, g: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        const CHUNK: usize = 64;
        let (outputs, inputs, strip) = (self.0.outputs, self.0.inputs, self.0.kernel.strip());
        let (storage, layout) = self.0.panels.storage_and_layout();
        by_float!(g, self.name(), T => {
            let panels = input_by_input(values::<T>(&storage, layout)?, self.0.kernel);
            let g = T::to_f32_vec(contiguous(g, l, self.name())?);
            let mut dx = vec![T::default(); g.len() / outputs * inputs];
            dx.par_chunks_mut(CHUNK * inputs).zip(g.par_chunks(CHUNK * outputs)).for_each(|(dx, g)| {
                let mut sums = vec![0f32; dx.len()];
                let starts = (0..outputs).step_by(strip);
                for (first, weights) in starts.zip(panels.chunks(self.0.width() * strip)) {
                    gemm(
                        (g.len() / outputs, inputs, strip.min(outputs - first)),
                        (&mut sums, inputs),
                        Matrix { values: &g[first..], strides: (outputs, 1) },
                        Matrix { values: weights, strides: (1, strip) },
                        1.0,
                        true,
                    );
                }
                T::store(&sums, dx);
            });
            Ok((T::wrap(dx), Shape::from((l.dims()[0], inputs))))
        })
    }
}

/// Strips as f32 `[width][strip]`: groups are taken apart.
fn input_by_input<T: Stored>(panels: &[T], kernel: Kernel) -> Vec<f32> {
    let (strip, group) = (kernel.strip(), kernel.group());
    let mut values = T::to_f32_vec(panels);
    if group > 1 {
        let mut weights = vec![0f32; values.len()];
        let groups = weights.par_chunks_mut(strip * group).zip(values.par_chunks(strip * group));
        groups.for_each(|(to, from)| {
            for (part, to) in to.chunks_mut(strip).enumerate() {
                to.iter_mut().zip(from[part..].iter().step_by(group)).for_each(|(to, &w)| *to = w);
            }
        });
        values = weights;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Kernels of fused products give the same bits, dot products of pairs are close to them; rows of the weight and gradients come
    /// back from every layout.
    #[test]
    fn kernels_agree() {
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 500.0 - 1.0;
        let tensor = |rows: usize, columns: usize| {
            let values: Vec<f32> = (0..rows * columns).map(value).collect();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("a tensor")
        };
        for (n, inputs, outputs) in [(1, 1, 1), (7, 600, 70), (13, 65, 128), (3, 1101, 5)] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let [x, weight, g] =
                    [(n, inputs), (outputs, inputs), (n, outputs)].map(|(rows, columns)| {
                        tensor(rows, columns).to_dtype(dtype).expect("a tensor")
                    });
                let plain = |t: Tensor| -> Vec<Vec<f32>> {
                    t.to_dtype(DType::F32).and_then(|t| t.to_vec2()).expect("a matrix")
                };
                let ids: Vec<u32> = (0..outputs as u32).rev().collect();
                let index = Tensor::new(ids.as_slice(), &Device::Cpu).expect("a tensor");
                let turned = plain(weight.index_select(&index, 0).expect("rows"));
                let run = |kernel| {
                    let dense = Dense::with_kernel(&weight, kernel).expect("laid out");
                    assert_eq!(plain(dense.rows(&ids).expect("rows")), turned);
                    let back = g.apply_op1_no_bwd(&Backward(&dense)).expect("a gradient");
                    (kernel, plain(dense.product(&x, None).expect("a product")), plain(back))
                };
                let results: Vec<_> = Kernel::all(dtype).into_iter().map(run).collect();
                let case = format!("{n} {inputs} {outputs} {dtype:?}");
                for pair in results.windows(2) {
                    let [(first, y, back), (_, other, other_back)] = pair else { unreachable!() };
                    assert!(close(back, other_back, 1e-2), "{case}");
                    match first {
                        Kernel::Dots => assert!(close(y, other, 1e-2), "{case}"),
                        Kernel::Fused(_) => assert!(y == other, "{case}"),
                    }
                }
            }
        }
    }

    /// Whether no two values are further apart than `share` of the largest.
    fn close(a: &[Vec<f32>], b: &[Vec<f32>], share: f32) -> bool {
        let (a, b) = (a.concat(), b.concat());
        let largest = a.iter().fold(0f32, |most, x| most.max(x.abs()));
        a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= share * largest)
    }
}
