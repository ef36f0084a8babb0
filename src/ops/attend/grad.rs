//! The backward pass of [`attend`](super::attend) on the CPU: probabilities are computed again, tile by tile.
//!
//! With P the softmax of a tile and G the gradient of its output: dV = P^T G, dS = P * (G V^T - rowsum(P * G V^T)),
//! dQ = scale dS K, dK = scale dS^T Q. One task a key head, blocks in order, so sums have a fixed order.

use super::Attend;
use super::cpu::{Heads, Operands, Scratch, Tile, Work, bias_values, segment_as_f32, tiles_of};
use crate::ops::host::{Matrix, gemm};
use crate::ops::simd;
use candle_core::{DType, Device, Storage, Tensor, bail};
use rayon::prelude::*;

/// Gradients of q, k and v, each like its tensor.
pub(super) fn backward(
    op: &Attend,
    [q, k, v]: [&Tensor; 3],
    grad: &Tensor,
) -> candle_core::Result<[Tensor; 3]> {
    let dtype = q.dtype();
    let [q, k, v, grad] = [q, k, v, grad].map(|t| t.to_dtype(DType::F32)?.contiguous());
    let (q, k, v, grad) = (q?, k?, v?, grad?);
    let guards = [&q, &k, &v, &grad].map(Tensor::storage_and_layout);
    let mut heads = Vec::with_capacity(4);
    for (storage, layout) in &guards {
        let Storage::Cpu(storage) = &**storage else {
            bail!("attend: the backward pass is on the CPU only")
        };
        heads.push(Heads::<f32>::new(storage, layout)?);
    }
    let [q_heads, k_heads, v_heads, grad_heads] = match <[_; 4]>::try_from(heads) {
        Ok(heads) => heads,
        Err(_) => bail!("attend: four operands"),
    };
    let (rows, dim) = (q.dim(0)?, q.dim(2)?);
    let (slots, kv_heads) = (k.dim(0)?, k.dim(1)?);
    let group = q.dim(1)? / kv_heads;
    let table = match &op.bias {
        Some(bias) => Some((bias_values(&bias.table)?, bias.max)),
        None => None,
    };
    let operands = Operands { q: q_heads, k: k_heads, v: v_heads };
    let upstream = Operands { q: grad_heads, ..operands };
    let work = Work { operands: &operands, scale: op.scale, table: table.as_ref(), group };
    let upstream = Work { operands: &upstream, ..work };

    // Head by head, so that each task owns what it adds to.
    let mut dq = vec![0f32; kv_heads * group * rows * dim];
    let [mut dk, mut dv] = [(); 2].map(|()| vec![0f32; kv_heads * slots * dim]);
    let per_head = dq
        .par_chunks_mut((group * rows * dim).max(1))
        .zip(dk.par_chunks_mut((slots * dim).max(1)))
        .zip(dv.par_chunks_mut((slots * dim).max(1)));
    per_head.enumerate().for_each(|(head, ((dq, dk), dv))| {
        let mut into = Into { dq, dk, dv, rows, dim };
        let mut buffers = Buffers::default();
        for tile in op.plan.blocks.iter().flat_map(tiles_of).filter(|tile| tile.keys() > 0) {
            into.tile(&work, &upstream, &tile, head, &mut buffers);
        }
    });
    let back = |values: Vec<f32>, (heads, rows): (usize, usize)| {
        Tensor::from_vec(values, (heads, rows, dim), &Device::Cpu)?
            .transpose(0, 1)?
            .contiguous()?
            .to_dtype(dtype)
    };
    Ok([
        back(dq, (kv_heads * group, rows))?,
        back(dk, (kv_heads, slots))?,
        back(dv, (kv_heads, slots))?,
    ])
}

#[derive(Default)]
struct Buffers {
    scratch: Scratch,
    kv: Vec<f32>,
    grad: Vec<f32>,
    scores: Vec<f32>,
    lines: Vec<f32>,
}

/// The gradients of one key head: dq `[group, R, D]`, dk and dv `[S, D]`.
struct Into<'a> {
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    rows: usize,
    dim: usize,
}

impl Into<'_> {
    fn tile(
        &mut self,
        work: &Work<f32>,
        upstream: &Work<f32>,
        tile: &Tile,
        head: usize,
        b: &mut Buffers,
    ) {
        let (dim, keys) = (self.dim, tile.keys());
        let lines = work.group * tile.rows();
        work.probabilities(tile, head, false, &mut b.scratch);
        b.grad.resize(lines * dim, 0.0);
        upstream.load_queries(tile, head, &mut b.grad);
        b.scores.resize(lines * keys, 0.0);
        let grad = Matrix { values: &b.grad, strides: (dim, 1) };
        work.for_segments(tile, keys, |s, at| {
            let (v, pitch) = segment_as_f32(&work.operands.v, s, head, &mut b.kv);
            let v = Matrix { values: v, strides: (1, pitch) };
            gemm((lines, s.len, dim), (&mut b.scores[at..], keys), grad, v, 1.0, false);
        });
        let p = &b.scratch.scores;
        for (ds, p) in b.scores.chunks_mut(keys).zip(p.chunks(keys)) {
            let mean = simd::dot(ds, p);
            ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - mean));
        }
        b.lines.clear();
        b.lines.resize(lines * dim, 0.0);
        let q = Matrix { values: &b.scratch.q, strides: (dim, 1) };
        work.for_segments(tile, keys, |s, at| {
            let (k, pitch) = segment_as_f32(&work.operands.k, s, head, &mut b.kv);
            let k = Matrix { values: k, strides: (pitch, 1) };
            let ds = Matrix { values: &b.scores[at..], strides: (keys, 1) };
            gemm((lines, dim, s.len), (&mut b.lines, dim), ds, k, work.scale, true);
            let own = s.start * dim..(s.start + s.len) * dim;
            let ds = Matrix { values: &b.scores[at..], strides: (1, keys) };
            gemm((s.len, dim, lines), (&mut self.dk[own.clone()], dim), ds, q, work.scale, true);
            let p = Matrix { values: &p[at..], strides: (1, keys) };
            gemm((s.len, dim, lines), (&mut self.dv[own], dim), p, grad, 1.0, true);
        });
        for (line, values) in b.lines.chunks(dim).enumerate() {
            let (g, t) = (line / tile.rows(), line % tile.rows());
            let row = g * self.rows + tile.block.rows.start + tile.start + t;
            self.dq[row * dim..(row + 1) * dim].copy_from_slice(values);
        }
    }
}
