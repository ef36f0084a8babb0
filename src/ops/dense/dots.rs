//! Products of bf16 by the CPU's dot products of pairs (`avx512_bf16`): some rows by 64 outputs, nothing is widened.
//!
//! ```text
//! panel [in / 2][64][2]    the weights of inputs 2p and 2p + 1 side by side, for each output; an odd number of inputs ends with a zero
//! x     [rows][in / 2][2]  a pair is 32 bits, sent to all lanes
//! ```
//!
//! Each result is one chain in the order of the pairs, [`DEPTH`] terms at a time, for any number of rows. Of a pair the instruction
//! adds the second product first; each addition rounds once (a product of two bf16 is exact in f32). It takes subnormal operands
//! for zero and gives zero for subnormal results: an error of 2^-126 an addition, and of 2^-126 |w| or 2^-126 |x| a product.

use super::{DEPTH, PANEL};
use crate::ops::host::Stored;

#[cfg(target_arch = "x86_64")]
use super::REGISTER_ROWS as ROWS;
#[cfg(target_arch = "x86_64")]
use half::bf16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Terms that an instruction takes at once.
pub(super) const PAIR: usize = 2;

// No pair is divided between two sums.
const _: () = assert!(DEPTH.is_multiple_of(PAIR));

/// Whether the CPU has the instruction.
pub(super) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// `y [rows, PANEL] = x [rows, inputs] panel`, where inputs are even.
///
/// # Panics
/// If T is not bf16, lengths do not fit, or the CPU lacks the instruction.
pub(super) fn run<T: Stored>(x: &[T], inputs: usize, panel: &[T], y: &mut [f32]) {
    let rows = y.len() / PANEL;
    assert!(y.len() == rows * PANEL && x.len() == rows * inputs);
    assert!(panel.len() == inputs * PANEL && inputs.is_multiple_of(PAIR));
    match (T::as_bf16(x), T::as_bf16(panel)) {
        // SAFETY: the instruction is there, and the lengths were checked.
        #[cfg(target_arch = "x86_64")]
        (Some(x), Some(panel)) if available() => unsafe { all_rows(x, inputs, panel, y) },
        _ => panic!("no dot products of bf16"),
    }
}

/// A kernel for a fixed number of rows: x, distance of its rows, weights, pairs, y, whether to add to it.
#[cfg(target_arch = "x86_64")]
type Block = unsafe fn(*const bf16, usize, *const bf16, usize, *mut f32, bool);

/// # Safety
/// As the assertions of [`run`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn all_rows(x: &[bf16], inputs: usize, panel: &[bf16], y: &mut [f32]) {
    const KERNELS: [Block; ROWS] = [dots1, dots2, dots3, dots4, dots5, dots6];
    for depth in (0..inputs).step_by(DEPTH) {
        let pairs = DEPTH.min(inputs - depth) / PAIR;
        for (row, y) in y.chunks_mut(ROWS * PANEL).enumerate() {
            let kernel = KERNELS[y.len() / PANEL - 1];
            let x = &x[row * ROWS * inputs + depth..];
            // SAFETY: rows of x and y and pairs of the panel, all within their slices.
            unsafe {
                let panel = panel.as_ptr().add(depth * PANEL);
                kernel(x.as_ptr(), inputs, panel, pairs, y.as_mut_ptr(), depth > 0);
            }
        }
    }
}

/// `y[r][..] = sum over k of x[r * pitch + k] * weights[k][..]`, added to y if `add`. Written out, so that the sums stay in registers
/// in a build without optimisation as well.
#[cfg(target_arch = "x86_64")]
macro_rules! kernels {
    ($($name:ident, $n:literal, [$($row:literal)+];)+) => {$(
        /// # Safety
        /// `$n` rows of x, `pairs` rows of weights and `$n` rows of y are within their slices; the CPU has the features.
        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn $name(
            x: *const bf16,
            pitch: usize,
            weights: *const bf16,
            pairs: usize,
            y: *mut f32,
            add: bool,
        ) {
            let mut sums = [[_mm512_setzero_ps(); 4]; $n];
            for k in 0..pairs {
                // SAFETY: the caller's; loads need no alignment.
                unsafe {
                    let at = weights.add(k * PAIR * PANEL);
                    let w = [load(at), load(at.add(32)), load(at.add(64)), load(at.add(96))];
                    $(
                        let value = pair(x.add($row * pitch + k * PAIR));
                        sums[$row][0] = _mm512_dpbf16_ps(sums[$row][0], value, w[0]);
                        sums[$row][1] = _mm512_dpbf16_ps(sums[$row][1], value, w[1]);
                        sums[$row][2] = _mm512_dpbf16_ps(sums[$row][2], value, w[2]);
                        sums[$row][3] = _mm512_dpbf16_ps(sums[$row][3], value, w[3]);
                    )+
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (c, &sum) in sums.iter().enumerate() {
                    // SAFETY: the caller's.
                    unsafe {
                        let to = y.add(r * PANEL + c * 16);
                        let sum = if add { _mm512_add_ps(_mm512_loadu_ps(to), sum) } else { sum };
                        _mm512_storeu_ps(to, sum);
                    }
                }
            }
        }
    )+};
}

/// # Safety
/// 32 values are readable at `from`; the CPU has the features.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn load(from: *const bf16) -> __m512bh {
    // SAFETY: the caller's; both types are 512 bits of anything.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
}

/// # Safety
/// Two values are readable at `from`; the CPU has the features.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pair(from: *const bf16) -> __m512bh {
    // SAFETY: as in `load`.
    unsafe {
        let pair = from.cast::<i32>().read_unaligned();
        std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair))
    }
}

#[cfg(target_arch = "x86_64")]
kernels! {
    dots1, 1, [0]; dots2, 2, [0 1]; dots3, 3, [0 1 2]; dots4, 4, [0 1 2 3]; dots5, 5, [0 1 2 3 4];
    dots6, 6, [0 1 2 3 4 5];
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn values(count: usize, salt: usize) -> Vec<bf16> {
        let value = |i: usize| ((i * 7919 + salt) * 104_729 % 20_011) as f32 / 10_000.0 - 1.0;
        (0..count).map(|i| bf16::from_f32(value(i))).collect()
    }

    /// Nothing to test where the CPU has no such instruction; said, so that it is not taken for a pass.
    fn missing() -> bool {
        if !available() {
            eprintln!("this CPU has no dot products of bf16: nothing is tested");
        }
        !available()
    }

    /// Within the bound of a chain with one rounding a term, whose parts are added in order; and each row alone has its bits.
    #[test]
    fn sums_are_within_their_bound_of_float64() {
        if missing() {
            return;
        }
        for (rows, inputs) in (1..=20).flat_map(|rows| [2, 64, 514, 1538].map(|n| (rows, n))) {
            let (x, panel) = (values(rows * inputs, rows), values(inputs * PANEL, 77));
            let mut y = vec![f32::NAN; rows * PANEL];
            run(&x, inputs, &panel, &mut y);
            let roundings = (DEPTH.min(inputs) + inputs.div_ceil(DEPTH)) as f64;
            let relative = roundings / (2f64.powi(24) - roundings);
            for (row, (x, y)) in x.chunks(inputs).zip(y.chunks(PANEL)).enumerate() {
                for (o, y) in y.iter().enumerate() {
                    let weight = |k: usize| panel[(k / PAIR * PANEL + o) * PAIR + k % PAIR];
                    let terms = x.iter().enumerate().map(|(k, x)| x.to_f64() * weight(k).to_f64());
                    let size: f64 = terms.clone().map(f64::abs).sum();
                    let error = (f64::from(*y) - terms.sum::<f64>()).abs();
                    assert!(error <= relative * size, "{rows} {inputs}: {row} {o}: {error}");
                }
                let mut alone = vec![f32::NAN; PANEL];
                run(x, inputs, &panel, &mut alone);
                assert_eq!(alone, y, "{rows} {inputs}: {row}");
            }
        }
    }

    /// What the formula gives: infinity times zero is NaN, too large is infinity; subnormals alone are taken for zero.
    #[test]
    fn special_values() {
        if missing() {
            return;
        }
        let product = |x: [f32; 2], w: [f32; 2]| {
            let panel: Vec<bf16> =
                w.map(bf16::from_f32).into_iter().cycle().take(2 * PANEL).collect();
            let mut y = vec![0f32; PANEL];
            run(&x.map(bf16::from_f32), PAIR, &panel, &mut y);
            assert!(y.iter().all(|value| value.to_bits() == y[0].to_bits()));
            y[0]
        };
        assert!(product([f32::NAN, 1.0], [1.0, 1.0]).is_nan());
        assert!(product([f32::INFINITY, 1.0], [0.0, 1.0]).is_nan());
        assert!(product([f32::INFINITY, f32::INFINITY], [1.0, -1.0]).is_nan());
        assert_eq!(product([f32::INFINITY, 1.0], [-2.0, 1.0]), f32::NEG_INFINITY);
        assert_eq!(product([3e38, 0.0], [3e38, 0.0]), f32::INFINITY);
        assert_eq!(product([1e-39, 0.0], [1e30, 0.0]), 0.0);
        assert_eq!(product([1e-30, 2.0], [1e-30, 3.0]), 6.0);
    }
}
