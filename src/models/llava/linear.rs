//! A dense layer: its product with a frozen weight, a tracked one, or a frozen one and a LoRA pair.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Storage, Tensor, bail};

use crate::Result;
use crate::models::lora::Lora;
use crate::models::weights::Weights;

/// A dense layer, weight `[out, in]`.
pub(super) struct Linear {
    weight: Tensor,
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
            weight: weights.get(&[output, input], "weight")?,
            bias: if bias { Some(weights.get(&[output], "bias")?) } else { None },
            lora: weights.lora("weight"),
        })
    }

    /// `[n, in]` to `[n, out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.product(x)?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    /// The product alone, for callers that fuse the bias into what follows.
    pub(super) fn product(&self, x: &Tensor) -> Result<Tensor> {
        let y = product(x, &self.weight)?;
        match &self.lora {
            Some(lora) => lora.add_to(&y, x),
            None => Ok(y),
        }
    }

    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    pub(super) fn dtype(&self) -> candle_core::DType {
        self.weight.dtype()
    }
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
