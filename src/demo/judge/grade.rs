//! How the demo's judge grades: claims against the scene, and against what was asked.

use super::claims::{Claim, cells, claims, words};
use crate::demo::scene::Scene;

/// What was found out about an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Claims that are false.
    pub wrong: Vec<Claim>,
    /// Claims that are true.
    pub right: usize,
    /// The share of the reference's claims that the answer makes, a yes or no among them.
    pub covered: f64,
}

/// The word that a yes/no answer begins with.
fn polarity(text: &str) -> Option<bool> {
    match words(text).next()?.to_lowercase().as_str() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// Holds an answer against a scene and a reference. A yes where the reference says no, or the other way round, is wrong in
/// every claim that the two do not share.
pub fn examine(answer: &str, reference: &str, scene: &Scene) -> Verdict {
    let (said, expected) = (claims(answer), claims(reference));
    let (mut right, mut wrong): (Vec<Claim>, Vec<Claim>) =
        said.iter().partition(|claim| claim.holds(scene));
    let (mut hits, mut wanted) =
        (expected.iter().filter(|claim| said.contains(claim)).count(), expected.len());
    if let Some(truth) = polarity(reference) {
        wanted += 1;
        match polarity(answer) {
            Some(given) if given == truth => hits += 1,
            Some(_) => {
                let (shared, other) = right.into_iter().partition(|c| expected.contains(c));
                right = shared;
                wrong.extend::<Vec<Claim>>(other);
                // A bare "No." makes no claim of its own: it denies the reference's.
                if wrong.is_empty() {
                    wrong.extend(expected.first());
                }
            }
            None => {}
        }
    }
    let covered = if wanted == 0 { 0.0 } else { hits as f64 / wanted as f64 };
    Verdict { wrong, right: right.len(), covered }
}

/// MMHal-Bench's scale: 3 to 6 without hallucination, 0 to 2 with.
pub fn rating(verdict: &Verdict) -> u8 {
    let informative = match verdict.covered {
        c if c >= 0.8 => 2,
        c if c > 0.0 => 1,
        _ => u8::from(verdict.right > 1),
    };
    match (verdict.wrong.is_empty(), informative) {
        (true, 2) if verdict.right > 2 => 6,
        (true, level) => 3 + level,
        (false, level) => level,
    }
}

/// LLaVA-Bench's scale, 1 to 10: half for the share of claims that are true, half for the reference's claims.
pub fn ten(verdict: &Verdict) -> u8 {
    let said = verdict.right + verdict.wrong.len();
    let correct = if said == 0 { verdict.covered } else { verdict.right as f64 / said as f64 };
    1 + (4.5 * correct + 4.5 * verdict.covered).round() as u8
}

/// MM-Vet's grade, 0 to 1 in tenths: the share of `<AND>` parts that the answer has, any of the `<OR>` alternatives.
pub fn share(answer: &str, truth: &str) -> f64 {
    let alternative = |truth: &str| {
        let parts: Vec<&str> = truth.split("<AND>").map(str::trim).collect();
        let had = parts.iter().filter(|part| has(answer, part)).count();
        had as f64 / parts.len() as f64
    };
    let best = truth.split("<OR>").map(alternative).fold(0.0, f64::max);
    (best * 10.0).round() / 10.0
}

/// Whether an answer has a part of the truth: a place if it names that one and no other, "red star" if it says so in any words,
/// else the words as they are.
fn has(answer: &str, part: &str) -> bool {
    let lower = |text: &str| words(text).map(str::to_lowercase).collect::<Vec<_>>();
    let (wanted, given) = (lower(part), lower(answer));
    if let [cell] = cells(part)[..] {
        return cells(answer) == [cell];
    }
    let coloured = |claim: &&Claim| matches!(claim, Claim::Coloured(..));
    if let Some(claim) = claims(part).iter().find(coloured) {
        return claims(answer).contains(claim);
    }
    !wanted.is_empty() && given.windows(wanted.len()).any(|window| window == wanted)
}
