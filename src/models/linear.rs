//! A dense layer: its product with a frozen weight, a tracked one, or a frozen one and a LoRA pair.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Storage, Tensor, bail};

use crate::models::lora::Lora;
use crate::models::weights::Weights;
use crate::ops::act::{Activation, bias_act};
use crate::ops::dense::Dense;
use crate::{Error, Result};

/// A weight `[out, in]`.
pub(super) enum Weight {
    /// On the CPU, where nothing of the model is trained.
    Packed(Dense),
    Plain(Tensor),
}

impl Weight {
    /// `weights` is where the tensor came from. Those of an outline are no values to lay out: views of one zero.
    pub(super) fn of(weights: &Weights, tensor: Tensor) -> Result<Self> {
        let frozen = !tensor.track_op() && !weights.is_trained();
        let values = tensor.device().is_cpu() && tensor.is_contiguous();
        if frozen && values && Dense::available() {
            return Ok(Self::Packed(Dense::new(&tensor)?));
        }
        Ok(Self::Plain(tensor))
    }

    /// `[n, in]` to `[n, out]`.
    pub(super) fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Packed(dense) => dense.product(x, None),
            Self::Plain(weight) => product(x, weight),
        }
    }

    /// Rows of the weight.
    pub(super) fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        match self {
            Self::Packed(dense) => dense.rows(ids),
            Self::Plain(weight) => rows(weight, ids),
        }
    }

    pub(super) fn dtype(&self) -> DType {
        match self {
            Self::Packed(dense) => dense.dtype(),
            Self::Plain(weight) => weight.dtype(),
        }
    }
}

/// Rows of a table.
pub(super) fn rows(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    if ids.is_empty() {
        // A GPU has no buffers of length 0.
        return Ok(table.narrow(0, 0, 0)?);
    }
    Ok(table.index_select(&Tensor::new(ids, table.device())?, 0)?)
}

/// A dense layer.
pub(super) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    lora: Option<Lora>,
}

impl Linear {
    pub(super) fn load(
        weights: &Weights,
        name: &str,
        input: usize,
        output: usize,
        bias: bool,
    ) -> Result<Self> {
        let weights = weights.pp(name);
        Ok(Self {
            weight: Weight::of(&weights, weights.get(&[output, input], "weight")?)?,
            bias: if bias { Some(weights.get(&[output], "bias")?) } else { None },
            lora: weights.lora("weight"),
        })
    }

    /// `[n, in]` to `[n, out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Weight::Packed(dense) = &self.weight {
            return dense.product(x, self.bias());
        }
        let y = self.product(x)?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    /// `f` of [`Linear::forward`], where packed without rounding in between.
    pub(super) fn activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        if let Weight::Packed(dense) = &self.weight {
            return dense.activated(x, self.bias(), activation);
        }
        bias_act(&self.product(x)?, self.bias(), activation)
    }

    /// The product alone, for callers that fuse the bias into what follows.
    pub(super) fn product(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.product(x)?;
        match &self.lora {
            Some(lora) => lora.add_to(&y, x),
            None => Ok(y),
        }
    }

    /// The weight, if the layer is the product with it and nothing else.
    #[cfg(feature = "cuda")]
    pub(super) fn plain(&self) -> Option<&Tensor> {
        match (&self.weight, &self.bias, &self.lora) {
            (Weight::Plain(weight), None, None) => Some(weight),
            _ => None,
        }
    }

    /// The weight and the bias, if the layer is nothing else.
    #[cfg(feature = "cuda")]
    pub(super) fn unadapted(&self) -> Option<(&Tensor, Option<&Tensor>)> {
        match (&self.weight, &self.lora) {
            (Weight::Plain(weight), None) => Some((weight, self.bias.as_ref())),
            _ => None,
        }
    }

    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    pub(super) fn dtype(&self) -> DType {
        self.weight.dtype()
    }
}

/// Layers of one input. Where nothing of the model is trained they are a single product.
pub(super) enum Group<const N: usize> {
    Joined(Linear),
    Apart([Linear; N]),
}

/// What a [`Group`] gives, each `[n, out]`.
pub(super) enum Results<const N: usize> {
    /// One after another in each row.
    Joined(Tensor),
    Apart([Tensor; N]),
}

impl<const N: usize> Group<N> {
    /// Layers by name, with their outputs.
    pub(super) fn load(
        weights: &Weights,
        input: usize,
        layers: [(&str, usize); N],
        bias: bool,
    ) -> Result<Self> {
        let apart = || each(layers, |(name, out)| Linear::load(weights, name, input, out, bias));
        if weights.is_trained() {
            return Ok(Self::Apart(apart()?));
        }
        let rows = each(layers, |(name, out)| weights.pp(name).get(&[out, input], "weight"))?;
        // Views of one zero, as an outline gives, would become values.
        if rows.iter().any(|rows| rows.track_op() || !rows.is_contiguous()) {
            return Ok(Self::Apart(apart()?));
        }
        let bias = match bias {
            true => Some(each(layers, |(name, out)| weights.pp(name).get(&[out], "bias"))?),
            false => None,
        };
        Ok(Self::Joined(Linear {
            weight: Weight::of(weights, Tensor::cat(&rows, 0)?)?,
            bias: bias.map(|bias| Tensor::cat(&bias, 0)).transpose()?,
            lora: None,
        }))
    }

    /// The weight, if all layers are one product with it and nothing else.
    #[cfg(feature = "cuda")]
    pub(super) fn plain(&self) -> Option<&Tensor> {
        match self {
            Self::Joined(layer) => layer.plain(),
            Self::Apart(_) => None,
        }
    }

    /// The weight and the bias, if all layers are one product and nothing else.
    #[cfg(feature = "cuda")]
    pub(super) fn unadapted(&self) -> Option<(&Tensor, Option<&Tensor>)> {
        match self {
            Self::Joined(layer) => layer.unadapted(),
            Self::Apart(_) => None,
        }
    }

    /// `[n, in]` through all layers.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Results<N>> {
        Ok(match self {
            Self::Joined(layer) => Results::Joined(layer.forward(x)?),
            Self::Apart(layers) => Results::Apart(each(layers.each_ref(), |l| l.forward(x))?),
        })
    }
}

impl<const N: usize> Results<N> {
    /// The results as `[n, heads, dim]`, where a layer has so many heads; views of rows that may lie apart.
    pub(super) fn heads(self, heads: [usize; N], dim: usize) -> Result<[Tensor; N]> {
        let mut first = 0;
        match self {
            Self::Joined(all) => {
                let all = all.reshape((all.dim(0)?, heads.iter().sum::<usize>(), dim))?;
                each(heads, |heads| {
                    first += heads;
                    Ok(all.narrow(1, first - heads, heads)?)
                })
            }
            Self::Apart(results) => {
                let mut heads = heads.into_iter();
                each(results, |t| Ok(t.reshape((t.dim(0)?, heads.next().unwrap_or(0), dim))?))
            }
        }
    }
}

/// The results of all, or the first error.
fn each<T, U, const N: usize>(all: [T; N], f: impl FnMut(T) -> Result<U>) -> Result<[U; N]> {
    let results: Vec<U> = all.into_iter().map(f).collect::<Result<_>>()?;
    let wrong = |results: Vec<U>| Error::argument("each", "results", results.len(), N);
    results.try_into().map_err(wrong)
}

/// `x [n, in]` by `weight [out, in]`, transposed. candle's own backward pass of a product makes and keeps a gradient of
/// both sides; a frozen weight gets none here, which saves a third of the work and all of its memory.
pub(super) fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if x.track_op() && !weight.track_op() {
        return Ok(x.contiguous()?.apply_op1(Frozen(weight.clone()))?);
    }
    Ok(x.matmul(&weight.t()?)?)
}

struct Frozen(Tensor);

impl Frozen {
    fn forward<S: BackendStorage>(
        &self,
        x: &S,
        l: &Layout,
        weight: &S,
        weight_l: &Layout,
    ) -> candle_core::Result<(S, Shape)> {
        let ((n, input), output) = (l.shape().dims2()?, weight_l.dims()[0]);
        let y = x.matmul(weight, (1, n, output, input), l, &weight_l.transpose(0, 1)?)?;
        Ok((y, Shape::from((n, output))))
    }
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen_product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (weight, weight_l) = self.0.storage_and_layout();
        let Storage::Cpu(weight) = &*weight else { bail!("frozen_product: weight not on the CPU") };
        self.forward(x, l, weight, weight_l)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        l: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        let (weight, weight_l) = self.0.storage_and_layout();
        let Storage::Cuda(weight) = &*weight else {
            bail!("frozen_product: weight not on the GPU")
        };
        self.forward(x, l, weight, weight_l)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        grad.contiguous()?.matmul(&self.0).map(Some)
    }
}
