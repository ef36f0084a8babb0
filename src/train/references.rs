//! Reference log-probabilities, kept in a file that trainings of one base share: one JSON line a pair.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::trainer::{Example, Trainer};
use crate::engine::{Progress, checkpoint};
use crate::{Error, Result};

/// Log-probabilities by what decides them.
pub(super) struct References {
    path: PathBuf,
    file: fs::File,
    base: String,
    known: HashMap<String, [f64; 2]>,
}

#[derive(Serialize, Deserialize)]
struct Reference {
    pair: String,
    log_probs: [f64; 2],
}

impl References {
    pub fn open(path: &Path, base: &str, dtype: &str) -> Result<Self> {
        let mut known = HashMap::new();
        if path.is_file() {
            let text = fs::read_to_string(path).map_err(Error::io(path))?;
            // A torn last line is what a kill leaves; its pair is computed again.
            let lines =
                text.lines().filter_map(|line| serde_json::from_str::<Reference>(line).ok());
            known.extend(lines.map(|line| (line.pair, line.log_probs)));
        }
        let file = fs::OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(Error::io(path))?;
        Ok(Self { path: path.to_owned(), file, base: format!("{base}:{dtype}"), known })
    }

    /// Sets the reference of every example, computing those that are not known.
    pub fn fill(
        &mut self,
        examples: &mut [Example],
        trainer: &Trainer,
        progress: &dyn Progress,
    ) -> Result<()> {
        progress.begin("training: reference", Some(examples.len() as u64));
        // What a stop may lose.
        const CHUNK: usize = 64;
        for chunk in examples.chunks_mut(CHUNK) {
            checkpoint(progress)?;
            let names = chunk.iter().map(|e| self.name(e)).collect::<Result<Vec<String>>>()?;
            let known = |name: &String| self.known.contains_key(name);
            let missing: Vec<usize> = (0..chunk.len()).filter(|&i| !known(&names[i])).collect();
            let todo: Vec<&Example> = missing.iter().map(|&i| &chunk[i]).collect();
            let found = trainer.references(&todo)?;
            for (&i, log_probs) in missing.iter().zip(found) {
                self.put(names[i].clone(), log_probs)?;
            }
            for (example, name) in chunk.iter_mut().zip(&names) {
                example.reference = self.known[name];
            }
            progress.advance(chunk.len() as u64);
        }
        Ok(())
    }

    /// What decides a pair's log-probabilities.
    fn name(&self, example: &Example) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.base.as_bytes());
        for picture in &example.pair.images {
            hasher.update(&picture.content_hash()?);
        }
        hasher.update(format!("{:?}", example.sequences).as_bytes());
        Ok(hasher.finalize().to_hex().to_string())
    }

    fn put(&mut self, pair: String, log_probs: [f64; 2]) -> Result<()> {
        self.known.insert(pair.clone(), log_probs);
        // The line's end comes first, so that a torn line before it stays alone.
        let line = serde_json::to_string(&Reference { pair, log_probs })
            .map_err(|e| Error::invalid(&self.path, "", e.to_string()))?;
        self.file.write_all(format!("\n{line}\n").as_bytes()).map_err(Error::io(&self.path))
    }
}
