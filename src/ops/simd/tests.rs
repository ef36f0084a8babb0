use super::*;

fn values<T: Element>(n: usize, salt: u32) -> Vec<T> {
    let mut state = salt.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f64::from(state) / f64::from(u32::MAX) * 4.0 - 2.0
    };
    (0..n).map(|_| T::from_f32(next() as f32)).collect()
}

/// The portable path is the same function as the dispatched one, on every length around the group sizes.
fn paths_agree<T: Element>() {
    for n in (0..70).chain([127, 128, 129, 384, 1025]) {
        let (a, b) = (values::<T>(n, 1), values::<T>(n, 2));
        let exact: f64 =
            a.iter().zip(&b).map(|(x, y)| f64::from(x.to_f32()) * f64::from(y.to_f32())).sum();
        let size: f64 = a
            .iter()
            .zip(&b)
            .map(|(x, y)| (f64::from(x.to_f32()) * f64::from(y.to_f32())).abs())
            .sum();
        let u = roundings(n) as f64 * 2f64.powi(-24);
        let bound = u / (1.0 - u) * size;
        assert!((f64::from(dot(&a, &b)) - exact).abs() <= bound, "dot {n}");
        assert!((f64::from(portable::dot(&a, &b)) - exact).abs() <= bound, "portable dot {n}");
        // The widest path has the bits of the AVX2 one.
        assert_eq!(dot3(&a, &b), [dot(&a, &b), dot(&a, &a), dot(&b, &b)]);

        let start = values::<f32>(n, 3);
        let (mut fast, mut plain) = (start.clone(), start.clone());
        add_scaled(&mut fast, &a, 0.37);
        portable::add_scaled(&mut plain, &a, 0.37);
        assert_eq!(fast, plain, "add_scaled {n}");
        let (scales, x) = ([0.3, -1.0, 1.0, 7.0], values::<f32>(n, 4));
        let wide: Vec<T> = x.iter().map(|&x| T::from_f32(x)).collect();
        add_scaled4(&mut fast, [&a, &b, &wide, &a], scales);
        for (row, scale) in [&a, &b, &wide, &a].into_iter().zip(scales) {
            portable::add_scaled(&mut plain, row, scale);
        }
        assert_eq!(fast, plain, "add_scaled4 {n}");
        max_into(&mut fast, &b);
        portable::max_into(&mut plain, &b);
        assert_eq!(fast, plain, "max_into {n}");
        widen(&a, &mut fast);
        portable::widen(&a, &mut plain);
        assert_eq!(fast, plain, "widen {n}");
    }
}

#[test]
fn portable_path_is_the_same_function() {
    paths_agree::<f32>();
    paths_agree::<f16>();
    paths_agree::<bf16>();
}

/// Every upper half of an f32 with lower halves around the ties, NaN and infinities among them.
#[test]
fn narrowing_has_the_bits_of_half() {
    for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
        let x: Vec<f32> = (0..1 << 16).map(|high| f32::from_bits(high << 16 | low)).collect();
        let mut out = vec![bf16::default(); x.len()];
        narrow(&x, &mut out);
        for (x, out) in x.iter().zip(&out) {
            assert_eq!(out.to_bits(), bf16::from_f32(*x).to_bits(), "{:#x}", x.to_bits());
        }
    }
}

#[test]
fn max_keeps_nan_on_either_side() {
    for at in 0..11 {
        let mut clean = vec![1f32; 11];
        let mut dirty = clean.clone();
        dirty[at] = f32::NAN;
        let mut acc = dirty.clone();
        max_into(&mut acc, &clean);
        assert!(acc[at].is_nan());
        max_into(&mut clean, &dirty);
        assert!(clean[at].is_nan());
        assert_eq!(clean.iter().filter(|v| v.is_nan()).count(), 1);
        assert!(peak(&dirty).is_nan());
    }
    assert_eq!(peak(&[]), f32::NEG_INFINITY);
    assert_eq!(peak(&[-3.0, -2.0, -5.0]), -2.0);
}

#[test]
fn exponential_is_close_and_flushes() {
    let x: Vec<f32> = (0..200_000).map(|i| -(i as f32) * 5e-4).chain([f32::NEG_INFINITY]).collect();
    let mut out = vec![0f32; x.len()];
    exp_scaled(&x, 0.0, 1.0, &mut out);
    assert_eq!(out[0], 1.0);
    for (&x, &got) in x.iter().zip(&out) {
        let want = f64::from(x).exp();
        if x < -87.0 {
            assert_eq!(got, 0.0);
        } else {
            assert!(
                (f64::from(got) - want).abs() <= 3e-7 * want,
                "exp({x}) = {got}, expected {want}"
            );
        }
    }
}

#[test]
fn moments() {
    let x = values::<f32>(77, 9);
    let sum: f64 = x.iter().map(|&v| f64::from(v)).sum();
    let square: f64 = x.iter().map(|&v| (f64::from(v) - 0.5).powi(2)).sum();
    assert!((sum_f64(&x) - sum).abs() < 1e-12);
    assert!((f64::from(moment(&x, 0.0, false)) - sum).abs() < 1e-4);
    assert!((f64::from(moment(&x, 0.5, true)) - square).abs() < 1e-4);
}
