//! The backward pass made of candle's ops, in f32, for tensors that do not live on the CPU: a GPU trains by it. The pass on the CPU
//! is what it is tested against.

use candle_core::{D, DType, Device, Tensor, bail};

use super::{AttendPlan, Block};
use crate::ops::grads::wide;

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
    use crate::ops::grads::tests::{close, own, random};

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
