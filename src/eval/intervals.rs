//! Intervals, p-values and power from the values of a statistic on bootstrap resamples.
//!
//! # The rule of an interval
//! The 2.5 % and 97.5 % quantiles of the resamples on which the statistic is defined. Near a bound of its scale a quantile is too
//! narrow (at the bound, of no width at all), so a score whose expected number of successes or failures is below 5 has Wilson's
//! interval in its place: with p the score's place on its scale and n = p (1 - p) / variance the number of independent units that
//! vary as much as the resamples do (at the bound: the units). A difference that no resample changes has an interval of the width
//! that as many equal units leave open, range * z^2 / (n + z^2) to each side.
//!
//! # The rule of a p-value
//! Two-sided: twice the smaller share of resamples on one side of 0, ties on both, never 0. The smallest that `n` resamples can
//! give is [`floor`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// The 97.5 % quantile of the normal distribution.
pub(crate) const Z: f64 = 1.959_963_984_540_054;

/// A statistic with its 95 % interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// On all items; null if not defined.
    pub value: Option<f64>,
    /// Lower end of the interval; null without resamples. See the module for the rule.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Standard deviation over the resamples; null with fewer than two.
    pub stderr: Option<f64>,
    /// Units (images, or items) that the statistic is about.
    #[serde(default)]
    pub units: u64,
    /// Resamples on which it is not defined, which the interval leaves out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub undefined: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (self.value, self.low, self.high) {
            (Some(value), Some(low), Some(high)) => write!(f, "{value:.2} [{low:.2}, {high:.2}]"),
            (Some(value), ..) => write!(f, "{value:.2}"),
            _ => f.write_str("–"),
        }
    }
}

/// What a statistic is bounded by.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bounds {
    /// Least and largest value of a score.
    Score([f64; 2]),
    /// Width of the scale of the two scores of a difference.
    Difference(f64),
}

/// A statistic with its interval; `values` are those of the resamples.
pub(super) fn estimate(
    value: f64,
    mut values: Vec<f64>,
    units: u64,
    bounds: Option<Bounds>,
) -> Estimate {
    let finite = |value: f64| value.is_finite().then_some(value);
    let all = values.len();
    values.retain(|value| value.is_finite());
    let undefined = (all - values.len()) as u64;
    values.sort_by(f64::total_cmp);
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let quantiles = [quantile(&values, 0.025), quantile(&values, 0.975)];
    let near = bounds
        .filter(|_| values.len() > 1 && value.is_finite())
        .and_then(|bounds| near_bounds(value, variance, units as f64, bounds));
    let [low, high] = near.map_or(quantiles, |interval| interval.map(Some));
    Estimate {
        value: finite(value),
        low,
        high,
        stderr: if values.len() > 1 { finite(variance.sqrt()) } else { None },
        units,
        undefined,
    }
}

/// The interval where quantiles are too narrow; none elsewhere.
fn near_bounds(value: f64, variance: f64, units: f64, bounds: Bounds) -> Option<[f64; 2]> {
    // Differences of rounding are no variance.
    let tiny = |range: f64| variance <= (range * 1e-9).powi(2);
    match bounds {
        Bounds::Score([low, high]) => {
            let range = high - low;
            let p = ((value - low) / range).clamp(0.0, 1.0);
            let n = if tiny(range) { units } else { p * (1.0 - p) * range * range / variance };
            // With one outcome alone, nothing but the number of units says how sure it is.
            let n = if p * (1.0 - p) < 1e-12 { units } else { n };
            let rare = n * p.min(1.0 - p) < 5.0 && n > 0.0;
            rare.then(|| wilson(p, n).map(|x| low + range * x))
        }
        Bounds::Difference(range) => {
            let open = range * Z * Z / (units + Z * Z);
            tiny(range).then(|| [(value - open).max(-range), (value + open).min(range)])
        }
    }
}

/// Wilson's interval of a share.
fn wilson(p: f64, n: f64) -> [f64; 2] {
    let scale = 1.0 + Z * Z / n;
    let centre = (p + Z * Z / (2.0 * n)) / scale;
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt() / scale;
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

/// The quantile of sorted values by linear interpolation at position (n - 1) q: NumPy's default. None without values.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let position = (sorted.len().checked_sub(1)? as f64) * q;
    let below = position.floor();
    let (a, b) = (sorted[below as usize], sorted[position.ceil() as usize]);
    let t = position - below;
    // From the nearer end, as NumPy does, so that t = 1 gives exactly b.
    Some(if t < 0.5 { a + (b - a) * t } else { b - (b - a) * (1.0 - t) })
}

/// Twice the smaller share of differences on one side of 0, at most 1; ties count on both sides. With k of n on that side the
/// value is 2 (k + 1) / (n + 1), which is never 0.
pub(super) fn two_sided(values: &[f64]) -> Option<f64> {
    let n = values.iter().filter(|value| !value.is_nan()).count();
    let below = values.iter().filter(|value| **value <= 0.0).count();
    let above = values.iter().filter(|value| **value >= 0.0).count();
    let p = 2.0 * (below.min(above) + 1) as f64 / (n + 1) as f64;
    (n > 0).then_some(p.min(1.0))
}

/// The smallest p-value that so many resamples can give.
pub fn floor(resamples: u32) -> f64 {
    2.0 / (f64::from(resamples) + 1.0)
}

/// Resamples with which Holm's first step over so many tests can still reject at 5 %, with a margin of ten: the smallest p-value
/// times the tests is .005.
pub fn enough(tests: usize) -> u32 {
    u32::try_from(tests.saturating_mul(400)).unwrap_or(u32::MAX).max(10_000)
}

/// A p-value for people; one at the floor is said to be below it.
pub fn p_text(p: f64, resamples: u32) -> String {
    let least = floor(resamples);
    if p <= least * (1.0 + 1e-9) {
        let decimals = (-least.log10()).ceil().max(1.0) as usize;
        let unit = 10f64.powi(decimals as i32);
        // 2 / 1,001 is below .002.
        return format!("< {:.decimals$}", (least * unit - 1e-9).ceil() / unit);
    }
    if p < 0.001 { format!("{p:.4}") } else { format!("{p:.3}") }
}

/// The difference that a test of this standard error finds with 80 % power at 5 %, two-sided, as the first of `tests` in Holm's
/// order.
pub fn seen(stderr: f64, tests: usize) -> f64 {
    // The 80 % quantile.
    const POWER: f64 = 0.841_621_233_572_914_3;
    (normal(1.0 - 0.025 / tests.max(1) as f64) + POWER) * stderr
}

/// The quantile of the normal distribution for p in (0.5, 1): bisection of its distribution function, to 1e-9.
fn normal(p: f64) -> f64 {
    let (mut low, mut high) = (0.0, 40.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if distribution(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The normal distribution function for x >= 0, by its series (Marsaglia 2004): 1/2 + phi(x) (x + x^3/3 + x^5/(3 5) + ...).
fn distribution(x: f64) -> f64 {
    if x > 8.0 {
        return 1.0;
    }
    let (mut sum, mut term, mut i) = (x, x, 1.0);
    while term > 1e-18 * sum {
        i += 2.0;
        term *= x * x / i;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64, by: f64) {
        assert!((a - b).abs() < by, "{a} is not {b}");
    }

    #[test]
    fn quantiles_of_the_normal_distribution() {
        for (p, z) in
            [(0.975, 1.959_964), (0.995, 2.575_829), (0.9975, 2.807_034), (0.6, 0.253_347)]
        {
            close(normal(p), z, 1e-6);
        }
        // A single test sees 2.80 standard errors, the first of twenty 3.86.
        close(seen(1.0, 1), 2.8016, 1e-4);
        close(seen(1.0, 20), 3.8649, 1e-3);
    }

    #[test]
    fn p_values_at_the_floor_say_so() {
        for (p, resamples, text) in [
            (2.0 / 1001.0, 1000, "< 0.002"),
            (2.0 / 10_001.0, 10_000, "< 0.0002"),
            (2.0 / 101.0, 100, "< 0.02"),
            (2.0 / 100_001.0, 100_000, "< 0.00002"),
            (0.000_4, 10_000, "0.0004"),
            (0.024, 10_000, "0.024"),
            (1.0, 10_000, "1.000"),
        ] {
            assert_eq!(p_text(p, resamples), text);
        }
        assert_eq!(
            (enough(1), enough(25), enough(26), enough(100)),
            (10_000, 10_000, 10_400, 40_000)
        );
        assert!(26.0 * floor(enough(26)) <= 0.05 / 9.0);
    }

    /// 99 of 99 right: quantiles give no width, Wilson 96.3 to 100.
    #[test]
    fn scores_at_a_bound_have_width() {
        let scale = Some(Bounds::Score([0.0, 100.0]));
        let found = estimate(100.0, vec![100.0; 1000], 99, scale);
        close(found.low.unwrap(), 96.264, 0.001);
        assert_eq!(found.high, Some(100.0));
        let none = estimate(0.0, vec![0.0; 1000], 10, scale);
        assert_eq!(none.low, Some(0.0));
        close(none.high.unwrap(), 27.753, 0.001);
        // In the middle of the scale, quantiles.
        let values: Vec<f64> = (0..1001).map(|i| 40.0 + f64::from(i) / 50.0).collect();
        let middle = estimate(50.0, values, 99, scale);
        assert_eq!((middle.low, middle.high), (Some(40.5), Some(59.5)));
        // Without bounds, quantiles everywhere.
        assert_eq!(estimate(100.0, vec![100.0; 9], 99, None).low, Some(100.0));
        // Two answers that are equal on every unit may differ on others.
        let equal = estimate(0.0, vec![0.0; 1000], 96, Some(Bounds::Difference(6.0)));
        close(equal.high.unwrap(), 6.0 * 3.8415 / 99.8415, 1e-3);
        close(equal.low.unwrap(), -equal.high.unwrap(), 1e-12);
    }

    #[test]
    fn resamples_without_a_value_are_counted() {
        let found = estimate(5.0, vec![f64::NAN, 4.0, 6.0, f64::INFINITY], 7, None);
        assert_eq!((found.undefined, found.units, found.low.is_some()), (2, 7, true));
    }
}
