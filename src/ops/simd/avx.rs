//! AVX2, FMA and F16C, and AVX-512 where it pays. Every function: the CPU has the features that it enables, and the slices
//! are of one length.

use super::{CHAINS, Element, padded};
use std::arch::x86_64::*;

/// The bits of [`super::join`], in registers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn total(acc: [__m256; CHAINS]) -> f32 {
    let lanes = _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]));
    let half = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dot<T: Element>(a: &[T], b: &[T]) -> f32 {
    // SAFETY: every load is of eight values inside the slice or the padded copy.
    unsafe {
        let mut acc = [_mm256_setzero_ps(); CHAINS];
        let (pa, pb) = (a.as_ptr(), b.as_ptr());
        let groups = a.len() / 8;
        let mut g = 0;
        while g + CHAINS <= groups {
            for (c, acc) in acc.iter_mut().enumerate() {
                let at = (g + c) * 8;
                *acc = _mm256_fmadd_ps(T::load8(pa.add(at)), T::load8(pb.add(at)), *acc);
            }
            g += CHAINS;
        }
        while g < groups {
            let c = g % CHAINS;
            acc[c] = _mm256_fmadd_ps(T::load8(pa.add(g * 8)), T::load8(pb.add(g * 8)), acc[c]);
            g += 1;
        }
        if !a.len().is_multiple_of(8) {
            let (x, y) = (padded(&a[groups * 8..]), padded(&b[groups * 8..]));
            let c = groups % CHAINS;
            acc[c] = _mm256_fmadd_ps(T::load8(x.as_ptr()), T::load8(y.as_ptr()), acc[c]);
        }
        total(acc)
    }
}

/// Accumulators of the three products of [`dot3`], each four times eight lanes.
type Three = [[__m256; CHAINS]; 3];

/// Groups of eight from `g` on, the padded end among them, and the totals.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn finish3<T: Element>(
    [ab, aa, bb]: &mut Three,
    a: &[T],
    b: &[T],
    mut g: usize,
) -> [f32; 3] {
    // SAFETY: every load is of eight values inside the slice or the padded copy.
    unsafe {
        let groups = a.len() / 8;
        while g * 8 < a.len() {
            let (x, y) = if g < groups {
                (T::load8(a.as_ptr().add(g * 8)), T::load8(b.as_ptr().add(g * 8)))
            } else {
                let (x, y) = (padded(&a[g * 8..]), padded(&b[g * 8..]));
                (T::load8(x.as_ptr()), T::load8(y.as_ptr()))
            };
            let c = g % CHAINS;
            ab[c] = _mm256_fmadd_ps(x, y, ab[c]);
            aa[c] = _mm256_fmadd_ps(x, x, aa[c]);
            bb[c] = _mm256_fmadd_ps(y, y, bb[c]);
            g += 1;
        }
        [total(*ab), total(*aa), total(*bb)]
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dot3<T: Element>(a: &[T], b: &[T]) -> [f32; 3] {
    // SAFETY: every load is of eight values inside the slices.
    unsafe {
        let [mut ab, mut aa, mut bb]: Three = [[_mm256_setzero_ps(); CHAINS]; 3];
        let (pa, pb) = (a.as_ptr(), b.as_ptr());
        let groups = a.len() / 8;
        let mut g = 0;
        while g + CHAINS <= groups {
            for c in 0..CHAINS {
                let (x, y) = (T::load8(pa.add((g + c) * 8)), T::load8(pb.add((g + c) * 8)));
                ab[c] = _mm256_fmadd_ps(x, y, ab[c]);
                aa[c] = _mm256_fmadd_ps(x, x, aa[c]);
                bb[c] = _mm256_fmadd_ps(y, y, bb[c]);
            }
            g += CHAINS;
        }
        finish3(&mut [ab, aa, bb], a, b, g)
    }
}

/// [`dot3`] in registers of sixteen lanes, two accumulators in each: the same lanes, the same order, the same bits.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
pub(super) unsafe fn dot3_wide<T: Element>(a: &[T], b: &[T]) -> [f32; 3] {
    // SAFETY: every load is of sixteen values inside the slices.
    unsafe {
        let [mut ab, mut aa, mut bb] = [[_mm512_setzero_ps(); CHAINS / 2]; 3];
        let (pa, pb) = (a.as_ptr(), b.as_ptr());
        let groups = a.len() / 8;
        let mut g = 0;
        while g + CHAINS <= groups {
            for c in 0..CHAINS / 2 {
                let at = (g + 2 * c) * 8;
                let (x, y) = (T::load16(pa.add(at)), T::load16(pb.add(at)));
                ab[c] = _mm512_fmadd_ps(x, y, ab[c]);
                aa[c] = _mm512_fmadd_ps(x, x, aa[c]);
                bb[c] = _mm512_fmadd_ps(y, y, bb[c]);
            }
            g += CHAINS;
        }
        finish3(&mut [halves(ab), halves(aa), halves(bb)], a, b, g)
    }
}

/// Lower and upper eight lanes of each register, in order.
#[inline]
#[target_feature(enable = "avx512f,avx2")]
fn halves(wide: [__m512; CHAINS / 2]) -> [__m256; CHAINS] {
    let upper = |z| _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(z)));
    let lower = |z| _mm512_castps512_ps256(z);
    [lower(wide[0]), upper(wide[0]), lower(wide[1]), upper(wide[1])]
}

/// Walks `x` in groups of eight beside `acc`: acc = step(acc, x).
#[inline(always)]
unsafe fn zip8<T: Element>(acc: &mut [f32], x: &[T], step: impl Fn(__m256, __m256) -> __m256) {
    // SAFETY: every load and store is of eight values inside the slices or the padded copies.
    unsafe {
        let whole = x.len() / 8 * 8;
        for at in (0..whole).step_by(8) {
            let to = acc.as_mut_ptr().add(at);
            _mm256_storeu_ps(to, step(_mm256_loadu_ps(to), T::load8(x.as_ptr().add(at))));
        }
        if whole < x.len() {
            let mut rest = padded(&acc[whole..]);
            let values = padded(&x[whole..]);
            let to = rest.as_mut_ptr();
            _mm256_storeu_ps(to, step(_mm256_loadu_ps(to), T::load8(values.as_ptr())));
            let left = acc.len() - whole;
            acc[whole..].copy_from_slice(&rest[..left]);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn add_scaled<T: Element>(acc: &mut [f32], x: &[T], scale: f32) {
    let scale = _mm256_set1_ps(scale);
    // SAFETY: the caller's.
    unsafe { zip8(acc, x, |acc, x| _mm256_add_ps(acc, _mm256_mul_ps(scale, x))) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn add_scaled4<T: Element>(acc: &mut [f32], rows: [&[T]; 4], scales: [f32; 4]) {
    let whole = acc.len() / 8 * 8;
    let wide = scales.map(|s| _mm256_set1_ps(s));
    for at in (0..whole).step_by(8) {
        // SAFETY: eight values from `at` are inside `acc` and every row.
        unsafe {
            let to = acc.as_mut_ptr().add(at);
            let mut sum = _mm256_loadu_ps(to);
            for (row, scale) in rows.iter().zip(wide) {
                sum = _mm256_add_ps(sum, _mm256_mul_ps(scale, T::load8(row.as_ptr().add(at))));
            }
            _mm256_storeu_ps(to, sum);
        }
    }
    for (row, scale) in rows.iter().zip(scales) {
        super::portable::add_scaled(&mut acc[whole..], &row[whole..], scale);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn max_into<T: Element>(acc: &mut [f32], x: &[T]) {
    let step = |acc, x| {
        let keep = _mm256_or_ps(
            _mm256_cmp_ps::<_CMP_GT_OQ>(acc, x),
            _mm256_cmp_ps::<_CMP_UNORD_Q>(acc, acc),
        );
        _mm256_blendv_ps(x, acc, keep)
    };
    // SAFETY: the caller's.
    unsafe { zip8(acc, x, step) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn widen<T: Element>(x: &[T], out: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { zip8(out, x, |_, x| x) }
}
