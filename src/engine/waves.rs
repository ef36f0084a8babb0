//! How a round is divided into waves.

use std::ops::Range;

/// Waves of so many budgets: as sentences end, their slots go to the next attempts of the wave, and the end of a wave, when few
/// rows are left, comes a fourth as often.
const BUDGETS: usize = 4;

/// Divides sequences, in order, into waves whose summed costs stay within four times `budget`, the slots that are used at a time.
///
/// A pure function of its arguments, so that a resumed round has the same waves and with them the
/// same batch shapes, hence the same bits. A sequence that alone exceeds the budget is a wave of its
/// own: nothing is dropped.
pub fn waves(costs: &[usize], budget: usize) -> Vec<Range<usize>> {
    let budget = budget.saturating_mul(BUDGETS);
    let mut waves = Vec::new();
    let (mut start, mut sum) = (0, 0usize);
    for (i, &cost) in costs.iter().enumerate() {
        if i > start && sum.saturating_add(cost) > budget {
            waves.push(start..i);
            (start, sum) = (i, 0);
        }
        sum = sum.saturating_add(cost);
    }
    if start < costs.len() {
        waves.push(start..costs.len());
    }
    waves
}

#[cfg(test)]
mod tests {
    use super::waves;

    #[test]
    fn waves_respect_the_budget_and_drop_nothing() {
        assert!(waves(&[], 10).is_empty());
        assert_eq!(waves(&[4, 4, 4], 2), [0..2, 2..3]);
        assert_eq!(waves(&[20, 1, 1, 20], 2), [0..1, 1..3, 3..4]);
        assert_eq!(waves(&[usize::MAX, usize::MAX], 8), [0..1, 1..2]);
    }
}
