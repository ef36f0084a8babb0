//! Floor 3: the method. Sentences, cuts, corruption, attempts, acceptance. No networks here.

pub mod acceptance;
pub mod attempts;
mod candidate;
mod config;
pub mod corruption;
pub mod cuts;
mod sentences;

pub use acceptance::Decision;
pub(crate) use attempts::add_part;
pub use attempts::{Attempt, CandidateKey};
pub use candidate::{Candidate, Flag, Part, Stop};
pub use config::{
    CutUnit, MOST_ATTEMPTS, MaskScheme, Newlines, Positions, SETTINGS, SamplingConfig, Setting,
    YesNoRule,
};
pub use cuts::Fragment;
pub use sentences::{End, SentenceRule};
