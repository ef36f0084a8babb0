//! The backward pass made of candle's ops, in f32, for tensors that do not live on the CPU: a GPU trains by it. The pass on the CPU
//! is what it is tested against.

use candle_core::{DType, Tensor};

use super::Activation;
use crate::ops::grads::{sums_of_columns, wide};

fn sigmoid(x: &Tensor) -> candle_core::Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// The slope of x sigmoid(k x): s + k x s (1 - s).
fn sigmoid_slope(x: &Tensor, k: f64) -> candle_core::Result<Tensor> {
    let s = sigmoid(&(x * k)?)?;
    let rest = (x.mul(&s)?.mul(&s.affine(-1.0, 1.0)?)? * k)?;
    s + rest
}

fn slope(activation: Activation, x: &Tensor) -> candle_core::Result<Tensor> {
    match activation {
        Activation::Identity => x.ones_like(),
        Activation::GeluErf => {
            let cdf = (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?;
            let density =
                ((x.sqr()? * -0.5)?.exp()? * (2.0 * std::f64::consts::PI).sqrt().recip())?;
            cdf + x.mul(&density)?
        }
        Activation::GeluTanh => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let u = (x.mul(&x.sqr()?.affine(0.044_715, 1.0)?)? * c)?;
            let s = sigmoid(&(u * 2.0)?)?;
            let du = (x.sqr()?.affine(3.0 * 0.044_715, 1.0)? * (2.0 * c))?;
            let rest = x.mul(&s)?.mul(&s.affine(-1.0, 1.0)?)?.mul(&du)?;
            s + rest
        }
        Activation::QuickGelu => sigmoid_slope(x, 1.702),
        // NaN stays.
        Activation::Relu => x.gt(0.0)?.to_dtype(DType::F32)? + (x * 0.0)?,
        Activation::Silu => sigmoid_slope(x, 1.0),
        Activation::Tanh => x.tanh()?.sqr()?.affine(-1.0, 1.0),
    }
}

/// Of `f(x + bias)`: the gradients of x and bias.
pub(super) fn bias_act(
    x: &Tensor,
    bias: Option<&Tensor>,
    grad: &Tensor,
    activation: Activation,
) -> candle_core::Result<(Tensor, Option<Tensor>)> {
    let [wide_x, grad] = wide([x, grad])?;
    let sum = match bias {
        Some(bias) => wide_x.broadcast_add(&wide([bias])?[0])?,
        None => wide_x,
    };
    let dx = slope(activation, &sum)?.mul(&grad)?;
    let dbias = bias.map(|bias| sums_of_columns(&dx)?.to_dtype(bias.dtype())).transpose()?;
    Ok((dx.to_dtype(x.dtype())?, dbias))
}

/// Of `silu(gate) * up`: the gradients of both.
pub(super) fn silu_mul(
    gate: &Tensor,
    up: &Tensor,
    grad: &Tensor,
) -> candle_core::Result<(Tensor, Tensor)> {
    let [g, u, grad] = wide([gate, up, grad])?;
    let dgate = sigmoid_slope(&g, 1.0)?.mul(&u)?.mul(&grad)?;
    let dup = g.mul(&sigmoid(&g)?)?.mul(&grad)?;
    Ok((dgate.to_dtype(gate.dtype())?, dup.to_dtype(up.dtype())?))
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::grads::tests::{close, own, random};

    #[test]
    fn activations() {
        for activation in [
            Activation::Identity,
            Activation::GeluErf,
            Activation::GeluTanh,
            Activation::QuickGelu,
            Activation::Relu,
            Activation::Silu,
            Activation::Tanh,
        ] {
            let (x, bias, grad) = (random(&[2, 5, 7]), random(&[7]), random(&[2, 5, 7]));
            let [x, bias] = [&x, &bias].map(|t| Var::from_tensor(t).unwrap());
            let y = crate::ops::act::bias_act(&x, Some(&bias), activation).unwrap();
            let expected = own(&y, &grad, &[&x, &bias]);
            let (dx, dbias) = bias_act(&x, Some(&bias), &grad, activation).unwrap();
            close(&dx, &expected[0], &format!("{activation:?}, x"));
            close(&dbias.unwrap(), &expected[1], &format!("{activation:?}, bias"));
        }
        let [gate, up] = [(); 2].map(|()| Var::from_tensor(&random(&[4, 9])).unwrap());
        let grad = random(&[4, 9]);
        let expected = own(&crate::ops::act::silu_mul(&gate, &up).unwrap(), &grad, &[&gate, &up]);
        let (dgate, dup) = silu_mul(&gate, &up, &grad).unwrap();
        close(&dgate, &expected[0], "gate");
        close(&dup, &expected[1], "up");
    }
}
