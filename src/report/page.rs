//! The page: sections put into templates, escaped.

use minijinja::{AutoEscape, Environment, Value, context, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;

use super::{
    SectionName,
    gallery::Pair,
    number::{count, plural, share},
    run::Run,
    sections,
};
use crate::{Error, Result, config::threshold_text, data::reasons};

/// A section that has something to say.
#[derive(Serialize)]
struct Filled {
    id: &'static str,
    title: &'static str,
    body: Value,
}

/// A number of the headline.
#[derive(Serialize)]
struct Fact {
    value: String,
    label: String,
}

/// The whole page, and the sections it has.
pub(super) fn render(run: &Run, pairs: &[Pair]) -> Result<(String, Vec<SectionName>)> {
    let environment = environment()?;
    let mut filled = Vec::new();
    for section in &sections::ALL {
        if let Some(content) = (section.content)(run, pairs)? {
            let body = environment
                .get_template(&file_name(section.id))
                .and_then(|template| template.render(content))
                .map_err(|error| failed(section.id, &error))?;
            let body = Value::from_safe_string(body);
            filled.push(Filled { id: section.id, title: section.title, body });
        }
    }
    let names = filled
        .iter()
        .map(|section| SectionName { id: section.id.into(), title: section.title.into() })
        .collect();
    let page = context! {
        style => Value::from_safe_string(include_str!("templates/style.css").to_owned()),
        head => head(run),
        sections => value(filled),
        missing => value(&run.missing),
        version => env!("CARGO_PKG_VERSION"),
    };
    let html = environment
        .get_template("page.html")
        .and_then(|template| template.render(page))
        .map_err(|error| failed("page", &error))?;
    Ok((printable(&html), names))
}

/// Anything that serialises, for a template.
pub(super) fn value(content: impl Serialize) -> Value {
    Value::from(Serde(content))
}

/// Templates whose names end in `.html`: minijinja escapes everything that is put into them.
fn environment() -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| failed("syntax", &error))?);
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    let own = sections::ALL.iter().map(|section| (file_name(section.id), section.template));
    let shared = [
        ("page.html".to_owned(), include_str!("templates/page.html")),
        ("macros.html".to_owned(), include_str!("templates/macros.html")),
        ("pair.html".to_owned(), include_str!("templates/pair.html")),
    ];
    for (name, text) in own.chain(shared) {
        environment
            .add_template_owned(name.clone(), text)
            .map_err(|error| failed(&name, &error))?;
    }
    Ok(environment)
}

fn file_name(id: &str) -> String {
    format!("{id}.html")
}

fn failed(what: &str, error: &minijinja::Error) -> Error {
    Error::Io {
        path: format!("report template {what}").into(),
        source: std::io::Error::other(format!("{error:#}")),
    }
}

/// Control characters are not allowed in HTML, and nobody can see them.
fn printable(html: &str) -> String {
    let allowed = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    let visible = |c: char| allowed(c) && !matches!(c, '\u{fffe}' | '\u{ffff}');
    html.chars().map(|c| if visible(c) { c } else { '\u{fffd}' }).collect()
}

fn head(run: &Run) -> Value {
    let summary = &run.summary;
    let cells = summary.cells.len() as u64;
    let title = format!(
        "{} into {}",
        plural(summary.samples, "sample"),
        match cells {
            1 => "one set of pairs".to_owned(),
            n => format!("{n} sets of pairs"),
        }
    );
    let (encoders, thresholds) = (run.encoders.len() as u64, run.thresholds.len() as u64);
    context! {
        title,
        model => run.model_name(),
        masked => hidden(run),
        facts => value(facts(run)),
        grid => format!("{} × {}", plural(encoders, "encoder"), plural(thresholds, "threshold")),
        cells,
        attempts => run.sampling.attempts,
        created_at => run.manifest.created_at.clone(),
    }
}

/// What was done to the picture, in words.
fn hidden(run: &Run) -> String {
    let rho = run.sampling.rho;
    let mut text = match rho {
        1.0 => "without any view of the picture".to_owned(),
        0.0 => "with all image tokens visible".to_owned(),
        rho => format!("with {} of the image tokens hidden", share(rho)),
    };
    if run.sampling.noise_steps > 0 {
        text.push_str(&format!(", {} steps of noise on the pixels", run.sampling.noise_steps));
    }
    text
}

fn facts(run: &Run) -> Vec<Fact> {
    let summary = &run.summary;
    let fact = |value: String, label: String| Fact { value, label };
    let mut facts = vec![
        fact(count(summary.samples), "samples".into()),
        fact(count(summary.candidates_generated), "candidates generated".into()),
    ];
    if !summary.skipped.is_empty() {
        let label = format!("rows of the data left out: {}", reasons(&summary.skipped));
        facts.push(fact(count(summary.skipped.values().sum()), label));
    }
    if summary.cells.len() > 1 {
        let label = format!(
            "fewer than the {} of {} separate runs",
            count(summary.candidates_if_independent),
            summary.cells.len()
        );
        facts.push(fact(format!("{:.1}×", run.saved()), label));
    }
    let main = run.main_threshold();
    let firsts: Vec<f64> = run
        .encoders
        .iter()
        .filter_map(|encoder| run.cell(encoder, main))
        .map(|cell| {
            let first = cell.accepted_by_attempt.first().copied().unwrap_or(0);
            first as f64 / cell.pairs.max(1) as f64
        })
        .collect();
    let least = firsts.iter().copied().fold(f64::INFINITY, f64::min);
    let most = firsts.iter().copied().fold(0.0, f64::max);
    let rate = match least == most {
        true => share(least),
        false => format!("{:.0}–{:.0}\u{202f}%", 100.0 * least, 100.0 * most),
    };
    let label = format!("accepted at the first attempt, eps {}", threshold_text(main));
    facts.push(fact(rate, label));
    facts
}
