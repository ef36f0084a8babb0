//! What a store was made with, and whether a run fits it.

use rusqlite::{Connection, Row};
use serde_json::Value;
use std::path::Path;

use super::failure::sql;
use super::schema::NOW;
use crate::{Error, Result};

/// The one row that says what made a store.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Version of the crate that made it.
    pub bdhs_version: String,
    /// Fingerprint of the model folder (weights, tokenizer, configuration).
    pub model_fingerprint: String,
    /// Where that model was read from; recorded only, the fingerprint decides.
    pub model_path: String,
    /// Every setting that changes what is generated, as
    /// [`canonical_generation`](crate::sampling::SamplingConfig::canonical_generation) gives them.
    pub sampling: String,
    /// Seed of the counter-based random draws.
    pub seed: u64,
    /// Most tokens in one wave. Chosen once: resuming takes the store's, so it is not compared.
    pub token_budget: u32,
    /// Fingerprint of the dataset (samples and images).
    pub dataset_fingerprint: String,
    /// Hash of the whole plan, before it is divided among shards.
    pub plan_hash: String,
    /// Which part of the samples this store covers.
    pub shard: Shard,
    /// UTC time of creation, `2026-01-31T12:00:00Z`. Set by the store; empty in a wanted manifest.
    pub created_at: String,
}

/// Which part of a run's samples a store covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shard {
    /// Part `index` (from 0) of `count`; `0/1` is a whole run.
    Part {
        /// From 0.
        index: u32,
        /// At least 1.
        count: u32,
    },
    /// The union of several parts.
    Merged,
}

impl Shard {
    /// A run that is not divided.
    pub const WHOLE: Self = Self::Part { index: 0, count: 1 };
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Part { index, count } => write!(f, "{index}/{count}"),
            Self::Merged => f.write_str("merged"),
        }
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    /// Reads `0/4` or `merged`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "merged" {
            return Ok(Self::Merged);
        }
        let parts = text.split_once('/').and_then(|(index, count)| {
            Some((index.parse::<u32>().ok()?, count.parse::<u32>().ok()?))
        });
        match parts {
            Some((index, count)) if index < count => Ok(Self::Part { index, count }),
            _ => Err(format!(
                "{text:?} is no shard, expected INDEX/COUNT with INDEX < COUNT, as 0/4"
            )),
        }
    }
}

impl Manifest {
    /// Every field in which a run that wants `wanted` does not fit this store: `(field, stored, wanted)`.
    fn differences(&self, wanted: &Self) -> Vec<(String, String, String)> {
        let mut found = Vec::new();
        let mut compare = |field: &str, stored: &str, wanted: &str| {
            if stored != wanted {
                found.push((field.to_owned(), stored.to_owned(), wanted.to_owned()));
            }
        };
        compare("bdhs_version", &self.bdhs_version, &wanted.bdhs_version);
        compare("model_fingerprint", &self.model_fingerprint, &wanted.model_fingerprint);
        compare("seed", &self.seed.to_string(), &wanted.seed.to_string());
        compare("dataset_fingerprint", &self.dataset_fingerprint, &wanted.dataset_fingerprint);
        compare("plan_hash", &self.plan_hash, &wanted.plan_hash);
        let [ours, theirs] = [&self.sampling, &wanted.sampling].map(|text| parse_or_text(text));
        compare_json("sampling", Some(&ours), Some(&theirs), &mut found);
        found
    }

    /// Refuses a store that a run with `wanted` may not continue. A merged store is continued by a whole run.
    pub(super) fn check_run(&self, wanted: &Self, path: &Path) -> Result<()> {
        let mut found = self.differences(wanted);
        let continues_merged = self.shard == Shard::Merged && wanted.shard == Shard::WHOLE;
        if self.shard != wanted.shard && !continues_merged {
            found.push(("shard".into(), self.shard.to_string(), wanted.shard.to_string()));
        }
        let rule = |manifest: &Self| {
            manifest.dataset_fingerprint.split_once(':').map(|(rule, _)| rule.to_owned())
        };
        let advice = match rule(self) == rule(wanted) {
            true => "use another run folder, or the settings it was made with",
            false => {
                "another version of bdhs made the store and computed dataset_fingerprint by another rule, so the data may be the \
                 same; a finished run can still be read by `bdhs report`; to continue, use that version, or begin in another run folder"
            }
        };
        refuse(path, "this run wants", &found, advice)
    }

    /// Refuses a shard at `path` that does not belong into the store with this manifest.
    pub(super) fn check_shard(&self, shard: &Self, path: &Path) -> Result<()> {
        let found = shard.differences(self);
        refuse(path, "the store merged into has", &found, "only shards of one run can be merged")
    }

    pub(super) fn insert(&self, connection: &Connection, path: &Path) -> Result<()> {
        let text =
            format!("INSERT INTO manifest VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, {NOW})");
        let row = rusqlite::params![
            self.bdhs_version,
            self.model_fingerprint,
            self.model_path,
            self.sampling,
            self.seed.to_string(),
            self.token_budget,
            self.dataset_fingerprint,
            self.plan_hash,
            self.shard.to_string(),
        ];
        connection.execute(&text, row).map_err(sql(path))?;
        Ok(())
    }

    pub(super) fn read(connection: &Connection, path: &Path) -> Result<Self> {
        let raw = connection
            .query_row(
                "SELECT bdhs_version, model_fingerprint, model_path, token_budget, dataset_fingerprint, plan_hash, \
                 created_at, sampling, seed, shard FROM manifest",
                [],
                RawManifest::read,
            )
            .map_err(sql(path))?;
        let wrong = |field: &str, value: &str, problem: String| {
            Error::invalid(path, format!("manifest field {field}"), format!("{value:?}: {problem}"))
        };
        let seed = raw.seed.parse().map_err(|_| {
            wrong("seed", &raw.seed, "expected a whole number from 0 to 2^64 - 1".into())
        })?;
        let shard = raw.shard.parse().map_err(|error| wrong("shard", &raw.shard, error))?;
        Ok(Self { seed, shard, ..raw.plain })
    }
}

/// The row as stored, before its texts are parsed.
struct RawManifest {
    plain: Manifest,
    seed: String,
    shard: String,
}

impl RawManifest {
    fn read(row: &Row) -> rusqlite::Result<Self> {
        let plain = Manifest {
            bdhs_version: row.get(0)?,
            model_fingerprint: row.get(1)?,
            model_path: row.get(2)?,
            sampling: row.get(7)?,
            seed: 0,
            token_budget: row.get(3)?,
            dataset_fingerprint: row.get(4)?,
            plan_hash: row.get(5)?,
            shard: Shard::WHOLE,
            created_at: row.get(6)?,
        };
        Ok(Self { plain, seed: row.get(8)?, shard: row.get(9)? })
    }
}

fn refuse(path: &Path, who: &str, found: &[(String, String, String)], advice: &str) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let fields: Vec<_> = found
        .iter()
        .map(|(field, stored, wanted)| format!("{field} is {stored} in the store, {who} {wanted}"))
        .collect();
    Err(Error::Store { path: path.into(), message: format!("{}; {advice}", fields.join("; ")) })
}

/// The settings as JSON, or, should someone have put other text there, that text.
fn parse_or_text(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// Walks two JSON values side by side and notes each leaf that differs under its dotted name.
fn compare_json(
    name: &str,
    stored: Option<&Value>,
    wanted: Option<&Value>,
    found: &mut Vec<(String, String, String)>,
) {
    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (stored, wanted) {
        let mut keys: Vec<_> = a.keys().chain(b.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            compare_json(&format!("{name}.{key}"), a.get(key), b.get(key), found);
        }
    } else if stored != wanted {
        let show = |value: Option<&Value>| value.map_or("absent".into(), Value::to_string);
        found.push((name.to_owned(), show(stored), show(wanted)));
    }
}
