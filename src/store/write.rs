//! Writing: waves, encoders, scores, a smaller token budget.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::failure::{is_constraint, sql};
use super::schema::NOW;
use super::{Key, Store, store_error};
use crate::models::encoder::SentenceEncoder;
use crate::sampling::Candidate;
use crate::{Error, Result};

/// One committed batch of generation.
#[derive(Clone, Debug, PartialEq)]
pub struct WaveRecord {
    /// The round: attempt number, from 1.
    pub round: u32,
    /// Number of the wave in its round, from 0.
    pub wave: u32,
    /// The token budget it was packed under.
    pub token_budget: u32,
    /// Wall time of each stage, in seconds.
    pub seconds: BTreeMap<String, f64>,
}

/// A sentence encoder whose scores a store may hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EncoderInfo {
    /// Fingerprint of the encoder's folder.
    pub fingerprint: String,
    /// Its name, as `all-mpnet-base-v2`.
    pub name: String,
    /// Width of its embeddings.
    pub dim: u32,
    /// Tokens it reads before it truncates.
    pub max_tokens: u32,
}

impl EncoderInfo {
    /// The entry of a loaded encoder.
    pub fn of(encoder: &SentenceEncoder) -> Self {
        Self {
            fingerprint: encoder.fingerprint().to_owned(),
            name: encoder.name().to_owned(),
            dim: encoder.dim() as u32,
            max_tokens: encoder.max_tokens() as u32,
        }
    }
}

/// How close a candidate is to its reference, in the eyes of one encoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The candidate.
    pub candidate: Key,
    /// Cosine of the two embeddings, in [-1, 1]; NaN where the encoder gave none. NaN passes no threshold.
    pub phi: f64,
    /// Tokens of the candidate before truncation, special tokens included.
    pub candidate_tokens: u32,
    /// Tokens of the reference before truncation, special tokens included.
    pub reference_tokens: u32,
    /// Whether the encoder did not see the candidate's end.
    pub candidate_truncated: bool,
    /// Whether the encoder did not see the reference's end.
    pub reference_truncated: bool,
}

impl Store {
    /// Adds a wave and all its candidates in one transaction: afterwards all of it is there, or none.
    ///
    /// Errors: the wave or one of the candidates is already stored, two candidates are the same attempt, a
    /// log-probability is not finite, `kept` does not fit `image_tokens`, or the file cannot be written.
    pub fn commit_wave(
        &mut self,
        wave: &WaveRecord,
        candidates: &[(Key, Candidate)],
    ) -> Result<()> {
        let shard = self.manifest.shard.to_string();
        let (transaction, path) = self.begin()?;
        insert_wave(&transaction, path, &shard, wave, candidates.len())?;
        {
            let mut insert = transaction
                .prepare_cached(
                    "INSERT INTO candidates VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                )
                .map_err(sql(path))?;
            for (key, candidate) in candidates {
                let parts = check_candidate(path, key, candidate)?;
                let row = params![
                    key.as_bytes().as_slice(),
                    candidate.sample,
                    candidate.attempt,
                    candidate.guided,
                    candidate.text,
                    parts,
                    candidate.image_tokens,
                    json(path, &candidate.kept)?,
                    candidate.kept.len() as i64,
                    shard,
                    wave.round,
                    wave.wave,
                ];
                insert.execute(row).map_err(|error| {
                    if is_constraint(&error) {
                        let name = describe(key, candidate);
                        store_error(
                            path,
                            format!("{name} is already stored, or breaks a rule: {error}"),
                        )
                    } else {
                        sql(path)(error)
                    }
                })?;
            }
        }
        transaction.commit().map_err(sql(path))
    }

    /// Makes an encoder known. Doing so again changes nothing; another name, width or length under the same
    /// fingerprint is an error.
    pub fn add_encoder(&mut self, encoder: &EncoderInfo) -> Result<()> {
        let (transaction, path) = self.begin()?;
        add_encoder(&transaction, path, encoder)?;
        transaction.commit().map_err(sql(path))
    }

    /// Adds the scores of some encoders (see [`Store::add_encoder`]), by their fingerprints, in one transaction.
    ///
    /// Errors: an encoder or a candidate is unknown, a candidate is already scored, or `phi` is outside [-1, 1].
    pub fn commit_scores(&mut self, scores: &[(&str, &[Score])]) -> Result<()> {
        let mut rows: Vec<(i64, &Score)> = Vec::new();
        for (encoder, scores) in scores {
            let id = self.encoder_id(encoder)?;
            rows.extend(scores.iter().map(|score| (id, score)));
        }
        // In the order of the table, so that each of its pages is changed at once.
        rows.sort_unstable_by_key(|(encoder, score)| (*encoder, score.candidate));
        let (transaction, path) = self.begin()?;
        insert_scores(&transaction, path, &rows)?;
        transaction.commit().map_err(sql(path))
    }

    /// Records that waves from (`round`, `wave`) on are packed under a smaller budget, and why. A run that needed
    /// this says so in its summary: its waves are not those of a run with the first budget.
    pub fn lower_token_budget(
        &mut self,
        round: u32,
        wave: u32,
        token_budget: u32,
        reason: &str,
    ) -> Result<()> {
        let present = self.token_budget()?;
        if token_budget == 0 || token_budget >= present {
            let expected = format!("at least 1 and below the present {present}");
            return Err(Error::argument("store", "smaller token budget", token_budget, expected));
        }
        let shard = self.manifest.shard.to_string();
        let (transaction, path) = self.begin()?;
        let text = format!("INSERT INTO budget_changes VALUES (?1, ?2, ?3, ?4, ?5, {NOW})");
        transaction
            .execute(&text, params![shard, round, wave, token_budget, reason])
            .map_err(sql(path))?;
        transaction.commit().map_err(sql(path))
    }

    /// Starts a transaction that holds the write lock from the first statement on.
    pub(super) fn begin(&mut self) -> Result<(Transaction<'_>, &Path)> {
        let Self { connection, path, lock, .. } = self;
        if lock.is_none() {
            return Err(store_error(path, "opened for reading only"));
        }
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(sql(&*path))?;
        Ok((transaction, path))
    }

    /// The number an encoder has in this file.
    pub(super) fn encoder_id(&self, fingerprint: &str) -> Result<i64> {
        use rusqlite::OptionalExtension;
        self.connection
            .query_row("SELECT id FROM encoders WHERE fingerprint = ?1", [fingerprint], |row| {
                row.get(0)
            })
            .optional()
            .map_err(sql(&self.path))?
            .ok_or_else(|| {
                let message =
                    format!("encoder {fingerprint} is not known to this store; add it first");
                store_error(&self.path, message)
            })
    }
}

pub(super) fn add_encoder(
    connection: &Connection,
    path: &Path,
    encoder: &EncoderInfo,
) -> Result<()> {
    let EncoderInfo { fingerprint, name, dim, max_tokens } = encoder;
    connection
        .execute(
            "INSERT INTO encoders (fingerprint, name, dim, max_tokens) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (fingerprint) DO UPDATE SET name = excluded.name",
            params![fingerprint, name, dim, max_tokens],
        )
        .map_err(sql(path))?;
    let stored = connection
        .query_row(
            "SELECT name, dim, max_tokens FROM encoders WHERE fingerprint = ?1",
            [fingerprint],
            |row| {
                Ok(EncoderInfo {
                    fingerprint: fingerprint.clone(),
                    name: row.get(0)?,
                    dim: row.get(1)?,
                    max_tokens: row.get(2)?,
                })
            },
        )
        .map_err(sql(path))?;
    for (what, stored, got) in
        [("dim", stored.dim, encoder.dim), ("max_tokens", stored.max_tokens, encoder.max_tokens)]
    {
        if stored != got {
            let message = format!(
                "the encoder {name} (fingerprint {fingerprint}) is stored with {what} {stored}, and has {got} now though its files \
                 are the same: use another run folder"
            );
            return Err(store_error(path, message));
        }
    }
    Ok(())
}

fn insert_wave(
    transaction: &Transaction,
    path: &Path,
    shard: &str,
    wave: &WaveRecord,
    candidates: usize,
) -> Result<()> {
    let WaveRecord { round, wave: number, token_budget, seconds } = wave;
    if let Some((stage, value)) = seconds.iter().find(|(_, value)| !value.is_finite()) {
        return Err(Error::argument(
            "store",
            "stage time",
            format!("{stage}: {value}"),
            "finite seconds",
        ));
    }
    let text = format!("INSERT INTO waves VALUES (?1, ?2, ?3, ?4, ?5, ?6, {NOW})");
    let row = params![shard, round, number, token_budget, candidates as i64, json(path, seconds)?];
    transaction.execute(&text, row).map_err(|error| {
        if is_constraint(&error) {
            let name = format!("wave {number} of round {round}");
            store_error(path, format!("{name} is already committed, or breaks a rule: {error}"))
        } else {
            sql(path)(error)
        }
    })?;
    Ok(())
}

fn insert_scores(transaction: &Transaction, path: &Path, rows: &[(i64, &Score)]) -> Result<()> {
    let mut insert = transaction
        .prepare_cached("INSERT INTO scores VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")
        .map_err(sql(path))?;
    for (encoder, score) in rows {
        if score.phi < -1.0 || score.phi > 1.0 {
            let (key, phi) = (score.candidate, score.phi);
            let message = format!("phi of candidate {key} is {phi}, expected -1 to 1");
            return Err(store_error(path, message));
        }
        let row = params![
            encoder,
            score.candidate.as_bytes().as_slice(),
            // SQLite has no NaN: it becomes NULL, and comes back as NaN.
            score.phi,
            score.candidate_tokens,
            score.reference_tokens,
            score.candidate_truncated,
            score.reference_truncated,
        ];
        insert.execute(row).map_err(|error| {
            if is_constraint(&error) {
                let key = score.candidate;
                let what = "unknown to the store, or already scored by this encoder";
                store_error(path, format!("candidate {key} is {what}: {error}"))
            } else {
                sql(path)(error)
            }
        })?;
    }
    Ok(())
}

/// Checks what the tables cannot, and gives the parts as JSON.
fn check_candidate(path: &Path, key: &Key, candidate: &Candidate) -> Result<String> {
    let wrong = |what: String| store_error(path, format!("{}: {what}", describe(key, candidate)));
    if let Some(part) = candidate.parts.iter().find(|part| !part.logprob.is_finite()) {
        return Err(wrong(format!("logprob is {}, expected a finite number", part.logprob)));
    }
    let ascending = candidate.kept.windows(2).all(|pair| pair[0] < pair[1]);
    let inside = candidate.kept.last().is_none_or(|last| *last < candidate.image_tokens);
    if !ascending || !inside {
        let image_tokens = candidate.image_tokens;
        return Err(wrong(format!("kept image tokens must ascend and stay below {image_tokens}")));
    }
    json(path, &candidate.parts)
}

fn describe(key: &Key, candidate: &Candidate) -> String {
    let Candidate { sample, attempt, guided, .. } = candidate;
    let stream = if *guided { "guided" } else { "unguided" };
    format!("candidate {key} (sample {sample}, attempt {attempt}, {stream})")
}

fn json<T: serde::Serialize>(path: &Path, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| store_error(path, error.to_string()))
}

#[cfg(test)]
mod tests {
    //! Here and not in `tests/`: filling a disk needs a limit on the connection itself.

    use super::*;
    use crate::store::{Manifest, Shard};

    #[test]
    fn full_disk_keeps_committed_waves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let manifest = Manifest {
            bdhs_version: "0".into(),
            model_fingerprint: "m".into(),
            model_path: "m".into(),
            sampling: "{}".into(),
            seed: 1,
            token_budget: 10,
            dataset_fingerprint: "d".into(),
            plan_hash: "p".into(),
            shard: Shard::WHOLE,
            created_at: String::new(),
        };
        let mut store = Store::create(&path, &manifest).unwrap();
        let wave = |wave| WaveRecord { round: 1, wave, token_budget: 10, seconds: BTreeMap::new() };
        let candidate = |sample: u32, bytes: usize| {
            let candidate = Candidate {
                sample,
                attempt: 1,
                guided: true,
                text: "x".repeat(bytes),
                parts: vec![],
                image_tokens: 0,
                kept: vec![],
            };
            (Key::from_bytes([sample as u8; 32]), candidate)
        };
        store.commit_wave(&wave(0), &[candidate(0, 10)]).unwrap();
        store.connection.pragma_update(None, "max_page_count", 40).unwrap();

        let error = store.commit_wave(&wave(1), &[candidate(1, 10), candidate(2, 1 << 20)]);
        let message = error.unwrap_err().to_string();
        assert!(message.contains("store.db") && message.contains("disk is full"), "{message}");
        assert_eq!(store.next_wave(1).unwrap(), 1);
        assert_eq!(store.next_wave(2).unwrap(), 0);
        assert_eq!(store.candidate_refs().unwrap().len(), 1);

        store.commit_wave(&wave(1), &[candidate(1, 10)]).unwrap();
        assert_eq!(store.candidate_refs().unwrap().len(), 2);
    }
}
