//! What the machine gives at most.
//!
//! A product's rate on a CPU is that of candle's or of [`Dense`]'s, whichever is higher: candle has no dot products of bf16, which
//! [`Dense`] takes where the CPU has them, so that its rate there is half of what the networks reach. What [`Dense`] itself leaves
//! unused is not seen then.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::Serialize;

use super::Clock;
use crate::Result;
use crate::ops::dense::Dense;

/// Sides of the products: enough for their full rate, which a GPU reaches later.
const SIDE: usize = 2048;
const SIDE_ON_GPU: usize = 8192;
/// Values that are read: 256 MB, more than the caches hold.
const VALUES: usize = 64 << 20;

/// Rates of this run.
#[derive(Clone, Debug, Serialize)]
pub struct Ceilings {
    /// Operations a second of a product in f32, the faster of candle's and ours.
    pub product_f32: f64,
    /// The same in the networks' own type, where that is not f32.
    pub product_own: Option<f64>,
    /// The networks' own type.
    pub own: &'static str,
    /// Bytes a second that all threads read together; not measured on a GPU.
    pub read: Option<f64>,
}

impl Ceilings {
    pub(super) fn measure(clock: &Clock, dtype: DType) -> Result<Self> {
        let own = (dtype != DType::F32).then(|| product(clock, dtype)).transpose()?;
        let read = if clock.device.is_cpu() { Some(read(clock)?) } else { None };
        let product_f32 = product(clock, DType::F32)?;
        Ok(Self { product_f32, product_own: own, own: dtype.as_str(), read })
    }

    /// What so many operations and bytes take at least, over the time that they took.
    pub(super) fn share(&self, operations: f64, bytes: f64, seconds: f64) -> f64 {
        let computed = operations / self.product_own.unwrap_or(self.product_f32);
        let read = self.read.map_or(0.0, |rate| bytes / rate);
        computed.max(read) / seconds
    }

    /// What, rate and unit, for a table.
    pub(super) fn rows(&self) -> Vec<(String, f64, &'static str)> {
        let mut rows = vec![("product, f32".to_owned(), self.product_f32 / 1e9, "GFLOP")];
        if let Some(own) = self.product_own {
            rows.push((format!("product, {}", self.own), own / 1e9, "GFLOP"));
        }
        rows.extend(self.read.map(|read| ("reading memory".to_owned(), read / 1e9, "GB")));
        rows
    }
}

fn product(clock: &Clock, dtype: DType) -> Result<f64> {
    let side = if clock.device.is_cpu() { SIDE } else { SIDE_ON_GPU };
    let matrix = || Tensor::randn(0f32, 1.0, (side, side), clock.device)?.to_dtype(dtype);
    let (a, b) = (matrix()?, matrix()?);
    let mut seconds = clock.time(|| {
        a.matmul(&b)?;
        Ok(())
    })?;
    if clock.device.is_cpu() && Dense::available() {
        let dense = Dense::new(&b)?;
        let ours = clock.time(|| {
            dense.product(&a, None)?;
            Ok(())
        })?;
        seconds = seconds.min(ours);
    }
    Ok(2.0 * (side as f64).powi(3) / seconds)
}

fn read(clock: &Clock) -> Result<f64> {
    let values = vec![1f32; VALUES];
    let part = |values: &[f32]| {
        let mut lanes = [0f32; 64];
        for step in values.chunks_exact(64) {
            lanes.iter_mut().zip(step).for_each(|(lane, x)| *lane += x);
        }
        lanes.iter().sum::<f32>()
    };
    let reading = Clock { device: &Device::Cpu, ..*clock };
    let seconds = reading.time(|| {
        std::hint::black_box(values.par_chunks(1 << 20).map(part).sum::<f32>());
        Ok(())
    })?;
    Ok((4 * VALUES) as f64 / seconds)
}
