//! A decode step as a CUDA graph.
//!
//! Its rows go through buffers that stay where they are, on a stream of their own, by the calls of
//! [`crate::ops::cuda`] that [`Language::forward`] makes through candle. The first step of so many
//! rows is launched call by call, which also loads what is loaded at its first use; the second is
//! captured, and later ones are launches of that graph. Rows are rounded up, two counts an octave,
//! so that few graphs serve all counts: what is too many sees one key and is written nowhere. Steps
//! of more than [`MOST_ROWS`] are not captured: their products keep the GPU busy for longer than
//! the host takes for the launches.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaDevice, CudaStorage, DType, Storage, Tensor, TensorId};
use cudarc::driver::{CudaSlice, CudaStream, CudaView, DeviceRepr, DriverError};
use half::{bf16, f16};

use super::cache::Arenas;
use super::{Language, Layer, TextConfig};
use crate::ops::act::Activation;
use crate::ops::attend::{AttendPlan, Block, Segment};
use crate::ops::cuda::Rows;
use crate::ops::cuda::act::{bias_act, silu_mul};
use crate::ops::cuda::attend::{Operands, Plan, Slots, Workspace, attend_in, write_rows_to};
use crate::ops::cuda::graph::{Graph, Untracked};
use crate::ops::cuda::norm::{Norm, norm};
use crate::ops::cuda::pool::Output;
use crate::ops::cuda::product::Products;
use crate::ops::cuda::rope::rotate;
use crate::ops::norm::NormKind;
use crate::{Error, Result};

const OP: &str = "Language::step";
const VARIABLE: &str = "BDHS_DECODE";

/// Rows beyond which a step is not captured.
const MOST_ROWS: usize = 384;
/// Captures that may fail before no other is tried over an arena. One may fail by an error that
/// something else left behind.
const MOST_REFUSALS: u32 = 2;

/// The decode steps over one arena.
#[derive(Default)]
pub(super) struct Steps {
    /// Of the model they were made for: its last norm.
    of: Option<TensorId>,
    /// None for a model whose steps are not captured.
    typed: Option<Typed>,
    not_captured: Option<String>,
    /// Captures that failed.
    refusals: u32,
    replays: u64,
}

enum Typed {
    F32(Run<f32>),
    F16(Run<f16>),
    BF16(Run<bf16>),
}

impl Steps {
    pub(super) fn replays(&self) -> u64 {
        self.replays
    }

    pub(super) fn not_captured(&mut self) -> Option<String> {
        self.not_captured.take()
    }

    /// The states after a pass, as of [`Language::forward`], which has checked the arguments; nothing if that has to compute them.
    pub(super) fn run(
        &mut self,
        language: &Language,
        x: &Tensor,
        rotary: impl FnOnce() -> [Vec<f32>; 2],
        arenas: Arenas<'_>,
        slots: &[u32],
        plan: &AttendPlan,
    ) -> Result<Option<Tensor>> {
        if slots.len() > MOST_ROWS {
            return Ok(None);
        }
        if self.of != Some(language.norm.id()) {
            (self.of, self.typed) = (Some(language.norm.id()), Typed::of(language)?);
            self.refusals = 0;
        }
        let capture = self.refusals < MOST_REFUSALS;
        let Some(typed) = &mut self.typed else { return Ok(None) };
        let pass = Pass { language, arenas };
        let rotary = rotary();
        let outcome = match typed {
            Typed::F32(run) => run.step(&pass, x, &rotary, (slots, plan), capture),
            Typed::F16(run) => run.step(&pass, x, &rotary, (slots, plan), capture),
            Typed::BF16(run) => run.step(&pass, x, &rotary, (slots, plan), capture),
        };
        let Done { states, replayed, refused } = match outcome {
            Ok(done) => done,
            Err(error) => {
                // What was half done is not gone on with.
                let Self { replays, refusals, .. } = *self;
                *self = Self { replays, refusals, ..Self::default() };
                return Err(error);
            }
        };
        self.replays += u64::from(replayed);
        if let Some(error) = refused {
            self.refusals += 1;
            if self.refusals == MOST_REFUSALS {
                self.not_captured = Some(format!(
                    "decode steps are not captured into CUDA graphs, and launched one call at a time: {error}"
                ));
            }
        }
        Ok(Some(states))
    }
}

impl Typed {
    fn of(language: &Language) -> Result<Option<Self>> {
        let wanted = match std::env::var_os(VARIABLE) {
            None => true,
            Some(name) if name == "graph" => true,
            Some(name) if name == "ops" => false,
            Some(name) => {
                let got = format!("{VARIABLE}={}", name.display());
                return Err(Error::unsupported(got, "expected graph or ops"));
            }
        };
        let candle_core::Device::Cuda(device) = &language.device else { return Ok(None) };
        let plain = language.layers.iter().all(Layer::is_plain);
        if !wanted || !plain {
            return Ok(None);
        }
        Ok(match language.dtype {
            DType::F32 => Some(Self::F32(Run::new(device)?)),
            DType::F16 => Some(Self::F16(Run::new(device)?)),
            DType::BF16 => Some(Self::BF16(Run::new(device)?)),
            _ => None,
        })
    }
}

impl Layer {
    /// Whether it is what [`Calls`] computes: products alone, but for a bias of queries, keys and values.
    fn is_plain(&self) -> bool {
        let products = [self.gate_up.plain(), self.output.plain(), self.down.plain()];
        self.head_norms.is_none()
            && self.qkv.unadapted().is_some()
            && products.iter().all(Option::is_some)
    }
}

/// What a step computes with.
struct Pass<'a> {
    language: &'a Language,
    arenas: Arenas<'a>,
}

struct Done {
    states: Tensor,
    replayed: bool,
    /// Why the step was not captured, if that was tried.
    refused: Option<Error>,
}

/// Steps in one float type.
struct Run<T> {
    /// Everything else of the model is on `main`: buffers are filled and read there.
    device: CudaDevice,
    main: Arc<CudaStream>,
    stream: Arc<CudaStream>,
    products: Products,
    buffers: Option<Buffers<T>>,
    workspace: Option<Workspace>,
    shapes: Vec<Shape>,
}

/// What belongs to steps of so many rows.
struct Shape {
    rows: usize,
    plan: Plan,
    slots: Slots,
    state: State,
}

enum State {
    /// Nothing has been launched.
    New,
    /// All calls were made once.
    Warm,
    Captured(Graph),
}

/// Rows of a graph for `n` rows: the next power of two, or from 24 on the three quarters of it that
/// hold them.
fn rounded(n: usize) -> usize {
    let power = n.next_power_of_two();
    if power >= 32 && n <= power / 4 * 3 { power / 4 * 3 } else { power }
}

/// The plan for as many rows as that, each of the new ones seeing `slot`.
fn padded(plan: &AttendPlan, n: usize, rows: usize, slot: u32) -> Cow<'_, AttendPlan> {
    if n == rows {
        return Cow::Borrowed(plan);
    }
    let keys = || vec![Segment { start: slot as usize, len: 1 }];
    let more = (n..rows).map(|row| Block { rows: row..row + 1, keys: keys(), causal: false });
    Cow::Owned(AttendPlan { blocks: plan.blocks.iter().cloned().chain(more).collect() })
}

impl<T: Float> Run<T> {
    fn new(device: &CudaDevice) -> Result<Self> {
        let main = device.cuda_stream();
        let stream = main.context().new_stream().map_err(failed("making a stream"))?;
        // Weights may come from another handle of this GPU, whose stream nobody will wait for.
        main.context().synchronize().map_err(failed("waiting"))?;
        Ok(Self {
            device: device.clone(),
            products: Products::new(&stream)?,
            main,
            stream,
            buffers: None,
            workspace: None,
            shapes: vec![],
        })
    }

    fn step(
        &mut self,
        pass: &Pass<'_>,
        x: &Tensor,
        [cos, sin]: &[Vec<f32>; 2],
        (slots, plan): (&[u32], &AttendPlan),
        capture: bool,
    ) -> Result<Done> {
        let (n, c) = (slots.len(), &pass.language.config);
        let rows = rounded(n);
        let shape = self.shape(c, &pass.arenas, rows, slots, &padded(plan, n, rows, slots[0]))?;
        let Some(buffers) = &mut self.buffers else { return Err(absent()) };
        let x = x.contiguous()?;
        with_values::<T, _>(&x, |x| {
            let mut to = buffers.input.slice_mut(..x.len());
            self.main.memcpy_dtod(&x, &mut to).map_err(failed("copying rows"))
        })?;
        for (values, buffer) in [(cos, &mut buffers.cos), (sin, &mut buffers.sin)] {
            self.main.memcpy_htod(values, buffer).map_err(failed("uploading rotary values"))?;
        }
        self.stream.join(&self.main).map_err(failed("waiting"))?;
        // SAFETY: `stream` waits for `main`, and `main` for it; the calls allocate nothing.
        let untracked = unsafe { Untracked::new(self.main.context()) };
        let launched = self.launch(shape, pass, capture);
        drop(untracked);
        // Also after an error: buffers are freed on `main`.
        self.main.join(&self.stream).map_err(failed("waiting"))?;
        let (replayed, refused) = launched?;
        let Some(buffers) = &self.buffers else { return Err(absent()) };
        let len = n * c.hidden;
        // SAFETY: the copy writes all of it.
        let mut out = unsafe { self.main.alloc::<T>(len) }.map_err(failed("allocating"))?;
        let copied = self.main.memcpy_dtod(&buffers.h.slice(..len), &mut out);
        copied.map_err(failed("copying states"))?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(out, self.device.clone()));
        let none = candle_core::op::BackpropOp::none();
        let states = Tensor::from_storage(storage, (n, c.hidden), none, false);
        Ok(Done { states, replayed, refused })
    }

    /// The number of the shape of `rows` rows, for these slots and this plan, with buffers and workspace to go with it.
    fn shape(
        &mut self,
        c: &TextConfig,
        arenas: &Arenas<'_>,
        rows: usize,
        slots: &[u32],
        plan: &AttendPlan,
    ) -> Result<usize> {
        if self.buffers.is_none() {
            // For all counts at once: other buffers would be other graphs.
            self.buffers = Some(Buffers::new(&self.main, c, MOST_ROWS)?);
        }
        let arena = arenas.keys.first().map_or(Ok(0), |keys| keys.dim(0))?;
        let (mut state, mut last) = (State::New, None::<Plan>);
        if let Some(i) = self.shapes.iter().position(|shape| shape.rows == rows) {
            if self.shapes[i].plan.replace(&self.main, plan)? {
                self.shapes[i].slots.replace(&self.main, slots)?;
                return Ok(i);
            }
            (state, last) = (State::Warm, Some(self.shapes.swap_remove(i).plan));
        }
        let plan = match last {
            Some(last) => last.grown(&self.main, plan)?,
            None => Plan::with_room(&self.main, plan, rows, arena, c.heads / c.kv_heads)?,
        };
        let fits = |workspace: &Workspace| workspace.fits(&plan, c.kv_heads, c.head_dim);
        if !self.workspace.as_ref().is_some_and(fits) {
            self.forget();
            self.workspace = None;
            self.workspace = Some(Workspace::new(&self.main, &plan, c.kv_heads, c.head_dim)?);
        }
        let slots = Slots::padded(&self.main, slots, rows, arena)?;
        self.shapes.push(Shape { rows, plan, slots, state });
        Ok(self.shapes.len() - 1)
    }

    /// No graph is good any more: it has the addresses of buffers that go.
    fn forget(&mut self) {
        for shape in &mut self.shapes {
            if matches!(shape.state, State::Captured(_)) {
                shape.state = State::Warm;
            }
        }
    }

    /// Enqueues a step, as a graph if there is one or `capture` allows one. Whether it was one, and
    /// why not if that was tried.
    fn launch(
        &mut self,
        shape: usize,
        pass: &Pass<'_>,
        capture: bool,
    ) -> Result<(bool, Option<Error>)> {
        let first = !self.shapes.iter().any(|shape| matches!(shape.state, State::Captured(_)));
        let (Some(buffers), Some(workspace)) = (&mut self.buffers, &mut self.workspace) else {
            return Err(absent());
        };
        let (stream, products) = (&self.stream, &self.products);
        let Shape { rows, plan, slots, state } = &mut self.shapes[shape];
        let rows = *rows;
        let mut calls = Calls { pass, stream, products, rows, plan, slots, workspace, buffers };
        match state {
            State::Captured(graph) => {
                // SAFETY: weights, arena and buffers are those of the capture: `Steps` belongs to the arena and makes all anew
                // for another model, `forget` for other buffers.
                unsafe { graph.launch() }?;
                return Ok((true, None));
            }
            State::Warm if capture => {
                return match calls.captured(first) {
                    Ok(graph) => {
                        *state = State::Captured(graph);
                        Ok((true, None))
                    }
                    Err(error) => calls.all().map(|()| (false, Some(error))),
                };
            }
            State::New => *state = State::Warm,
            State::Warm => {}
        }
        calls.all().map(|()| (false, None))
    }
}

/// The calls of a step.
struct Calls<'a, T> {
    pass: &'a Pass<'a>,
    stream: &'a Arc<CudaStream>,
    products: &'a Products,
    rows: usize,
    plan: &'a Plan,
    slots: &'a Slots,
    workspace: &'a mut Workspace,
    buffers: &'a mut Buffers<T>,
}

impl<T: Float> Calls<'_, T> {
    /// A graph of all of them, launched once; if `checked`, compared with the calls themselves.
    fn captured(&mut self, checked: bool) -> Result<Graph> {
        let expected = match checked {
            true => {
                self.all()?;
                Some(self.states()?)
            }
            false => None,
        };
        let stream = self.stream;
        let mut graph = Graph::capture(stream, || self.all())?;
        // SAFETY: everything is borrowed here.
        unsafe { graph.launch() }?;
        if let Some(expected) = expected {
            compare(&expected, &self.states()?)?;
        }
        Ok(graph)
    }

    /// The states.
    fn states(&self) -> Result<Vec<T>> {
        let len = self.rows * self.pass.language.config.hidden;
        let states = self.stream.clone_dtoh(&self.buffers.h.slice(..len));
        let states = states.map_err(failed("reading states"))?;
        self.stream.synchronize().map_err(failed("reading states"))?;
        Ok(states)
    }

    /// From the rows in `input`, which stay, to the states in `h`.
    fn all(&mut self) -> Result<()> {
        let language = self.pass.language;
        // How many blocks want to be added, or were.
        let mut at = 0;
        for (i, layer) in language.layers.iter().enumerate() {
            self.norm(at, &layer.attention_norm)?;
            self.attend(i, layer)?;
            at += 1;
            self.norm(at, &layer.mlp_norm)?;
            self.feed(layer)?;
            at += 1;
        }
        self.norm(at, &language.norm)
    }

    /// `h` from the residual stream, which `delta` is added to first, but for the input.
    fn norm(&mut self, at: usize, weight: &Tensor) -> Result<()> {
        let (c, rows, stream) = (&self.pass.language.config, self.rows, self.stream);
        let Buffers { input, streams: [a, b], h, delta, .. } = &mut *self.buffers;
        let (from, to) = match at {
            0 => (None, a),
            1 => (Some(&*input), a),
            at if at % 2 == 0 => (Some(&*a), b),
            _ => (Some(&*b), a),
        };
        let all = |buffer| T::rows(buffer, rows, c.hidden, c.hidden);
        with_values::<T, _>(weight, |weight| {
            let weight = T::rows(weight, 1, c.hidden, c.hidden)?;
            let rule = Norm {
                kind: NormKind::Rms,
                residual: None,
                weight,
                bias: None,
                add_bias: None,
                eps: c.eps,
            };
            match from {
                None => norm(stream, &all(input.as_view())?, &rule, None, h),
                Some(from) => {
                    let rule = Norm { residual: Some(all(from.as_view())?), ..rule };
                    norm(stream, &all(delta.as_view())?, &rule, Some(to), h)
                }
            }
        })
    }

    /// Keys and values into the arena, and attention over it.
    fn attend(&mut self, i: usize, layer: &Layer) -> Result<()> {
        let (c, n, stream) = (&self.pass.language.config, self.rows, self.stream);
        let (wide, narrow) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let (turned_width, all_width) = (wide + narrow, wide + 2 * narrow);
        let Buffers { h, raw, qkv, turned, seen, delta, cos, sin, .. } = &mut *self.buffers;
        let (weight, bias) = layer.qkv.unadapted().ok_or_else(absent)?;
        match bias {
            None => product(self.products, (h, n, c.hidden), Some(weight), qkv)?,
            Some(bias) => {
                let Some(raw) = raw else { return Err(absent()) };
                product(self.products, (h, n, c.hidden), Some(weight), raw)?;
                let raw = T::rows(raw.as_view(), n, all_width, all_width)?;
                with_values::<T, _>(bias, |bias| {
                    let bias = T::rows(bias, 1, all_width, all_width)?;
                    bias_act(stream, &raw, Some(&bias), Activation::Identity, qkv)
                })?;
            }
        }
        let x = T::rows(qkv.as_view(), n, turned_width, all_width)?;
        rotate(stream, &x, c.heads + c.kv_heads, cos, sin, turned)?;
        let key = T::rows(turned.slice(wide..), n, narrow, turned_width)?;
        let value = T::rows(qkv.slice(turned_width..), n, narrow, all_width)?;
        let (keys, values) = (&self.pass.arenas.keys[i], &self.pass.arenas.values[i]);
        write_rows_to(stream, &key, self.slots, keys)?;
        write_rows_to(stream, &value, self.slots, values)?;
        let q = T::rows(turned.as_view(), n, wide, turned_width)?;
        let scale = 1.0 / (c.head_dim as f32).sqrt();
        let slots = keys.dim(0)?;
        with_values::<T, _>(keys, |k| {
            with_values::<T, _>(values, |v| {
                let [k, v] =
                    [T::rows(k, slots, narrow, narrow)?, T::rows(v, slots, narrow, narrow)?];
                let operands = Operands { q, k, v, dim: c.head_dim };
                attend_in(stream, &operands, self.plan, scale, None, self.workspace, seen)
            })
        })?;
        product(self.products, (seen, n, wide), layer.output.plain(), delta)
    }

    /// The gated feed-forward part.
    fn feed(&mut self, layer: &Layer) -> Result<()> {
        let (c, n) = (&self.pass.language.config, self.rows);
        let Buffers { h, gate_up, acted, delta, .. } = &mut *self.buffers;
        product(self.products, (h, n, c.hidden), layer.gate_up.plain(), gate_up)?;
        let gate = T::rows(gate_up.as_view(), n, c.inner, 2 * c.inner)?;
        let up = T::rows(gate_up.slice(c.inner..), n, c.inner, 2 * c.inner)?;
        silu_mul(self.stream, &gate, &up, acted)?;
        product(self.products, (acted, n, c.inner), layer.down.plain(), delta)
    }
}

/// An error if a graph gave other states than the calls that were captured. Not by bits: cuBLAS may
/// choose another algorithm when several streams are at work.
fn compare<T: Float>(calls: &[T], graph: &[T]) -> Result<()> {
    let largest = calls.iter().map(|&x| x.value().abs()).fold(0.0, f32::max);
    let differs = |(a, b): (&T, &T)| {
        let difference = (a.value() - b.value()).abs();
        // What is no number is a difference.
        difference.is_nan() || difference > T::BOUND * largest
    };
    let different = calls.iter().zip(graph).filter(|&pair| differs(pair)).count();
    if different == 0 {
        return Ok(());
    }
    let message = format!(
        "{different} of {} states differ from those of the calls by more than {} of the largest",
        calls.len(),
        T::BOUND
    );
    Err(Error::Device { op: OP, what: "launching a captured graph", message })
}

/// `x [n, in]` by a weight `[out, in]`, transposed.
fn product<T: Float>(
    products: &Products,
    (x, n, input): (&CudaSlice<T>, usize, usize),
    weight: Option<&Tensor>,
    out: &mut CudaSlice<T>,
) -> Result<()> {
    let weight = weight.ok_or_else(absent)?;
    let outputs = weight.dim(0)?;
    with_values::<T, _>(weight, |weight| {
        let weight = T::rows(weight, outputs, input, input)?;
        products.product(&T::rows(x.as_view(), n, input, input)?, &weight, out)
    })
}

/// Buffers for up to so many rows, of which all but the last two are of the model's type.
struct Buffers<T> {
    /// Behind the embedding.
    input: CudaSlice<T>,
    /// The residual stream, by turns.
    streams: [CudaSlice<T>; 2],
    /// Behind a norm.
    h: CudaSlice<T>,
    /// Before the bias, where there is one.
    raw: Option<CudaSlice<T>>,
    qkv: CudaSlice<T>,
    /// Queries and keys, turned by position.
    turned: CudaSlice<T>,
    seen: CudaSlice<T>,
    /// To be added to the residual stream.
    delta: CudaSlice<T>,
    gate_up: CudaSlice<T>,
    acted: CudaSlice<T>,
    cos: CudaSlice<f32>,
    sin: CudaSlice<f32>,
}

impl<T: Float> Buffers<T> {
    fn new(stream: &Arc<CudaStream>, c: &TextConfig, rows: usize) -> Result<Self> {
        let zeros =
            |width: usize| stream.alloc_zeros::<T>(rows * width).map_err(failed("allocating"));
        let table = || stream.alloc_zeros(rows * c.head_dim / 2).map_err(failed("allocating"));
        let (wide, narrow) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        Ok(Self {
            input: zeros(c.hidden)?,
            streams: [zeros(c.hidden)?, zeros(c.hidden)?],
            h: zeros(c.hidden)?,
            raw: c.qkv_bias.then(|| zeros(wide + 2 * narrow)).transpose()?,
            qkv: zeros(wide + 2 * narrow)?,
            turned: zeros(wide + narrow)?,
            seen: zeros(wide)?,
            delta: zeros(c.hidden)?,
            gate_up: zeros(2 * c.inner)?,
            acted: zeros(c.inner)?,
            cos: table()?,
            sin: table()?,
        })
    }
}

/// The float types of a model.
trait Float: Output + CudaDType + DeviceRepr + Copy {
    /// `count` rows of `width` values, `stride` apart, at the beginning of a buffer.
    fn rows(
        values: CudaView<'_, Self>,
        count: usize,
        width: usize,
        stride: usize,
    ) -> Result<Rows<'_>>;

    /// How far two ways of one computation may be apart, of the largest value.
    const BOUND: f32;

    fn value(self) -> f32;
}

macro_rules! float {
    ($($ty:ty: $bound:literal),*) => {
        $(impl Float for $ty {
            const BOUND: f32 = $bound;

            fn rows(values: CudaView<'_, Self>, count: usize, width: usize, stride: usize) -> Result<Rows<'_>> {
                Rows::strided(values, count, width, stride)
            }

            fn value(self) -> f32 {
                candle_core::WithDType::to_f64(self) as f32
            }
        })*
    };
}
float!(f32: 1e-3, f16: 2e-2, bf16: 1e-1);

/// Runs `f` on the values of a contiguous tensor.
fn with_values<T: Float, R>(
    tensor: &Tensor,
    f: impl FnOnce(CudaView<'_, T>) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::argument(OP, "tensor", format!("{layout:?}"), "contiguous"));
    };
    match &*storage {
        Storage::Cuda(storage) => f(storage.as_cuda_slice::<T>()?.slice(start..end)),
        _ => Err(Error::argument(
            OP,
            "tensor",
            format!("on {:?}", tensor.device().location()),
            "on the GPU",
        )),
    }
}

fn failed(what: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| Error::Device { op: OP, what, message: format!("{error:?}") }
}

/// What [`Run::step`] has seen to is not there.
fn absent() -> Error {
    Error::Device { op: OP, what: "finding its buffers", message: "none".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_rounded_to_two_counts_an_octave() {
        assert_eq!(
            [1, 2, 3, 5, 9, 17, 24, 25, 33, 49, 64, 129, 193, 257, 384].map(rounded),
            [1, 2, 4, 8, 16, 24, 24, 32, 48, 64, 64, 192, 256, 384, 384]
        );
        let mut counts: Vec<usize> = (1..=MOST_ROWS).map(rounded).collect();
        assert!(counts.iter().zip(1..).all(|(&rows, n)| rows >= n && rows <= MOST_ROWS));
        counts.dedup();
        assert_eq!(counts.len(), 14, "{counts:?}");
    }

    #[test]
    fn states_are_compared_by_a_bound() {
        let calls = [1f32, -4.0, 0.5];
        assert!(compare(&calls, &[1.003, -4.0, 0.5]).is_ok());
        let message = compare(&calls, &[1.0, -4.1, f32::NAN]).unwrap_err().to_string();
        assert!(message.contains("2 of 3 states"), "{message}");
    }
}
