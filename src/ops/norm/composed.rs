//! The backward pass made of candle's ops, in f32, for tensors that do not live on the CPU: a GPU trains by it. The pass on the CPU
//! is what it is tested against.

use candle_core::{D, Tensor};

use super::NormKind;
use crate::ops::grads::{sums_of_columns, wide};

/// Of a normalisation: the gradients of x, weight and bias, as `TrackedNorm::rows` has them.
pub(super) fn norm(
    kind: NormKind,
    eps: f32,
    [x, weight, bias]: [&Tensor; 3],
    grad: &Tensor,
) -> candle_core::Result<[Tensor; 3]> {
    let [wide_x, wide_weight, grad] = wide([x, weight, grad])?;
    let centred = match kind {
        NormKind::Layer => wide_x.broadcast_sub(&wide_x.mean_keepdim(D::Minus1)?)?,
        NormKind::Rms => wide_x,
    };
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let inverse = (variance + f64::from(eps))?.sqrt()?.recip()?;
    let h = centred.broadcast_mul(&inverse)?;
    let g = grad.broadcast_mul(&wide_weight)?;
    let along = g.mul(&h)?.mean_keepdim(D::Minus1)?;
    let mut dx = g.sub(&h.broadcast_mul(&along)?)?;
    if kind == NormKind::Layer {
        dx = dx.broadcast_sub(&g.mean_keepdim(D::Minus1)?)?;
    }
    Ok([
        dx.broadcast_mul(&inverse)?.to_dtype(x.dtype())?,
        sums_of_columns(&grad.mul(&h)?)?.to_dtype(weight.dtype())?,
        sums_of_columns(&grad)?.to_dtype(bias.dtype())?,
    ])
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::grads::tests::{close, own, random};

    #[test]
    fn norms() {
        let grad = random(&[6, 11]);
        let [x, weight, bias] =
            [&[6, 11][..], &[11], &[11]].map(|dims| Var::from_tensor(&random(dims)).unwrap());
        let y = crate::ops::norm::layer_norm(&x, None, &weight, Some(&bias), 1e-5).unwrap();
        let expected = own(&y, &grad, &[&x, &weight, &bias]);
        let seen = norm(NormKind::Layer, 1e-5, [&x, &weight, &bias], &grad).unwrap();
        for (seen, expected) in seen.iter().zip(&expected) {
            close(seen, expected, "layer norm");
        }
        let y = crate::ops::norm::rms_norm(&x, None, &weight, 1e-6).unwrap();
        let expected = own(&y, &grad, &[&x, &weight]);
        let seen = norm(NormKind::Rms, 1e-6, [&x, &weight, &bias], &grad).unwrap();
        for (seen, expected) in seen.iter().zip(&expected) {
            close(seen, expected, "RMS norm");
        }
    }
}
