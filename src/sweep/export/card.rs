//! A cell's `README.md`: a data card, as the hub shows it.

use super::{ExportOptions, Exported, Exporter};
use crate::config::{ExportFormat, threshold_text};
use crate::sweep::grid::Cell;

/// What every column holds.
const COLUMNS: [(&str, &str); 17] = [
    ("images", "the pictures of the prompt"),
    ("prompt", "messages up to the question; one `image` part a picture"),
    ("chosen", "the preferred answer, from the data"),
    ("rejected", "the answer that was sampled without most of the picture"),
    ("id", "the row's name in the data"),
    ("sample", "its number, from 0"),
    ("attempt", "which attempt was accepted, from 1"),
    ("guided", "whether it followed the sentences of the chosen answer"),
    ("forced", "whether it was taken as the last attempt, whatever its similarity"),
    ("encoder", "the sentence encoder that decided"),
    ("threshold", "accepted if the similarity is below"),
    ("phi", "cosine similarity of both answers; null where it is no number"),
    ("scores", "what every encoder of the run says"),
    (
        "mask",
        "share of image tokens hidden, how many stayed, and a key that is equal for equal masks",
    ),
    ("flags", "what a reader may want to know of the rejected answer"),
    ("candidate", "its key in the run's store"),
    ("seed", "of every random draw"),
];

impl Exporter<'_> {
    /// The card of a cell.
    pub(super) fn card(&self, cell: &Cell, options: &ExportOptions, done: &Exported) -> String {
        let manifest = self.store.manifest();
        let size = match done.pairs {
            0..1_000 => "n<1K",
            1_000..10_000 => "1K<n<10K",
            10_000..100_000 => "10K<n<100K",
            100_000..1_000_000 => "100K<n<1M",
            _ => "1M<n<10M",
        };
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |x| format!("{x:.3}"));
        let phi = cell.phi();
        let mut text = format!(
            "---\nconfigs:\n- config_name: default\n  data_files: pairs.parquet\n\
             task_categories:\n- image-text-to-text\ntags:\n- dpo\n- preference\n- bdhs\n\
             size_categories:\n- {size}\n---\n\n# Preference pairs, {}\n\n\
             Made with bdhs (Bias-Driven Hallucination Sampling, arXiv 2407.02477): each rejected answer is the model's own, \
             written while most of the picture was hidden from it.\n\n",
            cell.label()
        );
        text.push_str("| what | value |\n|---|---|\n");
        let mut rows = vec![
            ("pairs".to_owned(), done.pairs.to_string()),
            ("left out because of a flag".into(), done.excluded.to_string()),
            ("taken as the last attempt".into(), cell.forced().to_string()),
            ("attempts a pair, mean".into(), format!("{:.2}", cell.mean_attempts())),
            (
                "similarity, 5 %, 50 %, 95 %".into(),
                [phi.p05, phi.p50, phi.p95].map(number).join(", "),
            ),
            ("encoder".into(), cell.encoder.clone()),
            ("threshold".into(), threshold_text(cell.threshold)),
            ("model".into(), model_name(&manifest.model_path)),
            ("seed".into(), manifest.seed.to_string()),
            ("data fingerprint".into(), manifest.dataset_fingerprint.clone()),
            ("made by".into(), format!("bdhs {}", manifest.bdhs_version)),
        ];
        if let Ok(serde_json::Value::Object(settings)) = serde_json::to_value(self.config) {
            rows.extend(
                settings.into_iter().map(|(k, v)| (format!("sampling.{k}"), v.to_string())),
            );
        }
        rows.iter().for_each(|(what, value)| text.push_str(&format!("| {what} | {value} |\n")));
        text.push_str("\n## Columns\n\n| column | holds |\n|---|---|\n");
        for (name, holds) in COLUMNS {
            text.push_str(&format!("| `{name}` | {holds} |\n"));
        }
        if self.dataset.has_rejected() {
            text.push_str("| `source_rejected` | the rejected answer that the data came with |\n");
        }
        text.push_str("\n## Files\n\n- `pairs.parquet`, `pairs.jsonl`: TRL\n");
        if options.formats.contains(&ExportFormat::LlamaFactory) {
            text.push_str("- `llama_factory.jsonl`, `dataset_info.json`: LLaMA-Factory\n");
        }
        if options.formats.contains(&ExportFormat::Swift) {
            text.push_str("- `swift.jsonl`: ms-swift\n");
        }
        text.push_str(match options.embed_images {
            true => "\nThe pictures lie in the Parquet file.\n",
            false => {
                "\nPictures are named by absolute paths of the machine that wrote the files. To publish the set, export with \
                 `export.embed_images = true`, which puts them into the Parquet file.\n"
            }
        });
        text.push_str(
            "\n## Licence\n\nPrompts, pictures and chosen answers are those of the source data, rejected answers those of \
             the model: the terms of both hold. Add `license:` above before you publish the set.\n",
        );
        text
    }
}

/// A model's name without the folders that it lies in.
fn model_name(path: &str) -> String {
    match path.starts_with(['/', '.']) {
        true => path.rsplit('/').next().unwrap_or(path).to_owned(),
        false => path.to_owned(),
    }
}
