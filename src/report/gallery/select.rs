//! Which pairs are worth showing.

use std::collections::HashSet;

/// What makes a pair worth showing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::report) enum Why {
    Disagree,
    Typical,
    Subtle,
    Swapped,
    Strong,
    Forced,
    Unguided,
    Flagged,
}

impl Why {
    /// In the order in which they take turns.
    pub const ALL: [Self; 8] = [
        Self::Disagree,
        Self::Typical,
        Self::Subtle,
        Self::Swapped,
        Self::Strong,
        Self::Forced,
        Self::Unguided,
        Self::Flagged,
    ];

    /// A tag.
    pub fn label(self) -> &'static str {
        match self {
            Self::Disagree => "encoders disagree",
            Self::Typical => "typical",
            Self::Subtle => "nearly the reference",
            Self::Swapped => "yes/no swapped",
            Self::Strong => "far from the reference",
            Self::Forced => "forced",
            Self::Unguided => "unguided",
            Self::Flagged => "flagged",
        }
    }

    /// What the tag means.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Disagree => "below some threshold for one encoder and not for another",
            Self::Typical => "near the median of phi",
            Self::Subtle => "accepted with a phi as high as they come",
            Self::Swapped => "a sentence began with the opposite of the reference's yes or no",
            Self::Strong => "phi as low as it comes",
            Self::Forced => "the last attempt, taken although it is not below the threshold",
            Self::Unguided => "one free response, not completed from the reference",
            Self::Flagged => "something about it is odd: see the flag beside the tag",
        }
    }
}

/// What is known of a candidate that some cell takes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Features {
    pub sample: u32,
    pub attempt: u32,
    /// phi by each encoder.
    pub phis: Vec<f64>,
    /// Over all thresholds, the most encoders of the minority that says otherwise.
    pub minority: usize,
    /// The greatest phi with which a cell accepted it.
    pub accepted_at: Option<f64>,
    pub swapped: bool,
    pub forced: bool,
    pub guided: bool,
    pub flagged: bool,
}

impl Features {
    fn mean(&self) -> f64 {
        self.phis.iter().sum::<f64>() / self.phis.len().max(1) as f64
    }

    fn spread(&self) -> f64 {
        let fold = |f: fn(f64, f64) -> f64| self.phis.iter().copied().reduce(f).unwrap_or(0.0);
        fold(f64::max) - fold(f64::min)
    }

    /// How well it shows something; none if it does not.
    fn shows(&self, why: Why, median: f64) -> Option<f64> {
        let clean = self.guided && !self.flagged;
        let score = match why {
            Why::Disagree => {
                // Odd ones last: what an encoder makes of them says less.
                let odd = if clean { 0.0 } else { -1000.0 };
                (self.minority > 0).then(|| odd + self.minority as f64 + self.spread().min(0.99))
            }
            Why::Typical => clean.then(|| -(self.mean() - median).abs()),
            Why::Subtle => self.accepted_at.filter(|_| clean),
            Why::Swapped => self.swapped.then(|| -self.mean()),
            Why::Strong => clean.then(|| -self.mean()),
            Why::Forced => self.forced.then(|| self.mean()),
            Why::Unguided => (!self.guided).then(|| -self.mean()),
            Why::Flagged => self.flagged.then(|| -self.mean()),
        };
        score.filter(|score| !score.is_nan())
    }
}

/// Chooses at most `wanted` candidates: the reasons take turns, each with the candidate that shows it best and whose
/// sample is not shown yet; samples come again only when none is left. Ties go to the earlier sample and attempt.
///
/// Each comes with its tags: the reason it was chosen for, and those that it shows without comparison.
pub(super) fn choose(candidates: &[Features], wanted: usize) -> Vec<(usize, Vec<Why>)> {
    let mut means: Vec<f64> = candidates.iter().map(Features::mean).collect();
    means.sort_by(f64::total_cmp);
    let median = means.get(means.len() / 2).copied().unwrap_or(0.0);
    let rank = |why: Why| {
        let mut list: Vec<(f64, usize)> = candidates
            .iter()
            .enumerate()
            .filter_map(|(i, candidate)| Some((candidate.shows(why, median)?, i)))
            .collect();
        let place = |i: usize| (candidates[i].sample, candidates[i].attempt);
        list.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| place(a.1).cmp(&place(b.1))));
        list.into_iter().map(|(_, i)| i).collect::<Vec<usize>>()
    };
    let lists = Why::ALL.map(|why| (why, rank(why)));
    let (mut chosen, mut taken, mut samples) = (Vec::new(), HashSet::new(), HashSet::new());
    for again in [false, true] {
        loop {
            let before = chosen.len();
            for (why, list) in &lists {
                let free = |i: &&usize| {
                    !taken.contains(*i) && (again || !samples.contains(&candidates[**i].sample))
                };
                if chosen.len() < wanted
                    && let Some(&i) = list.iter().find(free)
                {
                    taken.insert(i);
                    samples.insert(candidates[i].sample);
                    chosen.push((i, tags(&candidates[i], *why)));
                }
            }
            if chosen.len() == before {
                break;
            }
        }
    }
    chosen
}

fn tags(candidate: &Features, reason: Why) -> Vec<Why> {
    let plain = |why: &Why| match why {
        Why::Disagree => candidate.minority > 0,
        Why::Swapped => candidate.swapped,
        Why::Forced => candidate.forced,
        Why::Unguided => !candidate.guided,
        Why::Flagged => candidate.flagged,
        Why::Typical | Why::Subtle | Why::Strong => false,
    };
    let also = Why::ALL.into_iter().filter(|why| *why != reason && plain(why));
    std::iter::once(reason).chain(also).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(sample: u32, phi: f64) -> Features {
        Features {
            sample,
            attempt: 1,
            phis: vec![phi, phi],
            minority: 0,
            accepted_at: Some(phi),
            swapped: false,
            forced: false,
            guided: true,
            flagged: false,
        }
    }

    #[test]
    fn reasons_take_turns_and_samples_are_not_repeated_early() {
        let mut all: Vec<Features> =
            (0..6).map(|i| candidate(i, 0.5 + 0.05 * f64::from(i))).collect();
        all[1].swapped = true;
        all[4].minority = 1;
        all.push(Features { attempt: 2, ..candidate(4, 0.6) });
        let chosen = choose(&all, 4);
        let samples: Vec<u32> = chosen.iter().map(|(i, _)| all[*i].sample).collect();
        assert_eq!(samples, [4, 2, 5, 1], "disagree, typical, subtle, swapped");
        assert_eq!(chosen[3].1, [Why::Swapped]);
        assert_eq!(choose(&all, 100).len(), 7, "all of them, once each");
        assert_eq!(choose(&all, 100)[..4], chosen[..]);
        assert!(choose(&[], 3).is_empty());
    }

    #[test]
    fn a_phi_that_is_no_number_is_never_typical() {
        let all = [candidate(0, f64::NAN), candidate(1, 0.5)];
        let chosen = choose(&all, 5);
        assert_eq!(chosen[0].0, 1);
    }
}
