//! What is left of a base's weight where an adapter was begun from a part of it: PiSSA (arXiv
//! 2404.02948) and OLoRA (arXiv 2406.01775). PEFT takes that part off the base whenever it loads such
//! an adapter, so its A and B are no change of the base as it is stored.

use candle_core::{D, DType, Device, Tensor};

use crate::{Error, Result};

/// Which part of the weight an adapter began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// None: B A was zero, or is counted as a change.
    Nothing,
    /// The r largest singular values and their vectors.
    Pissa,
    /// The first r columns of Q times the first r rows of R.
    Olora,
}

impl Start {
    /// The weight `[out, in]` without the part; `scale` is alpha / r.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the part is not determined by the weight; those of tensor operations.
    pub fn rest(self, weight: &Tensor, rank: usize, scale: f64) -> Result<Tensor> {
        let part = match self {
            Self::Nothing => return Ok(weight.clone()),
            Self::Pissa => largest(&weight.to_dtype(DType::F64)?, rank)?,
            Self::Olora => (first_columns(&weight.to_dtype(DType::F64)?, rank)? * scale)?,
        };
        let rest = (weight.to_dtype(DType::F64)? - part)?;
        Ok(rest.to_dtype(weight.dtype())?)
    }
}

/// Most rounds of the iteration: singular values that lie closer than this can tell are refused.
const ROUNDS: usize = 1000;

/// The best approximation of `w` of this rank, in f64, by subspace iteration: vectors of a space
/// somewhat larger than asked for are multiplied by `w^T w` until the space stays.
fn largest(w: &Tensor, rank: usize) -> Result<Tensor> {
    let (rows, columns) = w.dims2()?;
    let size = (2 * rank + 16).min(rows.min(columns));
    let rank = rank.min(size);
    let mut space = orthonormal(&w.t()?.contiguous()?.matmul(&start(rows, size)?)?)?;
    let mut before: Option<Tensor> = None;
    let norm = w.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt().max(f64::MIN_POSITIVE);
    for _ in 0..ROUNDS {
        let image = w.matmul(&space)?;
        let right = space.matmul(&eigenvectors(&image.t()?.matmul(&image)?, rank)?)?;
        let part = w.matmul(&right)?.matmul(&right.t()?.contiguous()?)?;
        if let Some(before) = before {
            let moved = (&part - before)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt();
            if moved <= 1e-9 * norm {
                return Ok(part);
            }
        }
        before = Some(part);
        space = orthonormal(&w.t()?.contiguous()?.matmul(&image)?)?;
    }
    Err(Error::unsupported(
        "an adapter of PiSSA",
        format!(
            "singular values number {rank} and {} of a weight are too close to tell apart: convert it to a plain LoRA with PEFT \
             (save_pretrained with path_initial_model_for_weight_conversion)",
            rank + 1
        ),
    ))
}

/// `[rows, size]` of fixed values without structure.
fn start(rows: usize, size: usize) -> Result<Tensor> {
    let mut state = 1u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    let values: Vec<f64> = (0..rows * size).map(|_| next()).collect();
    Ok(Tensor::from_vec(values, (rows, size), &Device::Cpu)?)
}

/// Columns of length 1 at right angles that span the same space; a column that adds nothing is zero.
fn orthonormal(x: &Tensor) -> Result<Tensor> {
    let (rows, size) = x.dims2()?;
    let mut columns: Vec<Vec<f64>> = x.t()?.contiguous()?.to_vec2()?;
    for i in 0..size {
        let (done, rest) = columns.split_at_mut(i);
        let column = &mut rest[0];
        let before = dot(column, column).sqrt();
        // Twice, since once leaves what rounding left.
        for _ in 0..2 {
            for other in done.iter() {
                let along = dot(column, other);
                column.iter_mut().zip(other).for_each(|(c, o)| *c -= along * o);
            }
        }
        let length = dot(column, column).sqrt();
        let factor = if length > 1e-12 * before && length > 0.0 { 1.0 / length } else { 0.0 };
        column.iter_mut().for_each(|c| *c *= factor);
    }
    Ok(Tensor::from_vec(columns.concat(), (size, rows), &Device::Cpu)?.t()?.contiguous()?)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Eigenvectors `[n, count]` of the largest eigenvalues of a symmetric matrix, by Jacobi's rotations.
fn eigenvectors(matrix: &Tensor, count: usize) -> Result<Tensor> {
    let mut a: Vec<Vec<f64>> = matrix.to_vec2()?;
    let n = a.len();
    let mut v: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..60 {
        let off: f64 =
            (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j] * a[i][j]).sum();
        let all: f64 = (0..n).map(|i| a[i][i] * a[i][i]).sum();
        if off <= 1e-30 * all {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                let turn =
                    |x: &mut [f64]| (x[p], x[q]) = (c * x[p] - s * x[q], s * x[p] + c * x[q]);
                a.iter_mut().for_each(|row| turn(row));
                let (before, from) = a.split_at_mut(q);
                for (at_p, at_q) in before[p].iter_mut().zip(&mut from[0]) {
                    (*at_p, *at_q) = (c * *at_p - s * *at_q, s * *at_p + c * *at_q);
                }
                v.iter_mut().for_each(|row| turn(row));
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j][j].total_cmp(&a[i][i]));
    let chosen = order[..count.min(n)].iter();
    let columns: Vec<f64> = chosen.flat_map(|&k| v.iter().map(move |row| row[k])).collect();
    Ok(Tensor::from_vec(columns, (count.min(n), n), &Device::Cpu)?.t()?.contiguous()?)
}

/// The part of `w` that lies in the space of its first columns: what the first columns of Q and rows
/// of R of its QR decomposition multiply to, whatever their signs.
fn first_columns(w: &Tensor, rank: usize) -> Result<Tensor> {
    let q = orthonormal(&w.narrow(D::Minus1, 0, rank.min(w.dim(1)?))?.contiguous()?)?;
    let zero = q.sqr()?.sum(0)?.min_all()?.to_scalar::<f64>()? == 0.0;
    if zero || rank > w.dim(0)?.min(w.dim(1)?) {
        return Err(Error::unsupported(
            "an adapter of OLoRA",
            format!(
                "the first {rank} columns of a weight depend on each other: convert it to a plain LoRA with PEFT \
                 (save_pretrained with path_initial_model_for_weight_conversion)"
            ),
        ));
    }
    Ok(q.matmul(&q.t()?.contiguous()?.matmul(w)?)?)
}

#[cfg(test)]
mod tests {
    use super::{Start, largest};
    use candle_core::{DType, Device, Tensor};

    /// Against a weight that is put together from known singular vectors.
    #[test]
    fn the_largest_part_of_a_known_weight() {
        for (rows, columns) in [(9, 5), (5, 9), (70, 120)] {
            let left = super::orthonormal(&super::start(rows, 5).unwrap()).unwrap();
            let right = super::orthonormal(&super::start(columns, 5).unwrap()).unwrap();
            let part = |values: [f64; 5]| {
                let values = Tensor::new(&values, &Device::Cpu).unwrap();
                let scaled = left.broadcast_mul(&values).unwrap();
                scaled.matmul(&right.t().unwrap().contiguous().unwrap()).unwrap()
            };
            let found = largest(&part([3.0, 1.0, 7.0, 0.5, 6.0]), 3).unwrap();
            let difference = (found - part([3.0, 0.0, 7.0, 0.0, 6.0])).unwrap();
            let worst = difference.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(worst < 1e-8, "{worst}");
        }
    }

    #[test]
    fn what_is_left_has_no_part_of_the_first_columns() {
        let w = super::start(6, 4).unwrap().to_dtype(DType::F32).unwrap();
        let rest = Start::Olora.rest(&w, 2, 1.0).unwrap();
        let columns = rest.narrow(1, 0, 2).unwrap().abs().unwrap();
        assert!(columns.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-6);
        // Linearly dependent columns leave the part open.
        let twice = Tensor::cat(&[w.narrow(1, 0, 1).unwrap(), w.narrow(1, 0, 1).unwrap()], 1);
        assert!(Start::Olora.rest(&twice.unwrap(), 2, 1.0).is_err());
    }
}
