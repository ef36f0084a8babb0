//! The same generated cases through the Rust CPU paths and the shim-run kernels. Each function returns what it compared,
//! or the first difference.

mod cosine;
mod mask;
mod pool;
mod token;

use bdhs::ops::philox::Draws;
use bytemuck::Pod;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use crate::numbers::Random;

pub use cosine::{cosine_rows, decisions};
pub use mask::mask;
pub use pool::pool;
pub use token::token;

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const U: f64 = 1.0 / 16_777_216.0;

/// A file of cases; see `driver.hpp`.
#[derive(Default)]
struct Cases(Vec<u8>);

impl Cases {
    fn value(&mut self, value: u64) {
        self.0.extend(value.to_ne_bytes());
    }
    fn values<const N: usize>(&mut self, values: [u64; N]) {
        values.into_iter().for_each(|value| self.value(value));
    }
    fn float(&mut self, value: f64) {
        self.0.extend(value.to_ne_bytes());
    }
    /// The start of an array of `count` records, which follow as `words`.
    fn count(&mut self, count: usize) {
        self.value(count as u64);
    }
    fn words(&mut self, words: &[u32]) {
        self.0.extend_from_slice(bytemuck::cast_slice(words));
    }
    fn array<T: Pod>(&mut self, values: &[T]) {
        self.count(values.len());
        self.0.extend_from_slice(bytemuck::cast_slice(values));
    }
    fn tensor(&mut self, tensor: &Tensor) {
        let flat = tensor.flatten_all().unwrap();
        match tensor.dtype() {
            DType::F32 => self.array(&flat.to_vec1::<f32>().unwrap()),
            DType::F16 => self.array(&flat.to_vec1::<f16>().unwrap()),
            _ => self.array(&flat.to_vec1::<bf16>().unwrap()),
        }
    }
}

/// The arrays of a file of results, one after another.
struct Results {
    bytes: Vec<u8>,
    at: usize,
}

impl Results {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }
    fn array<T: Pod>(&mut self) -> Vec<T> {
        let count = u64::from_ne_bytes(self.bytes[self.at..self.at + 8].try_into().unwrap());
        let start = self.at + 8;
        self.at = start + count as usize * size_of::<T>();
        self.bytes[start..self.at]
            .chunks_exact(size_of::<T>())
            .map(bytemuck::pod_read_unaligned)
            .collect()
    }
}

fn below(random: &mut Random, n: usize) -> usize {
    (random.word() % n as u64) as usize
}

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[below(random, from.len())]
}

/// Uniform in (0, 1).
fn unit(random: &mut Random) -> f64 {
    f64::from(random.signed()) / 2.0 + 0.5
}

fn tensor(values: Vec<f32>, dims: &[usize], dtype: DType) -> Tensor {
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn wide(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn code(dtype: DType) -> u64 {
    FLOATS.iter().position(|&d| d == dtype).unwrap() as u64
}

fn draws(random: &mut Random) -> Draws {
    let attempt = below(random, 6) as u32;
    Draws { seed: random.word(), sample: random.word() as u32, attempt }
}
