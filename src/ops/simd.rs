//! Vector primitives over f32, f16 and bf16 with f32 accumulation, chosen at run time.
//!
//! Two paths: AVX2 + FMA + F16C, where half types are widened inside the register, and portable code. Both deal the elements
//! of a vector to the same lanes and add the lanes in the same order. Sums, maxima and exponentials are equal bit for
//! bit on both paths; dot products of f32 differ in the last bits (fused against rounded products), within one bound.
//! Where the CPU has AVX-512, [`dot3`] takes two accumulators in one register, with the bits of the AVX2 path.
//!
//! ```text
//! elements  0..8    8..16   16..24  24..32 | 32..40 ...    four accumulators of eight lanes; a short end is padded with 0
//!           acc0    acc1    acc2    acc3   | acc0   ...    total: (acc0 + acc1) + (acc2 + acc3), then halves of the lanes
//! ```

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A float type that is stored; arithmetic is in f32.
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;

    /// Eight values widened.
    ///
    /// # Safety
    /// Eight values are readable at `from`; the CPU has AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load8(from: *const Self) -> __m256;

    /// Sixteen values widened.
    ///
    /// # Safety
    /// Sixteen values are readable at `from`; the CPU has AVX-512F.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load16(from: *const Self) -> __m512;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(from: *const Self) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(from) }
    }
}

impl Element for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(from: *const Self) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> __m256 {
        // SAFETY: the caller's. A bf16 is the upper half of the f32 of the same value.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(from: *const Self) -> __m512 {
        // SAFETY: the caller's; as above.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
}

/// Whether the AVX2 path runs.
#[inline]
pub(crate) fn vectorised() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Compiles one body for AVX2 and for any CPU. No fused products: both give the same bits.
macro_rules! any_width {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        pub(crate) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if $crate::ops::simd::vectorised() {
                    // SAFETY: the feature was detected.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

pub(crate) use any_width;

/// As [`any_width`], also for AVX-512: for loops that treat each value alone.
macro_rules! elementwise {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $body:block) => {
        $(#[$meta])*
        pub(crate) fn $name($($arg: $ty),*) {
            $crate::ops::simd::any_width! {
                fn narrower($($arg: $ty),*) $body
            }
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn widest($($arg: $ty),*) $body
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the feature was detected.
                    return unsafe { widest($($arg),*) };
                }
            }
            narrower($($arg),*)
        }
    };
}

pub(crate) use elementwise;

/// Roundings that a term of [`dot`] or [`dot3`] over `d` elements passes through at most, on either path: its product, one
/// addition per 32 elements in its lane, five to join the lanes. Hence
/// |computed - exact| <= g * sum |a_i b_i| with g = n u / (1 - n u), n this number, u = 2^-24 (barring underflow).
pub(crate) fn roundings(d: usize) -> usize {
    d.div_ceil(32) + 6
}

/// Number of accumulators.
const CHAINS: usize = 4;

fn join(acc: [[f32; 8]; CHAINS]) -> f32 {
    let lane = |l: usize| (acc[0][l] + acc[1][l]) + (acc[2][l] + acc[3][l]);
    let half = |l: usize| lane(l) + lane(l + 4);
    (half(0) + half(2)) + (half(1) + half(3))
}

/// The values left after whole groups of eight, padded with zeros.
#[inline(always)]
fn padded<T: Element>(rest: &[T]) -> [T; 8] {
    let mut out = [T::default(); 8];
    out[..rest.len()].copy_from_slice(rest);
    out
}

/// Sum of a_i b_i. Slices of one length.
pub(crate) fn dot<T: Element>(a: &[T], b: &[T]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let b = &b[..a.len()];
    #[cfg(target_arch = "x86_64")]
    if vectorised() {
        // SAFETY: the features were detected.
        return unsafe { avx::dot(a, b) };
    }
    portable::dot(a, b)
}

/// (a.b, a.a, b.b) in one pass. Slices of one length.
pub(crate) fn dot3<T: Element>(a: &[T], b: &[T]) -> [f32; 3] {
    debug_assert_eq!(a.len(), b.len());
    let b = &b[..a.len()];
    #[cfg(target_arch = "x86_64")]
    if vectorised() {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the features were detected.
            return unsafe { avx::dot3_wide(a, b) };
        }
        // SAFETY: the features were detected.
        return unsafe { avx::dot3(a, b) };
    }
    portable::dot3(a, b)
}

/// acc_i += scale * x_i. Slices of one length.
pub(crate) fn add_scaled<T: Element>(acc: &mut [f32], x: &[T], scale: f32) {
    debug_assert_eq!(acc.len(), x.len());
    #[cfg(target_arch = "x86_64")]
    if vectorised() {
        // SAFETY: the features were detected.
        return unsafe { avx::add_scaled(acc, x, scale) };
    }
    portable::add_scaled(acc, x, scale);
}

/// acc_i += scales_0 * x_0i, then the same with rows 1, 2, 3: the bits of four [`add_scaled`], with one pass over `acc`. `rows`
/// start where the rows start and hold at least as many values as `acc`.
pub(crate) fn add_scaled4<T: Element>(acc: &mut [f32], rows: [&[T]; 4], scales: [f32; 4]) {
    let rows = rows.map(|row| &row[..acc.len()]);
    #[cfg(target_arch = "x86_64")]
    if vectorised() {
        // SAFETY: the features were detected, and every row was cut to the length of `acc`.
        return unsafe { avx::add_scaled4(acc, rows, scales) };
    }
    rows.iter().zip(scales).for_each(|(row, scale)| portable::add_scaled(acc, row, scale));
}

/// acc_i = max(acc_i, x_i); a NaN on either side stays. Slices of one length.
pub(crate) fn max_into<T: Element>(acc: &mut [f32], x: &[T]) {
    debug_assert_eq!(acc.len(), x.len());
    #[cfg(target_arch = "x86_64")]
    if vectorised() {
        // SAFETY: the features were detected.
        return unsafe { avx::max_into(acc, x) };
    }
    portable::max_into(acc, x);
}

/// out_i = x_i. Slices of one length.
pub(crate) fn widen<T: Element>(x: &[T], out: &mut [f32]) {
    debug_assert_eq!(out.len(), x.len());
    #[cfg(target_arch = "x86_64")]
    if vectorised() {
        // SAFETY: the features were detected.
        return unsafe { avx::widen(x, out) };
    }
    portable::widen(x, out);
}

elementwise! {
    /// out_i = x_i rounded to nearest, ties to even; NaN stays NaN. The bits of [`bf16::from_f32`], without its branches.
    fn narrow(x: &[f32], out: &mut [bf16]) {
        for (out, &x) in out.iter_mut().zip(x) {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            let quiet = bits >> 16 | 0x40;
            *out = bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16);
        }
    }
}

any_width! {
    /// Sum of (x_i - shift)^power for power 1 or 2, in the lanes of the module docs.
    fn moment(x: &[f32], shift: f32, square: bool) -> f32 {
        #[inline(always)]
        fn total(x: &[f32], power: impl Fn(f32) -> f32) -> f32 {
            // Whole steps apart from the rest: loops of fixed length become vector instructions.
            let mut acc = [[0f32; 8]; CHAINS];
            let lanes = acc.as_flattened_mut();
            let (steps, rest) = x.as_chunks::<{ 8 * CHAINS }>();
            for step in steps {
                for (lane, &value) in lanes.iter_mut().zip(step) {
                    *lane += power(value);
                }
            }
            for (lane, &value) in lanes.iter_mut().zip(rest) {
                *lane += power(value);
            }
            join(acc)
        }
        // Not a branch in the loop, which would keep it scalar.
        match square {
            true => total(x, |value| (value - shift) * (value - shift)),
            false => total(x, |value| value - shift),
        }
    }
}

any_width! {
    /// The largest value, NaN if there is one, minus infinity if there are no values.
    fn peak(x: &[f32]) -> f32 {
        let larger = |m: f32, v: f32| if m.is_nan() || m > v { m } else { v };
        let mut acc = [f32::NEG_INFINITY; 16];
        let steps = x.chunks_exact(16);
        let rest = steps.remainder().iter().fold(f32::NEG_INFINITY, |m, &v| larger(m, v));
        for step in steps {
            for (lane, &value) in acc.iter_mut().zip(step) {
                *lane = larger(*lane, value);
            }
        }
        acc.iter().fold(rest, |m, &v| larger(m, v))
    }
}

elementwise! {
    /// out_i = exp((x_i - max) * scale) for x_i <= max, scale > 0; relative error below 1e-6 of the true value of the
    /// rounded exponent. Exponents below -87 give 0, so no result is subnormal.
    fn exp_scaled(x: &[f32], max: f32, scale: f32, out: &mut [f32]) {
        for (out, &value) in out.iter_mut().zip(x) {
            *out = exp((value - max) * scale);
        }
    }
}

any_width! {
    /// (x.y, x.x, y.y) in f64, where products of f32 values are exact. Slices of one length.
    fn dot3_f64(x: &[f32], y: &[f32]) -> [f64; 3] {
        let mut acc = [[0f64; 8]; 3];
        let mut add = |x: &[f32; 8], y: &[f32; 8]| {
            for l in 0..8 {
                let (x, y) = (f64::from(x[l]), f64::from(y[l]));
                acc[0][l] += x * y;
                acc[1][l] += x * x;
                acc[2][l] += y * y;
            }
        };
        let ((sx, rx), (sy, ry)) = (x.as_chunks(), y.as_chunks());
        sx.iter().zip(sy).for_each(|(x, y)| add(x, y));
        add(&padded(rx), &padded(ry));
        acc.map(|a| ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])))
    }
}

any_width! {
    /// Sum of x_i in f64: eight lanes, then halves of the lanes.
    fn sum_f64(x: &[f32]) -> f64 {
        let mut acc = [0f64; 8];
        let steps = x.chunks_exact(8);
        let rest = steps.remainder();
        for step in steps {
            for (lane, &value) in acc.iter_mut().zip(step) {
                *lane += f64::from(value);
            }
        }
        for (lane, &value) in acc.iter_mut().zip(rest) {
            *lane += f64::from(value);
        }
        ((acc[0] + acc[4]) + (acc[2] + acc[6])) + ((acc[1] + acc[5]) + (acc[3] + acc[7]))
    }
}

elementwise! {
    /// x_i *= by.
    fn scale(x: &mut [f32], by: f32) {
        for x in x {
            *x *= by;
        }
    }
}

any_width! {
    /// The largest value that is not NaN; minus infinity if there is none.
    fn largest_number(x: &[f32]) -> f32 {
        let larger = |m: f32, v: f32| if v > m { v } else { m };
        let mut acc = [f32::NEG_INFINITY; 16];
        let steps = x.chunks_exact(16);
        let rest = steps.remainder().iter().fold(f32::NEG_INFINITY, |m, &v| larger(m, v));
        for step in steps {
            for (lane, &value) in acc.iter_mut().zip(step) {
                *lane = larger(*lane, value);
            }
        }
        acc.iter().fold(rest, |m, &v| larger(m, v))
    }
}

any_width! {
    /// How many values are above `high`, and how many are at least `low`.
    fn count_reaching(x: &[f32], high: f32, low: f32) -> [u32; 2] {
        let mut lanes = [[0u32; 8]; 2];
        let (steps, rest) = x.as_chunks::<8>();
        for step in steps {
            for l in 0..8 {
                lanes[0][l] += u32::from(step[l] > high);
                lanes[1][l] += u32::from(step[l] >= low);
            }
        }
        let [mut above, mut near] = lanes.map(|lane| lane.iter().sum());
        for &value in rest {
            above += u32::from(value > high);
            near += u32::from(value >= low);
        }
        [above, near]
    }
}

/// exp(z) without branches: z = n ln 2 + r, |r| <= ln 2 / 2; e^r by a minimax polynomial (rest below 3e-9), so that rounding
/// is all of the error: 2 ulp. Below -87 gives 0, so no result is subnormal; above 88.3 infinity; NaN stays.
#[inline(always)]
pub(crate) fn exp(z: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits; taking it away again gives it as a float.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has 15 trailing zero bits, so n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = z * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (z - n * LN2_HIGH) - n * LN2_LOW;
    let high = ((1.381_461_3e-3 * r + 8.368_71e-3) * r + 0.041_668_39) * r + 0.166_665_21;
    let series = (high * r + 0.499_999_94) * (r * r) + r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let value = if z < -87.0 { 0.0 } else { series * power };
    if z > 88.3 { f32::INFINITY } else { value }
}

/// Any CPU. Mirrors the lanes of [`avx`].
mod portable {
    use super::{CHAINS, Element, join};

    pub(super) fn dot<T: Element>(a: &[T], b: &[T]) -> f32 {
        let mut acc = [[0f32; 8]; CHAINS];
        for (c, (a, b)) in a.chunks(8).zip(b.chunks(8)).enumerate() {
            for ((lane, a), b) in acc[c % CHAINS].iter_mut().zip(a).zip(b) {
                *lane += a.to_f32() * b.to_f32();
            }
        }
        join(acc)
    }

    pub(super) fn dot3<T: Element>(a: &[T], b: &[T]) -> [f32; 3] {
        [dot(a, b), dot(a, a), dot(b, b)]
    }

    pub(super) fn add_scaled<T: Element>(acc: &mut [f32], x: &[T], scale: f32) {
        for (acc, x) in acc.iter_mut().zip(x) {
            *acc += scale * x.to_f32();
        }
    }

    pub(super) fn max_into<T: Element>(acc: &mut [f32], x: &[T]) {
        for (acc, x) in acc.iter_mut().zip(x) {
            let x = x.to_f32();
            *acc = if acc.is_nan() || *acc > x { *acc } else { x };
        }
    }

    pub(super) fn widen<T: Element>(x: &[T], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x.to_f32();
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx;

#[cfg(test)]
mod tests;
