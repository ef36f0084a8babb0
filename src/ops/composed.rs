//! Backward passes made of candle's ops, in f32, for tensors that do not live on the CPU: a GPU trains by them. The passes on
//! the CPU are in each op's own file, and are what these are tested against.

use candle_core::{D, DType, Device, Tensor, bail};

use super::act::Activation;
use super::attend::{AttendPlan, Block};
use super::norm::Law;

fn wide<const N: usize>(tensors: [&Tensor; N]) -> candle_core::Result<[Tensor; N]> {
    let mut all = tensors.map(Tensor::clone);
    for tensor in &mut all {
        *tensor = tensor.detach().to_dtype(DType::F32)?;
    }
    Ok(all)
}

/// The sum over all axes but the last.
fn column_sums(x: &Tensor) -> candle_core::Result<Tensor> {
    x.reshape(((), x.dim(D::Minus1)?))?.sum(0)
}

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
    let dbias = bias.map(|bias| column_sums(&dx)?.to_dtype(bias.dtype())).transpose()?;
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

/// Of a normalisation: the gradients of x, weight and bias, as `TrackedNorm::rows` has them.
pub(super) fn norm(
    law: Law,
    eps: f32,
    [x, weight, bias]: [&Tensor; 3],
    grad: &Tensor,
) -> candle_core::Result<[Tensor; 3]> {
    let [wide_x, wide_weight, grad] = wide([x, weight, grad])?;
    let centred = match law {
        Law::Layer => wide_x.broadcast_sub(&wide_x.mean_keepdim(D::Minus1)?)?,
        Law::Rms => wide_x,
    };
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let inverse = (variance + f64::from(eps))?.sqrt()?.recip()?;
    let h = centred.broadcast_mul(&inverse)?;
    let g = grad.broadcast_mul(&wide_weight)?;
    let along = g.mul(&h)?.mean_keepdim(D::Minus1)?;
    let mut dx = g.sub(&h.broadcast_mul(&along)?)?;
    if law == Law::Layer {
        dx = dx.broadcast_sub(&g.mean_keepdim(D::Minus1)?)?;
    }
    Ok([
        dx.broadcast_mul(&inverse)?.to_dtype(x.dtype())?,
        column_sums(&grad.mul(&h)?)?.to_dtype(weight.dtype())?,
        column_sums(&grad)?.to_dtype(bias.dtype())?,
    ])
}

/// Of attention without a bias: the gradients of q, k and v. Block by block: a block's probabilities are held whole.
pub(super) fn attend(
    plan: &AttendPlan,
    scale: f32,
    [q, k, v]: [&Tensor; 3],
    grad: &Tensor,
) -> candle_core::Result<[Tensor; 3]> {
    let [wide_q, wide_k, wide_v, grad] = wide([q, k, v, grad])?;
    let mut own = Scattered::default();
    let (mut keys, mut values) = (Scattered::default(), Scattered::default());
    for block in plan.blocks.iter().filter(|block| !block.rows.is_empty()) {
        let slots: Vec<u32> =
            (block.keys.iter()).flat_map(|s| s.start as u32..(s.start + s.len) as u32).collect();
        if slots.is_empty() {
            continue;
        }
        let [dq, dk, dv] = block_grads(block, &slots, scale, [&wide_q, &wide_k, &wide_v], &grad)?;
        own.add(block.rows.start as u32..block.rows.end as u32, dq);
        keys.add(slots.iter().copied(), dk);
        values.add(slots.iter().copied(), dv);
    }
    Ok([own.onto(q)?, keys.onto(k)?, values.onto(v)?])
}

/// Rows, and where each is added.
#[derive(Default)]
struct Scattered {
    places: Vec<u32>,
    rows: Vec<Tensor>,
}

impl Scattered {
    fn add(&mut self, places: impl Iterator<Item = u32>, rows: Tensor) {
        self.places.extend(places);
        self.rows.push(rows);
    }

    /// The sums, shaped and typed like `like`.
    fn onto(self, like: &Tensor) -> candle_core::Result<Tensor> {
        let zeros = Tensor::zeros(like.shape(), DType::F32, like.device())?;
        if self.rows.is_empty() {
            return zeros.to_dtype(like.dtype());
        }
        let places = Tensor::new(self.places, like.device())?;
        let rows = Tensor::cat(&self.rows, 0)?.contiguous()?;
        zeros.index_add(&places, &rows, 0)?.to_dtype(like.dtype())
    }
}

/// Of one block: `[n, Hq, D]`, and `[K, Hkv, D]` for the keys at `slots`.
fn block_grads(
    block: &Block,
    slots: &[u32],
    scale: f32,
    [q, k, v]: [&Tensor; 3],
    grad: &Tensor,
) -> candle_core::Result<[Tensor; 3]> {
    let (n, count) = (block.rows.len(), slots.len());
    let (q_heads, kv_heads, dim) = (q.dim(1)?, k.dim(1)?, q.dim(2)?);
    let group = q_heads / kv_heads;
    let device = q.device();
    let index = Tensor::new(slots, device)?;
    // [Hkv, K, D], and [Hkv, group n, D].
    let keys = |t: &Tensor| t.index_select(&index, 0)?.transpose(0, 1)?.contiguous();
    let lines = |t: &Tensor| {
        let rows = t.narrow(0, block.rows.start, n)?.reshape((n, kv_heads, group, dim))?;
        rows.permute((1, 2, 0, 3))?.reshape((kv_heads, group * n, dim))?.contiguous()
    };
    let (k, v, q, grad) = (keys(k)?, keys(v)?, lines(q)?, lines(grad)?);
    let scale = f64::from(scale);
    let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? * scale)?;
    let seen = visible(block, n, count, device)?;
    // [Hkv, group, n, K] for the mask, which lines of all heads share.
    let by_row = scores.reshape((kv_heads, group, n, count))?;
    let by_row = by_row.broadcast_add(&seen.affine(1e30, -1e30)?)?;
    let weights =
        by_row.broadcast_sub(&by_row.max_keepdim(D::Minus1)?)?.exp()?.broadcast_mul(&seen)?;
    // A row that sees nothing has no weights: 0 / 1.
    let sums = weights.sum_keepdim(D::Minus1)?;
    let sums = (&sums + sums.eq(0.0)?.to_dtype(DType::F32)?)?;
    let p = weights.broadcast_div(&sums)?.reshape((kv_heads, group * n, count))?;
    let dv = p.transpose(1, 2)?.contiguous()?.matmul(&grad)?;
    let dp = grad.matmul(&v.transpose(1, 2)?.contiguous()?)?;
    let mean = p.mul(&dp)?.sum_keepdim(D::Minus1)?;
    let ds = (p.mul(&dp.broadcast_sub(&mean)?)? * scale)?;
    let dq = ds.matmul(&k)?.reshape((kv_heads, group, n, dim))?;
    let dk = ds.transpose(1, 2)?.contiguous()?.matmul(&q)?;
    Ok([
        dq.permute((2, 0, 1, 3))?.reshape((n, q_heads, dim))?,
        dk.transpose(0, 1)?.contiguous()?,
        dv.transpose(0, 1)?.contiguous()?,
    ])
}

/// 1 where row t sees key j, `[n, K]`.
fn visible(block: &Block, n: usize, count: usize, device: &Device) -> candle_core::Result<Tensor> {
    if n == 0 || count == 0 {
        bail!("attend: a block of {n} rows and {count} keys")
    }
    let sees = |t: usize, j: usize| !block.causal || j + n < count + t + 1;
    let seen: Vec<f32> =
        (0..n).flat_map(|t| (0..count).map(move |j| f32::from(u8::from(sees(t, j))))).collect();
    Tensor::from_vec(seen, (n, count), device)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::attend::Segment;

    fn random(dims: &[usize]) -> Tensor {
        Tensor::randn(0f32, 1.0, dims, &Device::Cpu).unwrap()
    }

    #[track_caller]
    fn close(seen: &Tensor, expected: &Tensor, what: &str) {
        assert_eq!(seen.dims(), expected.dims(), "{what}");
        let off = (seen - expected).unwrap().abs().unwrap().flatten_all().unwrap();
        let off: f32 = off.max(0).unwrap().to_scalar().unwrap();
        assert!(off < 2e-5, "{what}: {off}");
    }

    /// The gradients of the sum of `y * grad` by the CPU's own passes.
    fn own(y: &Tensor, grad: &Tensor, vars: &[&Var]) -> Vec<Tensor> {
        let grads = (y * grad).unwrap().sum_all().unwrap().backward().unwrap();
        vars.iter().map(|var| grads.get(var).unwrap().clone()).collect()
    }

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

    #[test]
    fn norms() {
        let grad = random(&[6, 11]);
        let [x, weight, bias] =
            [&[6, 11][..], &[11], &[11]].map(|dims| Var::from_tensor(&random(dims)).unwrap());
        let y = crate::ops::norm::layer_norm(&x, None, &weight, Some(&bias), 1e-5).unwrap();
        let expected = own(&y, &grad, &[&x, &weight, &bias]);
        let seen = norm(Law::Layer, 1e-5, [&x, &weight, &bias], &grad).unwrap();
        for (seen, expected) in seen.iter().zip(&expected) {
            close(seen, expected, "layer norm");
        }
        let y = crate::ops::norm::rms_norm(&x, None, &weight, 1e-6).unwrap();
        let expected = own(&y, &grad, &[&x, &weight]);
        let seen = norm(Law::Rms, 1e-6, [&x, &weight, &bias], &grad).unwrap();
        for (seen, expected) in seen.iter().zip(&expected) {
            close(seen, expected, "RMS norm");
        }
    }

    /// A prefill, forks of it, a row that sees nothing, a row in no block; grouped heads.
    #[test]
    fn attention() {
        let segment = |start, len| Segment { start, len };
        let plan = AttendPlan {
            blocks: vec![
                Block { rows: 0..5, keys: vec![segment(0, 5)], causal: true },
                Block { rows: 5..7, keys: vec![segment(0, 3), segment(5, 2)], causal: true },
                Block { rows: 7..8, keys: vec![segment(1, 4)], causal: false },
                Block { rows: 8..10, keys: vec![segment(6, 1)], causal: true },
                Block { rows: 10..11, keys: vec![], causal: false },
            ],
        };
        let grad = random(&[12, 6, 4]);
        let [q, k, v] = [[12, 6, 4], [8, 2, 4], [8, 2, 4]]
            .map(|dims| Var::from_tensor(&random(&dims)).unwrap());
        let y = crate::ops::attend::attend(&q, &k, &v, &plan, 0.7, None).unwrap();
        let expected = own(&y, &grad, &[&q, &k, &v]);
        let seen = attend(&plan, 0.7, [&q, &k, &v], &grad).unwrap();
        for ((seen, expected), what) in seen.iter().zip(&expected).zip(["q", "k", "v"]) {
            close(seen, expected, what);
        }
    }
}
