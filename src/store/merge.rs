//! Several shards of one run into one store.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::failure::sql;
use super::schema::file;
use super::{Key, Manifest, Shard, Store, store_error};
use crate::{Error, Result};

/// What a merge did, over all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MergeSummary {
    /// Shards read.
    pub shards: u64,
    /// Candidates added.
    pub candidates: u64,
    /// Candidates that were there already, with the same content.
    pub candidates_present: u64,
    /// Scores added.
    pub scores: u64,
    /// Encoders added.
    pub encoders: u64,
    /// Waves added.
    pub waves: u64,
}

/// Adds all rows of `shards` to the store `into`, which is made if it is missing.
///
/// Every shard must come from the same run (all fields of the manifest but shard, token budget, model path and
/// time), and rows of the same name must have the same content. All manifests are compared before anything is
/// written; then one shard is one transaction, so after an error the shards before it are in, and merging again
/// is safe: it adds what is missing.
pub fn merge(into: impl AsRef<Path>, shards: &[PathBuf]) -> Result<MergeSummary> {
    let into = into.as_ref();
    let Some(first) = shards.first() else {
        return Err(Error::argument("merge", "number of shards", 0, "at least 1"));
    };
    let fitting = Manifest { shard: Shard::Merged, ..Store::open(first)?.manifest().clone() };
    for shard in shards {
        if same_file(into, shard) {
            return Err(store_error(into, "cannot be merged into itself"));
        }
        fitting.check_shard(Store::open(shard)?.manifest(), shard)?;
    }
    let mut target = if Store::is_begun(into)? {
        let mut target = Store::open_writable(into)?;
        match target.samples()? {
            0 => target.begin_anew(&fitting)?,
            _ => target.manifest().check_shard(&fitting, first)?,
        }
        target
    } else {
        Store::create(into, &fitting)?
    };
    let mut summary = MergeSummary::default();
    for shard in shards {
        add_shard(&mut target, shard, &mut summary)?;
        summary.shards += 1;
    }
    Ok(summary)
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn add_shard(target: &mut Store, shard: &Path, summary: &mut MergeSummary) -> Result<()> {
    let Store { connection, path, .. } = target;
    let file = file(shard)?;
    let Some(name) = file.to_str() else {
        return Err(store_error(shard, "the path is not valid UTF-8"));
    };
    connection.execute("ATTACH DATABASE ?1 AS shard", [name]).map_err(sql(shard))?;
    let result = copy_rows(connection, path, shard, summary);
    connection.execute("DETACH DATABASE shard", []).map_err(sql(shard))?;
    result
}

fn copy_rows(
    connection: &mut Connection,
    path: &Path,
    shard: &Path,
    summary: &mut MergeSummary,
) -> Result<()> {
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql(path))?;
    refuse_conflicts(&transaction, shard)?;
    let add = |text: &str| transaction.execute(text, []).map(|rows| rows as u64).map_err(sql(path));
    let waves =
        add("INSERT INTO main.waves SELECT * FROM shard.waves WHERE true ON CONFLICT DO NOTHING")?;
    add(
        "INSERT INTO main.budget_changes SELECT * FROM shard.budget_changes WHERE true ON CONFLICT DO NOTHING",
    )?;
    let candidates = add(
        "INSERT INTO main.candidates SELECT * FROM shard.candidates AS theirs WHERE NOT EXISTS \
         (SELECT 1 FROM main.candidates AS ours WHERE ours.key = theirs.key) ORDER BY sample, attempt, guided DESC",
    )?;
    let all: i64 = transaction
        .query_row("SELECT count(*) FROM shard.candidates", [], |row| row.get(0))
        .map_err(sql(shard))?;
    let encoders = add("INSERT INTO main.encoders (fingerprint, name, dim, max_tokens) \
         SELECT fingerprint, name, dim, max_tokens FROM shard.encoders WHERE true ORDER BY fingerprint \
         ON CONFLICT DO NOTHING")?;
    let scores = add(
        "INSERT INTO main.scores SELECT ours.id, candidate, phi, candidate_tokens, reference_tokens, \
         candidate_truncated, reference_truncated FROM shard.scores \
         JOIN shard.encoders AS theirs ON theirs.id = encoder \
         JOIN main.encoders AS ours ON ours.fingerprint = theirs.fingerprint WHERE true ON CONFLICT DO NOTHING",
    )?;
    transaction.commit().map_err(sql(path))?;
    summary.waves += waves;
    summary.candidates += candidates;
    summary.candidates_present += all as u64 - candidates;
    summary.encoders += encoders;
    summary.scores += scores;
    Ok(())
}

/// Names the first row that both sides hold with different content.
fn refuse_conflicts(connection: &Connection, shard: &Path) -> Result<()> {
    let first = |text: &str| {
        connection
            .query_row(text, [], |row| {
                Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, u32>(1)?, row.get::<_, u32>(2)?))
            })
            .optional()
            .map_err(sql(shard))
    };
    let conflicts = [
        (
            "another text, mask or part under the same key",
            "SELECT key, ours.sample, ours.attempt FROM main.candidates AS ours \
             JOIN shard.candidates AS theirs USING (key) \
             WHERE ours.text <> theirs.text OR ours.parts <> theirs.parts OR ours.kept <> theirs.kept \
             OR ours.image_tokens <> theirs.image_tokens \
             OR (ours.sample, ours.attempt, ours.guided) <> (theirs.sample, theirs.attempt, theirs.guided) \
             ORDER BY 2, 3 LIMIT 1",
        ),
        (
            "another key for the same attempt",
            "SELECT theirs.key, sample, attempt FROM main.candidates AS ours \
             JOIN shard.candidates AS theirs USING (sample, attempt, guided) \
             WHERE ours.key <> theirs.key ORDER BY 2, 3 LIMIT 1",
        ),
        (
            "another score by the same encoder",
            "SELECT ours.candidate, c.sample, c.attempt FROM main.scores AS ours \
             JOIN main.encoders AS e ON e.id = ours.encoder \
             JOIN shard.encoders AS f USING (fingerprint) \
             JOIN shard.scores AS theirs ON theirs.encoder = f.id AND theirs.candidate = ours.candidate \
             JOIN main.candidates AS c ON c.key = ours.candidate \
             WHERE ours.phi IS NOT theirs.phi OR ours.candidate_tokens <> theirs.candidate_tokens \
             OR ours.reference_tokens <> theirs.reference_tokens \
             OR ours.candidate_truncated <> theirs.candidate_truncated \
             OR ours.reference_truncated <> theirs.reference_truncated ORDER BY 2, 3 LIMIT 1",
        ),
    ];
    for (what, text) in conflicts {
        if let Some((key, sample, attempt)) = first(text)? {
            let key = Key::from_bytes(key);
            return Err(store_error(
                shard,
                format!(
                    "candidate {key} (sample {sample}, attempt {attempt}) has {what} in the store merged into"
                ),
            ));
        }
    }
    refuse_row_conflicts(connection, shard)
}

/// As [`refuse_conflicts`], for rows that are no candidate's.
fn refuse_row_conflicts(connection: &Connection, shard: &Path) -> Result<()> {
    let conflicts = [
        (
            "encoder",
            "SELECT fingerprint FROM main.encoders AS ours JOIN shard.encoders AS theirs USING (fingerprint) \
             WHERE (ours.name, ours.dim, ours.max_tokens) <> (theirs.name, theirs.dim, theirs.max_tokens) \
             ORDER BY 1 LIMIT 1",
        ),
        (
            "wave (shard round wave)",
            "SELECT shard || ' ' || round || ' ' || wave FROM main.waves AS ours \
             JOIN shard.waves AS theirs USING (shard, round, wave) \
             WHERE (ours.token_budget, ours.candidates, ours.seconds, ours.committed_at) \
             <> (theirs.token_budget, theirs.candidates, theirs.seconds, theirs.committed_at) ORDER BY 1 LIMIT 1",
        ),
    ];
    for (what, text) in conflicts {
        let found: Option<String> =
            connection.query_row(text, [], |row| row.get(0)).optional().map_err(sql(shard))?;
        if let Some(name) = found {
            let message = format!("{what} {name} has other content in the store merged into");
            return Err(store_error(shard, message));
        }
    }
    Ok(())
}
