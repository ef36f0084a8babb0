//! Everything that decided the run.

use minijinja::{Value, context};
use serde_json::Value as Json;

use super::super::{figure::Table, gallery::Pair, number::count, page::value, run::Run};
use crate::{
    Result,
    sampling::{SETTINGS, SamplingConfig},
};

pub(super) fn content(run: &Run, _: &[Pair]) -> Result<Option<Value>> {
    let method = method(run);
    let origin = origin(run);
    let encoders = Table::new(
        "Encoders",
        ["encoder", "dimensions", "reads tokens", "fingerprint"],
        run.encoder_infos
            .iter()
            .map(|encoder| {
                vec![
                    encoder.name.clone(),
                    encoder.dim.to_string(),
                    encoder.max_tokens.to_string(),
                    encoder.fingerprint.clone(),
                ]
            })
            .collect(),
    );
    Ok(Some(context! {
        method => value(method),
        origin => value(origin),
        encoders => value(encoders),
    }))
}

/// The method's settings, those that differ from the defaults marked.
fn method(run: &Run) -> Table {
    let fields = |config: &SamplingConfig| serde_json::to_value(config).unwrap_or(Json::Null);
    let (own, default) = (fields(&run.sampling), fields(&SamplingConfig::default()));
    let rows = SETTINGS.iter().map(|setting| {
        let value = own.get(setting.name).unwrap_or(&Json::Null);
        let usual = default.get(setting.name).unwrap_or(&Json::Null);
        let usual = if value == usual { "as here".to_owned() } else { usual.to_string() };
        vec![setting.name.to_owned(), value.to_string(), usual, setting.meaning.to_owned()]
    });
    Table::new("Settings of the method", ["setting", "value", "default", "meaning"], rows.collect())
}

fn origin(run: &Run) -> Table {
    let manifest = &run.manifest;
    let mut rows = vec![
        ["made by".to_owned(), format!("bdhs {}", manifest.bdhs_version)],
        ["begun".into(), manifest.created_at.clone()],
        ["model".into(), manifest.model_path.clone()],
        ["model fingerprint".into(), manifest.model_fingerprint.clone()],
        ["data fingerprint".into(), manifest.dataset_fingerprint.clone()],
        ["seed".into(), manifest.seed.to_string()],
        ["token budget".into(), count(manifest.token_budget.into())],
        ["plan".into(), manifest.plan_hash.clone()],
    ];
    if let Some(saved) = &run.saved {
        let data = &saved.config.data;
        rows.insert(3, ["model storage type".into(), saved.config.model.dtype.clone()]);
        rows.push(["data".into(), data.file.to_string()]);
        if !run.saved.as_ref().is_none_or(|saved| saved.data.shapes.is_empty()) {
            let read = run.saved.as_ref().map(|saved| saved.data.text());
            rows.push(["rows".into(), read.unwrap_or_default()]);
        }
        rows.push([
            "pictures".into(),
            run.images.as_ref().map_or_else(String::new, |folder| folder.display().to_string()),
        ]);
    }
    let rows = rows.into_iter().map(Vec::from).collect();
    Table::new("Origin", ["what", "value"], rows)
}
