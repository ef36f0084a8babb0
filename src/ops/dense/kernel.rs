//! Which kernels there are, and the inner loops of those in f32: some rows by 64 outputs. Each result is one chain of fused products
//! in the order of the inputs, 512 at a time, so both give the same bits, for any number of rows.

use candle_core::DType;

#[cfg(target_arch = "x86_64")]
use super::REGISTER_ROWS as ROWS;
use super::{DEPTH, PANEL, dots};
use crate::ops::simd::Element;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A kernel for a fixed number of rows: x, distance of its rows, weights, terms, y, whether to add to it.
#[cfg(target_arch = "x86_64")]
type Block<T> = unsafe fn(*const f32, usize, *const T, usize, *mut f32, bool);

/// What the CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Of bf16 alone: 6 rows by 64 outputs in 24 registers, two terms an instruction.
    Dots,
    /// In f32, of any type.
    Fused(Fused),
}

impl Kernel {
    /// The kernels that this CPU runs for weights of a type, the fastest first.
    pub(super) fn all(dtype: DType) -> Vec<Self> {
        let mut all = Vec::new();
        if dtype == DType::BF16 && dots::available() {
            all.push(Self::Dots);
        }
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                all.push(Self::Fused(Fused::Wide));
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                all.push(Self::Fused(Fused::Narrow));
            }
        }
        all
    }

    /// Outputs whose weights lie side by side: a panel is `[PANEL / strip][in / group][strip][group]`.
    pub(super) fn strip(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Fused(Fused::Narrow) => 16,
            _ => PANEL,
        }
    }

    /// Inputs of an output whose weights lie side by side. Their number is filled up to a multiple of it.
    pub(super) fn group(self) -> usize {
        match self {
            Self::Dots => dots::PAIR,
            Self::Fused(_) => 1,
        }
    }
}

/// A kernel of fused products in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fused {
    /// AVX-512: 6 rows by 64 outputs in 24 registers.
    #[cfg(target_arch = "x86_64")]
    Wide,
    /// AVX2 and FMA: 6 rows by 16 outputs in 12 registers.
    #[cfg(target_arch = "x86_64")]
    Narrow,
}

impl Fused {
    /// `y [rows, PANEL] = x [rows, inputs] panel`.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_variables, reason = "there is no kernel")
    )]
    pub(super) fn run<T: Element>(self, x: &[f32], inputs: usize, panel: &[T], y: &mut [f32]) {
        let rows = y.len() / PANEL;
        assert!(y.len() == rows * PANEL && x.len() == rows * inputs);
        assert!(panel.len() == inputs * PANEL);
        match self {
            // SAFETY: the CPU has the features, by [`Kernel::all`]; the lengths were checked.
            #[cfg(target_arch = "x86_64")]
            Self::Wide => unsafe { wide(x, inputs, panel, y) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Narrow => unsafe { narrow(x, inputs, panel, y) },
        }
    }
}

/// # Safety
/// As the assertions of [`Fused::run`]; the CPU has AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn wide<T: Element>(x: &[f32], inputs: usize, panel: &[T], y: &mut [f32]) {
    let kernels: [Block<T>; ROWS] = [wide1, wide2, wide3, wide4, wide5, wide6];
    for depth in (0..inputs).step_by(DEPTH) {
        let terms = DEPTH.min(inputs - depth);
        for (row, y) in y.chunks_mut(ROWS * PANEL).enumerate() {
            let kernel = kernels[y.len() / PANEL - 1];
            let x = &x[row * ROWS * inputs + depth..];
            // SAFETY: rows of x and y and terms of the panel, all within their slices.
            unsafe {
                let panel = panel.as_ptr().add(depth * PANEL);
                kernel(x.as_ptr(), inputs, panel, terms, y.as_mut_ptr(), depth > 0);
            }
        }
    }
}

/// # Safety
/// As the assertions of [`Fused::run`]; the CPU has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn narrow<T: Element>(x: &[f32], inputs: usize, panel: &[T], y: &mut [f32]) {
    const STRIP: usize = 16;
    let kernels: [Block<T>; ROWS] = [narrow1, narrow2, narrow3, narrow4, narrow5, narrow6];
    for depth in (0..inputs).step_by(DEPTH) {
        let terms = DEPTH.min(inputs - depth);
        for strip in 0..PANEL / STRIP {
            let weights = &panel[(strip * inputs + depth) * STRIP..];
            for (row, y) in y.chunks_mut(ROWS * PANEL).enumerate() {
                let kernel = kernels[y.len() / PANEL - 1];
                let (x, y) = (&x[row * ROWS * inputs + depth..], &mut y[strip * STRIP..]);
                // SAFETY: as in `wide`.
                unsafe {
                    let weights = weights.as_ptr();
                    kernel(x.as_ptr(), inputs, weights, terms, y.as_mut_ptr(), depth > 0);
                }
            }
        }
    }
}

/// A kernel for a fixed number of rows: `y[r][..] = sum over k of x[r * pitch + k] * weights[k][..]`, added to y if `add`. Written
/// out, so that the sums stay in registers in a build without optimisation as well.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel {
    ($name:ident, $features:literal, $n:literal, [$($row:literal)+], $columns:tt, $lanes:literal,
     $load:ident, $set:ident, $zero:ident, $fma:ident, $add:ident, $from:ident, $to:ident) => {
        /// # Safety
        /// `$n` rows of x, `terms` rows of weights and `$n` rows of y are within their slices; the CPU has the features.
        #[target_feature(enable = $features)]
        unsafe fn $name<T: Element>(
            x: *const f32,
            pitch: usize,
            weights: *const T,
            terms: usize,
            y: *mut f32,
            add: bool,
        ) {
            kernel!(@body $columns, x, pitch, weights, terms, y, add, $n, [$($row)+], $lanes,
                $load, $set, $zero, $fma, $add, $from, $to)
        }
    };
    (@body [$($column:literal)+], $x:ident, $pitch:ident, $weights:ident, $terms:ident, $y:ident, $put:ident,
     $n:literal, $rows:tt, $lanes:literal,
     $load:ident, $set:ident, $zero:ident, $fma:ident, $add:ident, $from:ident, $to:ident) => {{
        const COLUMNS: usize = [$($column),+].len();
        let mut sums = [[$zero(); COLUMNS]; $n];
        for k in 0..$terms {
            // SAFETY: the caller's.
            unsafe {
                let at = $weights.add(k * COLUMNS * $lanes);
                let w = [$(T::$load(at.add($column * $lanes))),+];
                kernel!(@rows $rows, [$($column)+], sums, w, $x, $pitch, k, $set, $fma);
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (c, &sum) in sums.iter().enumerate() {
                // SAFETY: the caller's.
                unsafe {
                    let to = $y.add(r * PANEL + c * $lanes);
                    $to(to, if $put { $add($from(to), sum) } else { sum });
                }
            }
        }
    }};
    (@rows [$($row:literal)+], $columns:tt, $sums:ident, $w:ident, $x:ident, $pitch:ident, $k:ident,
     $set:ident, $fma:ident) => {
        $(
            let value = $set(*$x.add($row * $pitch + $k));
            kernel!(@columns $row, $columns, $sums, $w, value, $fma);
        )+
    };
    (@columns $row:literal, [$($column:literal)+], $sums:ident, $w:ident, $value:ident, $fma:ident) => {
        $($sums[$row][$column] = $fma($value, $w[$column], $sums[$row][$column]);)+
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! wide_kernels {
    ($($name:ident, $n:literal, $rows:tt;)+) => {
        $(kernel!($name, "avx512f,avx2,fma,f16c", $n, $rows, [0 1 2 3], 16, load16,
            _mm512_set1_ps, _mm512_setzero_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_loadu_ps, _mm512_storeu_ps);)+
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! narrow_kernels {
    ($($name:ident, $n:literal, $rows:tt;)+) => {
        $(kernel!($name, "avx2,fma,f16c", $n, $rows, [0 1], 8, load8,
            _mm256_set1_ps, _mm256_setzero_ps, _mm256_fmadd_ps, _mm256_add_ps, _mm256_loadu_ps, _mm256_storeu_ps);)+
    };
}

#[cfg(target_arch = "x86_64")]
wide_kernels! {
    wide1, 1, [0]; wide2, 2, [0 1]; wide3, 3, [0 1 2]; wide4, 4, [0 1 2 3]; wide5, 5, [0 1 2 3 4];
    wide6, 6, [0 1 2 3 4 5];
}

#[cfg(target_arch = "x86_64")]
narrow_kernels! {
    narrow1, 1, [0]; narrow2, 2, [0 1]; narrow3, 3, [0 1 2]; narrow4, 4, [0 1 2 3]; narrow5, 5, [0 1 2 3 4];
    narrow6, 6, [0 1 2 3 4 5];
}
