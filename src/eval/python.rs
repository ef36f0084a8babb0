//! Python's text and number rules, where a reference scorer's result depends on them.

/// `float(text)`: blanks around it are ignored, digits may be grouped by single underscores, and `nan`, `inf` and
/// `1e-1` are numbers. None where Python raises.
pub(super) fn float(text: &str) -> Option<f64> {
    let text = text.trim();
    let bytes = text.as_bytes();
    let digit = |i: Option<usize>| i.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_digit);
    let mut plain = String::with_capacity(text.len());
    for (i, &byte) in bytes.iter().enumerate() {
        if byte == b'_' {
            if !digit(i.checked_sub(1)) || !digit(Some(i + 1)) {
                return None;
            }
        } else {
            plain.push(byte as char);
        }
    }
    if text.is_ascii() { plain.parse().ok() } else { None }
}

/// `round(value, digits)`: the decimal nearest to the value's exact binary expansion, ties to even.
pub(super) fn round(value: f64, digits: usize) -> f64 {
    format!("{value:.digits$}").parse().unwrap_or(value)
}

/// The white space of `str.split()`, which also has the four ASCII separators U+001C to U+001F.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `text.strip()`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `text.split()`.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{float, round};

    #[test]
    fn float_accepts_what_python_accepts() {
        for (text, expected) in [
            ("0.5", Some(0.5)),
            (" 1e-1\n", Some(0.1)),
            ("+8", Some(8.0)),
            (".5", Some(0.5)),
            ("5.", Some(5.0)),
            ("1_0", Some(10.0)),
            ("-inf", Some(f64::NEG_INFINITY)),
            ("1__0", None),
            ("_1", None),
            ("0x1", None),
            ("1,0", None),
            ("", None),
            ("8/10", None),
        ] {
            assert_eq!(float(text), expected, "{text:?}");
        }
        assert!(float("NaN").is_some_and(f64::is_nan));
    }

    /// Values from `python3 -c "print(round(x, n))"`.
    #[test]
    fn round_is_pythons() {
        for (value, digits, expected) in [
            (0.25, 1, 0.2),
            (0.35, 1, 0.3),
            (2.5, 0, 2.0),
            (3.5, 0, 4.0),
            (2.675, 2, 2.67),
            (0.125, 2, 0.12),
            (0.375, 2, 0.38),
            (6.0405, 3, 6.04),
            (-0.25, 1, -0.2),
        ] {
            assert_eq!(round(value, digits), expected, "{value}");
        }
        assert!(round(f64::NAN, 1).is_nan());
    }
}
