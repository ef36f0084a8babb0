//! Numbers as a reader sees them.

/// `74.2 %`, with a narrow blank that does not break.
pub(super) fn share(value: f64) -> String {
    format!("{:.1}\u{202f}%", 100.0 * value)
}

/// A similarity with three decimals; a dash where an encoder gave none.
pub(super) fn phi(value: Option<f64>) -> String {
    value.filter(|x| !x.is_nan()).map_or_else(|| "–".to_owned(), |x| format!("{x:.3}"))
}

/// `12,345`.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `4.2 s`, `3 min 20 s`, `2 h 05 min`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1}\u{202f}s"),
        60..3600 => format!("{}\u{202f}min {:02}\u{202f}s", whole / 60, whole % 60),
        _ => format!("{}\u{202f}h {:02}\u{202f}min", whole / 3600, whole % 3600 / 60),
    }
}

/// `1 pair`, `2 pairs`.
pub(super) fn plural(value: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(value), if value == 1 { "" } else { "s" })
}

/// Wilson's 95 % interval of a share of `total`; (0, 1) of nothing.
pub(super) fn wilson(part: u64, total: u64) -> (f64, f64) {
    if total == 0 {
        return (0.0, 1.0);
    }
    let (n, p, z) = (total as f64, part as f64 / total as f64, 1.959_963_984_540_054);
    let z2 = z * z / n;
    let centre = (p + z2 / 2.0) / (1.0 + z2);
    let half = z / (1.0 + z2) * (p * (1.0 - p) / n + z2 / (4.0 * n)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(share(0.7419), "74.2\u{202f}%");
        assert_eq!(phi(Some(f64::NAN)), "–");
        assert_eq!(duration(200.4), "3\u{202f}min 20\u{202f}s");
        assert_eq!(duration(7500.0), "2\u{202f}h 05\u{202f}min");
    }

    /// Against the roots of the score equation (p - x/n)^2 = z^2 p (1 - p) / n, found by bisection.
    #[test]
    fn wilson_intervals() {
        let (low, high) = wilson(8, 10);
        assert!((low - 0.490_162_5).abs() < 1e-6 && (high - 0.943_317_8).abs() < 1e-6);
        let (low, high) = wilson(10, 10);
        assert!((low - 0.722_467_2).abs() < 1e-6 && (high - 1.0).abs() < 1e-12);
    }
}
