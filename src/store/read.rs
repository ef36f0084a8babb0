//! Reading. Every list is in the order of (sample, attempt, guided first), or as its function says.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use rusqlite::{OptionalExtension, Params, Row};

use super::failure::sql;
use super::{EncoderInfo, Key, Score, Store, WaveRecord, store_error};
use crate::sampling::Candidate;
use crate::{Error, Result};

/// A candidate without its texts: enough to plan with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CandidateRef {
    /// Its key.
    pub key: Key,
    /// Index of its sample.
    pub sample: u32,
    /// Attempt number, from 1.
    pub attempt: u32,
    /// Guided by the reference, or free.
    pub guided: bool,
}

/// A committed wave.
#[derive(Clone, Debug, PartialEq)]
pub struct Wave {
    /// What was recorded with it.
    pub record: WaveRecord,
    /// The shard that made it, as in [`Manifest::shard`](super::Manifest::shard).
    pub shard: String,
    /// How many candidates it added.
    pub candidates: u32,
    /// UTC time, `2026-01-31T12:00:00Z`.
    pub committed_at: String,
}

/// A smaller token budget, and from where on it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetChange {
    /// The shard that lowered it.
    pub shard: String,
    /// First round under the new budget.
    pub round: u32,
    /// First wave of that round under it.
    pub wave: u32,
    /// The new budget.
    pub token_budget: u32,
    /// Why.
    pub reason: String,
}

/// A score with its place in the method.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreRow {
    /// Index of the sample.
    pub sample: u32,
    /// Attempt number, from 1.
    pub attempt: u32,
    /// Guided by the reference, or free.
    pub guided: bool,
    /// The score.
    pub score: Score,
}

/// A candidate that an encoder has not scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unscored {
    /// Its key.
    pub key: Key,
    /// Index of its sample.
    pub sample: u32,
    /// The response to embed.
    pub text: String,
}

const CANDIDATE: &str =
    "SELECT key, sample, attempt, guided, text, parts, image_tokens, kept FROM candidates";
/// CROSS JOIN is SQLite's word for this order: candidates first, and the scores of those that are asked for.
const SCORES: &str = "SELECT sample, attempt, guided, key, phi, candidate_tokens, reference_tokens, \
     candidate_truncated, reference_truncated FROM candidates CROSS JOIN scores ON candidate = key AND encoder = ?1";
const ORDER: &str = "ORDER BY sample, attempt, guided DESC";

impl Store {
    /// The candidate with this key.
    pub fn candidate(&self, key: &Key) -> Result<Option<Candidate>> {
        let text = format!("{CANDIDATE} WHERE key = ?1");
        let mut statement = self.connection.prepare_cached(&text).map_err(sql(&self.path))?;
        let raw = statement
            .query_row([key.as_bytes().as_slice()], RawCandidate::read)
            .optional()
            .map_err(sql(&self.path))?;
        raw.map(|raw| raw.parse(&self.path).map(|(_, candidate)| candidate)).transpose()
    }

    /// All candidates of one sample.
    pub fn candidates_for(&self, sample: u32) -> Result<Vec<(Key, Candidate)>> {
        self.candidates_where("WHERE sample = ?1", [sample])
    }

    /// All candidates.
    pub fn candidates(&self) -> Result<Vec<(Key, Candidate)>> {
        self.candidates_where("", [])
    }

    /// Calls `f` with every candidate, one at a time in memory.
    pub fn each_candidate(&self, mut f: impl FnMut(Key, Candidate) -> Result<()>) -> Result<()> {
        let text = format!("{CANDIDATE} {ORDER}");
        let mut statement = self.connection.prepare_cached(&text).map_err(sql(&self.path))?;
        let mut rows = statement.query([]).map_err(sql(&self.path))?;
        while let Some(row) = rows.next().map_err(sql(&self.path))? {
            let raw = RawCandidate::read(row).map_err(sql(&self.path))?;
            let (key, candidate) = raw.parse(&self.path)?;
            f(key, candidate)?;
        }
        Ok(())
    }

    /// All candidates, without their texts.
    pub fn candidate_refs(&self) -> Result<Vec<CandidateRef>> {
        self.candidate_refs_where("", [])
    }

    /// The candidates of some samples, without their texts.
    pub fn candidate_refs_of(&self, samples: Range<u32>) -> Result<Vec<CandidateRef>> {
        self.candidate_refs_where(
            "WHERE sample >= ?1 AND sample < ?2",
            [samples.start, samples.end],
        )
    }

    fn candidate_refs_where(&self, filter: &str, params: impl Params) -> Result<Vec<CandidateRef>> {
        let text = format!("SELECT key, sample, attempt, guided FROM candidates {filter} {ORDER}");
        self.rows(&text, params, |row| {
            Ok(CandidateRef {
                key: Key::from_bytes(row.get(0)?),
                sample: row.get(1)?,
                attempt: row.get(2)?,
                guided: row.get(3)?,
            })
        })
    }

    /// The first wave number of a round that this store's shard has not used.
    pub fn next_wave(&self, round: u32) -> Result<u32> {
        let shard = self.manifest.shard.to_string();
        self.connection
            .prepare_cached(
                "SELECT coalesce(max(wave) + 1, 0) FROM waves WHERE shard = ?1 AND round = ?2",
            )
            .and_then(|mut statement| statement.query_row((shard, round), |row| row.get(0)))
            .map_err(sql(&self.path))
    }

    /// All committed waves, by shard, round and wave.
    pub fn waves(&self) -> Result<Vec<Wave>> {
        let text = "SELECT shard, round, wave, token_budget, candidates, committed_at, seconds FROM waves \
                    ORDER BY shard, round, wave";
        let raw = self.rows(text, [], |row| {
            let record = WaveRecord {
                round: row.get(1)?,
                wave: row.get(2)?,
                token_budget: row.get(3)?,
                seconds: BTreeMap::new(),
            };
            let wave = Wave {
                record,
                shard: row.get(0)?,
                candidates: row.get(4)?,
                committed_at: row.get(5)?,
            };
            Ok((wave, row.get::<_, String>(6)?))
        })?;
        raw.into_iter()
            .map(|(mut wave, seconds)| {
                let at = || format!("wave {} of round {}", wave.record.wave, wave.record.round);
                wave.record.seconds = parse(&self.path, at, &seconds)?;
                Ok(wave)
            })
            .collect()
    }

    /// The token budget in force: the manifest's, or the smallest recorded since.
    pub fn token_budget(&self) -> Result<u32> {
        let smallest = self.budget_changes()?.into_iter().map(|change| change.token_budget).min();
        Ok(smallest.map_or(self.manifest.token_budget, |b| b.min(self.manifest.token_budget)))
    }

    /// Each time the budget had to be lowered, by shard, round and wave.
    pub fn budget_changes(&self) -> Result<Vec<BudgetChange>> {
        let text = "SELECT shard, round, wave, token_budget, reason FROM budget_changes \
                    ORDER BY shard, round, wave, token_budget DESC";
        self.rows(text, [], |row| {
            Ok(BudgetChange {
                shard: row.get(0)?,
                round: row.get(1)?,
                wave: row.get(2)?,
                token_budget: row.get(3)?,
                reason: row.get(4)?,
            })
        })
    }

    /// The encoders known to the store, by name and fingerprint.
    pub fn encoders(&self) -> Result<Vec<EncoderInfo>> {
        let text =
            "SELECT fingerprint, name, dim, max_tokens FROM encoders ORDER BY name, fingerprint";
        self.rows(text, [], |row| {
            Ok(EncoderInfo {
                fingerprint: row.get(0)?,
                name: row.get(1)?,
                dim: row.get(2)?,
                max_tokens: row.get(3)?,
            })
        })
    }

    /// The scores of one encoder, by candidate. An encoder without scores gives none; an unknown one is an error.
    pub fn scores(&self, encoder: &str) -> Result<BTreeMap<Key, Score>> {
        let rows = self.score_rows(encoder)?;
        Ok(rows.into_iter().map(|row| (row.score.candidate, row.score)).collect())
    }

    /// What one encoder says of one candidate, if it has scored it.
    pub fn score(&self, encoder: &str, candidate: &Key) -> Result<Option<Score>> {
        let id = self.encoder_id(encoder)?;
        let text = format!("{SCORES} WHERE key = ?2");
        let rows = self.checked_scores(&text, (id, candidate.as_bytes().as_slice()))?;
        Ok(rows.first().map(|row| row.score))
    }

    /// The scores of one encoder, in candidate order.
    pub fn score_rows(&self, encoder: &str) -> Result<Vec<ScoreRow>> {
        let id = self.encoder_id(encoder)?;
        self.checked_scores(&format!("{SCORES} {ORDER}"), [id])
    }

    /// The scores of one encoder for some samples, in candidate order.
    pub fn score_rows_of(&self, encoder: &str, samples: Range<u32>) -> Result<Vec<ScoreRow>> {
        let id = self.encoder_id(encoder)?;
        let text = format!("{SCORES} WHERE sample >= ?2 AND sample < ?3 {ORDER}");
        self.checked_scores(&text, (id, samples.start, samples.end))
    }

    /// Scores, none of which is outside its range, as a file that was changed by other means may have them.
    fn checked_scores(&self, text: &str, params: impl Params) -> Result<Vec<ScoreRow>> {
        let rows = self.rows(text, params, read_score)?;
        let wrong = rows.iter().find(|row| row.score.phi.abs() > 1.0);
        match wrong {
            None => Ok(rows),
            Some(ScoreRow { sample, attempt, score, .. }) => {
                let message = format!(
                    "the phi of sample {sample}, attempt {attempt} is {}, expected a number in [-1, 1]; the database was \
                     changed, restore a copy",
                    score.phi
                );
                Err(store_error(&self.path, message))
            }
        }
    }

    /// How many samples have a candidate.
    pub fn samples(&self) -> Result<u64> {
        let text = "SELECT count(DISTINCT sample) FROM candidates";
        let count = self.connection.query_row(text, [], |row| row.get::<_, u32>(0));
        count.map(u64::from).map_err(sql(&self.path))
    }

    /// The candidates that one encoder has yet to score.
    pub fn unscored(&self, encoder: &str) -> Result<Vec<Unscored>> {
        let id = self.encoder_id(encoder)?;
        let text = format!(
            "SELECT key, sample, text FROM candidates WHERE NOT EXISTS \
             (SELECT 1 FROM scores WHERE encoder = ?1 AND candidate = key) {ORDER}"
        );
        self.rows(&text, [id], |row| {
            Ok(Unscored {
                key: Key::from_bytes(row.get(0)?),
                sample: row.get(1)?,
                text: row.get(2)?,
            })
        })
    }

    fn candidates_where(&self, filter: &str, params: impl Params) -> Result<Vec<(Key, Candidate)>> {
        let raw =
            self.rows(&format!("{CANDIDATE} {filter} {ORDER}"), params, RawCandidate::read)?;
        raw.into_iter().map(|raw| raw.parse(&self.path)).collect()
    }

    fn rows<T>(
        &self,
        text: &str,
        params: impl Params,
        read: impl FnMut(&Row) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.connection
            .prepare_cached(text)
            .and_then(|mut statement| statement.query_map(params, read)?.collect())
            .map_err(sql(&self.path))
    }
}

fn read_score(row: &Row) -> rusqlite::Result<ScoreRow> {
    let score = Score {
        candidate: Key::from_bytes(row.get(3)?),
        phi: row.get::<_, Option<f64>>(4)?.unwrap_or(f64::NAN),
        candidate_tokens: row.get(5)?,
        reference_tokens: row.get(6)?,
        candidate_truncated: row.get(7)?,
        reference_truncated: row.get(8)?,
    };
    Ok(ScoreRow { sample: row.get(0)?, attempt: row.get(1)?, guided: row.get(2)?, score })
}

/// A candidate as stored, its lists still JSON.
struct RawCandidate {
    key: Key,
    candidate: Candidate,
    parts: String,
    kept: String,
}

impl RawCandidate {
    fn read(row: &Row) -> rusqlite::Result<Self> {
        let candidate = Candidate {
            sample: row.get(1)?,
            attempt: row.get(2)?,
            guided: row.get(3)?,
            text: row.get(4)?,
            parts: Vec::new(),
            image_tokens: row.get(6)?,
            kept: Vec::new(),
        };
        let key = Key::from_bytes(row.get(0)?);
        Ok(Self { key, candidate, parts: row.get(5)?, kept: row.get(7)? })
    }

    fn parse(self, path: &Path) -> Result<(Key, Candidate)> {
        let at = || format!("candidate {}", self.key);
        let parts = parse(path, at, &self.parts)?;
        let kept = parse(path, at, &self.kept)?;
        Ok((self.key, Candidate { parts, kept, ..self.candidate }))
    }
}

fn parse<T: serde::de::DeserializeOwned>(
    path: &Path,
    at: impl Fn() -> String,
    text: &str,
) -> Result<T> {
    serde_json::from_str(text).map_err(|error| Error::invalid(path, at(), error.to_string()))
}
