//! The page of a run: made from its folder alone, well-formed, inert, with the numbers of its summary.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use crate::common::{self, bdhs, dataset, json, succeed, sweep};
use bdhs::report::mark_changes;
use proptest::prelude::*;
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::Value;

/// A finished run of `n` samples.
fn run(dir: &Path, n: usize) -> PathBuf {
    let out = dir.join("run");
    succeed(sweep(&dataset(dir, n), &out).args(["--rho", "0.5"]));
    out
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// The page as XML, which it is beside being HTML.
fn parse(html: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, nodes_limit: u32::MAX, ..Default::default() };
    Document::parse_with_options(html, options).expect("well-formed")
}

fn report(run: &Path) -> std::process::Command {
    let mut command = bdhs();
    command.arg("report").arg(run);
    command
}

fn text(node: Node) -> String {
    node.descendants().filter_map(|n| if n.is_text() { n.text() } else { None }).collect()
}

fn elements<'a>(document: &'a Document, name: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    document.descendants().filter(move |node| node.tag_name().name() == name)
}

/// Rows of the table with this caption, header row first.
fn table(document: &Document, caption: &str) -> Vec<Vec<String>> {
    let table = elements(document, "table")
        .find(|table| {
            let mut captions = table.children().filter(|n| n.tag_name().name() == "caption");
            captions.next().is_some_and(|found| text(found) == caption)
        })
        .unwrap_or_else(|| panic!("no table {caption:?}"));
    table
        .descendants()
        .filter(|node| node.tag_name().name() == "tr")
        .map(|row| row.children().filter(Node::is_element).map(text).collect())
        .collect()
}

/// What holds for every page: nothing is loaded, nothing runs, names are unique, every chart is drawn and told.
fn check_page(html: &str) -> HashSet<String> {
    let document = parse(html);
    let mut ids = HashSet::new();
    for node in document.descendants().filter(Node::is_element) {
        let name = node.tag_name().name();
        assert!(!["script", "iframe", "object", "embed", "form", "img"].contains(&name), "{name}");
        for attribute in node.attributes() {
            let (key, value) = (attribute.name(), attribute.value());
            assert!(!key.starts_with("on"), "{name} {key}");
            if ["href", "src", "clip-path"].contains(&key) {
                let inside = value.starts_with('#') || value.starts_with("data:");
                assert!(inside || value.starts_with("url(#"), "{name} {key}={value:.80}");
            }
            if key == "id" {
                assert!(ids.insert(value.to_owned()), "id {value} twice");
            }
        }
    }
    assert!(!html.contains("@import"));
    for node in document.descendants() {
        let local = node.attribute("href").and_then(|href| href.strip_prefix('#'));
        let named = node.attribute("aria-labelledby").into_iter().flat_map(str::split_whitespace);
        for id in local.into_iter().chain(named) {
            assert!(ids.contains(id), "nothing is called {id}");
        }
    }
    let class = |node: &Node, name: &str| node.attribute("class") == Some(name);
    for chart in elements(&document, "svg").filter(|node| class(node, "chart")) {
        let marks: usize = chart.attribute("data-marks").unwrap().parse().unwrap();
        let told = |name: &str| {
            chart.children().any(|n| {
                n.has_tag_name(("http://www.w3.org/2000/svg", name)) && !text(n).is_empty()
            })
        };
        assert!(marks > 0 && told("title") && told("desc"));
        assert_eq!(chart.attribute("role"), Some("img"));
        let figure = chart.ancestors().find(|n| n.tag_name().name() == "figure").unwrap();
        assert!(figure.descendants().any(|n| n.tag_name().name() == "tbody"), "a table behind it");
    }
    elements(&document, "section").map(|s| s.attribute("id").unwrap().to_owned()).collect()
}

#[test]
fn a_run_ends_with_a_page_that_report_makes_again() {
    let dir = tempfile::tempdir().unwrap();
    let out = run(dir.path(), 6);
    let first = read(&out.join("report.html"));
    let sections = check_page(&first);
    for id in ["example", "acceptance", "phi", "cells", "overlap", "cost", "limits", "pairs"] {
        assert!(sections.contains(id), "{id}");
    }
    let written = json(&succeed(report(&out).arg("--json")));
    assert_eq!(read(&out.join("report.html")), first, "the same bytes");
    assert_eq!(written["bytes"], first.len());
    assert_eq!(written["missing"], serde_json::json!([]));
    assert_eq!(written["sections"].as_array().unwrap().len(), sections.len());
    let document = parse(&first);
    let pairs = elements(&document, "article").count();
    assert_eq!(written["pairs_shown"], pairs);
    assert!(pairs >= 6, "every sample is shown");
    // Both views of every picture, and the kept tokens of an AnyRes model over it.
    let pictures = elements(&document, "svg").filter(|n| n.attribute("class") == Some("picture"));
    assert_eq!(pictures.count(), 2 * pairs);
    let edges = elements(&document, "path").filter(|n| n.attribute("class") == Some("edge tiles"));
    assert_eq!(edges.count(), pairs);
    let elsewhere = dir.path().join("elsewhere.html");
    let few =
        json(&succeed(report(&out).args(["--pairs", "2", "--json", "--out"]).arg(&elsewhere)));
    assert_eq!(few["pairs_shown"], 2);
    check_page(&read(&elsewhere));
    assert_eq!(read(&out.join("report.html")), first);
    succeed(report(&out).args(["--pairs", "0"]));
    assert!(!check_page(&read(&out.join("report.html"))).contains("pairs"));
}

fn share(value: f64) -> String {
    format!("{:.1}\u{202f}%", 100.0 * value)
}

fn phi(value: &Value) -> String {
    value.as_f64().map_or("–".into(), |x| format!("{x:.3}"))
}

/// Every number of the tables is the summary's.
#[test]
fn tables_have_the_numbers_of_the_summary() {
    let dir = tempfile::tempdir().unwrap();
    let out = run(dir.path(), 8);
    let html = read(&out.join("report.html"));
    let document = parse(&html);
    let summary: Value = serde_json::from_str(&read(&out.join("summary.json"))).unwrap();
    let cells = summary["cells"].as_array().unwrap();
    let all = table(&document, "All cells");
    assert_eq!(all.len(), cells.len() + 1);
    for (row, cell) in all[1..].iter().zip(cells) {
        let accepted: Vec<u64> = cell["accepted_by_attempt"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_u64().unwrap())
            .collect();
        let pairs = cell["pairs"].as_u64().unwrap();
        let expected = [
            cell["encoder"].as_str().unwrap().to_owned(),
            format!("{:.2}", cell["threshold"].as_f64().unwrap()),
            pairs.to_string(),
            accepted.iter().sum::<u64>().to_string(),
            cell["forced"].to_string(),
            format!("{:.2}", cell["mean_attempts"].as_f64().unwrap()),
            phi(&cell["phi"]["p05"]),
            phi(&cell["phi"]["p50"]),
            phi(&cell["phi"]["p95"]),
            cell["undefined_phi"].to_string(),
            cell["flagged"].to_string(),
        ];
        assert_eq!(row[..], expected);
        let caption = format!("Share of pairs accepted after each attempt, {}", expected[0]);
        let curves = table(&document, &caption);
        let row = curves.iter().find(|row| row[0] == expected[1]).unwrap();
        let mut sum = 0;
        for (i, n) in accepted.iter().enumerate() {
            sum += n;
            assert_eq!(row[2 + i], share(sum as f64 / pairs as f64), "{caption}");
        }
        assert_eq!(row.last().unwrap(), &expected[4]);
        let first = accepted[0] as f64 / pairs as f64;
        let heat = table(&document, "Accepted at the first attempt");
        let column = heat[0].iter().position(|h| *h == expected[1]).unwrap();
        let row = heat.iter().find(|row| row[0] == expected[0]).unwrap();
        assert_eq!(row[column], share(first));
    }
    let matched =
        table(&document, "Thresholds at which every encoder accepts as many first attempts");
    let entries = summary["matched_acceptance"].as_array().unwrap();
    assert_eq!(matched.len() - 1, entries.len() / 2);
    for (row, pair) in matched[1..].iter().zip(entries.chunks(2)) {
        assert_eq!(row[1], share(pair[0]["rate"].as_f64().unwrap()));
        for (cell, entry) in row[2..].iter().zip(pair) {
            let acceptance = share(entry["acceptance"].as_f64().unwrap());
            assert_eq!(*cell, format!("{} ({acceptance})", phi(&entry["threshold"])));
        }
    }
    let overlap = table(&document, "Overlap of cells: all pairs, the forced ones included");
    assert_eq!(overlap.len() - 1, summary["cells"].as_array().unwrap().len());
    for (i, row) in overlap[1..].iter().enumerate() {
        for (j, value) in row[1..].iter().enumerate() {
            let expected = summary["overlap"]["pairs"][i][j].as_f64().unwrap();
            assert_eq!(*value, format!("{expected:.2}"));
        }
    }
    let cost = table(&document, "Candidates generated");
    assert_eq!(cost[1][1], summary["candidates_generated"].to_string());
    assert_eq!(cost.last().unwrap()[1], summary["candidates_if_independent"].to_string());
    let flags = table(&document, "Flags over all candidates");
    assert_eq!(flags.len() - 1, summary["flags"].as_object().unwrap().len());
    for row in &flags[1..] {
        assert_eq!(row[1], summary["flags"][row[0].replace(' ', "_")].to_string());
    }
    // Each distribution holds every sample once.
    for encoder in ["bert", "mpnet"] {
        let bins = table(&document, &format!("phi of first attempts, {encoder}"));
        let sum: u64 = bins[1..].iter().map(|row| row[1].parse::<u64>().unwrap()).sum();
        assert_eq!(sum, 8);
    }
}

/// Captions, prompts, names and folders that try to be markup stay text.
#[test]
fn hostile_texts_are_inert() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 3);
    let attack = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>";
    let template = "{{ 7 * 7 }} {% raw %} &lt;b&gt; \u{0} \u{8} \u{202e} ]]> <!-- .";
    let mut rows: Value = serde_json::from_str(&read(&data)).unwrap();
    rows[0]["id"] = attack.into();
    rows[0]["conversations"][0]["value"] = format!("<image>\n{attack}").into();
    rows[1]["conversations"][1]["value"] = format!("A cat sits. {attack} {template}").into();
    fs::write(&data, rows.to_string()).unwrap();
    // The folder's name is the encoder's, and is in every chart.
    let encoder = dir.path().join("<svg onload=alert(3)>&");
    fs::create_dir(&encoder).unwrap();
    for entry in fs::read_dir(common::golden("encoders/roberta")).unwrap() {
        let entry = entry.unwrap();
        let target = encoder.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).unwrap();
            for inner in fs::read_dir(entry.path()).unwrap() {
                let inner = inner.unwrap();
                fs::copy(inner.path(), target.join(inner.file_name())).unwrap();
            }
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
    let out = dir.path().join("run");
    let mut command = sweep(&data, &out);
    command.arg("--encoder").arg(&encoder).args(["--rho", "0.5"]);
    succeed(&mut command);
    let html = read(&out.join("report.html"));
    check_page(&html);
    let document = parse(&html);
    assert!(elements(&document, "h3").any(|h| text(h) == attack), "shown as it is");
    let dds: Vec<String> = elements(&document, "dd").map(text).collect();
    assert!(dds.iter().any(|dd| dd.contains("{{ 7 * 7 }}") && dd.contains("&lt;b&gt;")));
    assert!(dds.iter().any(|dd| dd == attack), "the prompt");
    assert!(!html.contains('\u{8}') && !html.contains('\0'));
    assert!(html.contains("&lt;svg onload=alert(3)&gt;&amp;"));
}

#[test]
fn what_is_gone_is_named_and_the_rest_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let out = run(dir.path(), 4);
    fs::remove_file(dir.path().join("images/1.png")).unwrap();
    let written = json(&succeed(report(&out).arg("--json")));
    let missing = written["missing"].to_string();
    assert!(missing.contains("1.png") && missing.contains(" pairs"), "{missing}");
    let html = read(&out.join("report.html"));
    assert!(check_page(&html).contains("example"));
    assert!(html.contains("No picture: ") && html.contains("Not on this page"));
    // Pictures that have moved are found again.
    fs::rename(dir.path().join("images"), dir.path().join("moved")).unwrap();
    fs::create_dir_all(dir.path().join("new")).unwrap();
    fs::rename(dir.path().join("moved"), dir.path().join("new/images")).unwrap();
    fs::copy(dir.path().join("new/images/0.png"), dir.path().join("new/images/1.png")).unwrap();
    let new = dir.path().join("new");
    let written = json(&succeed(report(&out).args(["--json", "--images"]).arg(&new)));
    assert_eq!(written["missing"], serde_json::json!([]));
    // That is another picture, of another shape: no mask may be drawn over it.
    assert!(read(&out.join("report.html")).contains("the picture is not the one of the run"));
    // Without exports and data there are no texts, so no pairs.
    fs::remove_dir_all(out.join("cells")).unwrap();
    fs::remove_file(dir.path().join("data.json")).unwrap();
    let written = json(&succeed(report(&out).arg("--json")));
    assert_eq!(written["pairs_shown"], 0);
    assert!(written["missing"].to_string().contains("references of 4 of 4 samples"));
    let sections = check_page(&read(&out.join("report.html")));
    assert!(sections.contains("acceptance") && !sections.contains("pairs"));
    // A folder of a version that kept no run.json.
    fs::remove_file(out.join("run.json")).unwrap();
    let written = json(&succeed(report(&out).arg("--json")));
    assert!(written["missing"].to_string().contains("run.json"));
    check_page(&read(&out.join("report.html")));
}

/// Without exports, texts come from the data file.
#[test]
fn exports_may_be_gone_as_long_as_the_data_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let out = run(dir.path(), 3);
    let first = read(&out.join("report.html"));
    fs::remove_dir_all(out.join("cells")).unwrap();
    succeed(&mut report(&out));
    assert_eq!(read(&out.join("report.html")), first);
}

#[test]
fn runs_of_every_kind_have_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 3);
    for (name, settings) in [
        ("one", "attempts = 1\nrho = 0.5"),
        ("free", "guidance = false\nrho = 0.5"),
        ("noise", "rho = 0.0\nnoise_steps = 300"),
        ("blind", "rho = 1.0"),
    ] {
        let config = dir.path().join(format!("{name}.toml"));
        fs::write(&config, format!("[sampling]\n{settings}\n")).unwrap();
        let out = dir.path().join(name);
        succeed(sweep(&data, &out).arg(&config));
        check_page(&read(&out.join("report.html")));
    }
    // One cell, no pictures.
    let texts = dir.path().join("texts.jsonl");
    fs::write(&texts, "{\"id\": 1, \"prompt\": \"Describe.\", \"chosen\": \"A dog. It runs.\"}\n")
        .unwrap();
    let out = dir.path().join("text");
    let mut command = bdhs();
    command.arg("sample").arg("--model").arg(common::llava()).arg("--data").arg(&texts);
    command
        .arg("--encoder")
        .arg(common::golden("encoders/bert"))
        .args(["--rho", "1", "--out"])
        .arg(&out);
    succeed(command.args(["--max-sentence-tokens", "24", "--max-response-tokens", "48"]));
    let html = read(&out.join("report.html"));
    let sections = check_page(&html);
    assert!(sections.contains("example") && !sections.contains("overlap"));
    assert!(!html.contains("class=\"picture\""));
}

/// A page that cannot be written costs a warning, not the run.
#[test]
fn a_failed_report_does_not_lose_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 2);
    let out = dir.path().join("run");
    fs::create_dir_all(out.join("report.html/in the way")).unwrap();
    let done = succeed(sweep(&data, &out).args(["--rho", "0.5", "--json"]));
    assert_eq!(json(&done)["samples"], 2);
    assert!(String::from_utf8_lossy(&done.stderr).contains("report.html was not written"));
}

/// Counts and scores that were changed by other means are named, and take no memory; the run stays what it is.
#[test]
fn changed_folders_are_refused_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let out = run(dir.path(), 2);
    let path = out.join("summary.json");
    let whole: Value = serde_json::from_str(&read(&path)).unwrap();
    let refused = |wanted: &str| {
        let done = report(&out).output().unwrap();
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(matches!(done.status.code(), Some(3 | 5)), "{wanted}: {:?} {text}", done.status);
        assert!(text.contains(wanted), "{text}");
    };
    for (pointer, value, wanted) in [
        ("/samples", Value::from(4_294_967_295u64), "field samples: is 4294967295"),
        ("/samples", Value::from(u64::MAX), "field samples"),
        ("/attempts", Value::from(4_294_967_295u64), "field attempts"),
        ("/cells/0/accepted_by_attempt", serde_json::json!([1]), "field cells[0]"),
        ("/cells/0/threshold", Value::from(1e300), "threshold"),
    ] {
        let mut changed = whole.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        fs::write(&path, changed.to_string()).unwrap();
        refused(wanted);
    }
    fs::write(&path, whole.to_string()).unwrap();
    let connection = rusqlite::Connection::open(out.join("store.db")).unwrap();
    let change = |sql: &str| connection.execute_batch(sql);
    assert!(change("UPDATE scores SET phi = 2").is_err(), "the table itself refuses it");
    change("PRAGMA ignore_check_constraints = ON; UPDATE scores SET phi = -9.2e18").unwrap();
    refused("store.db");
    change("PRAGMA ignore_check_constraints = ON; UPDATE scores SET phi = 0.5").unwrap();
    // A view in place of a table could compute for ever.
    change(
        "PRAGMA foreign_keys = OFF; ALTER TABLE waves RENAME TO old; CREATE VIEW waves AS WITH RECURSIVE r(i) AS \
         (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT * FROM r",
    )
    .unwrap();
    refused("store.db");
}

/// A copied run may name any file as a picture; only those in the folder of pictures are shown.
#[test]
fn pictures_outside_the_folder_are_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let out = run(dir.path(), 2);
    let outside = dir.path().join("private.png");
    common::picture(30, 30, 9).save(&outside).unwrap();
    // The folder of pictures of this run is that of its data, so another one is named.
    let images = dir.path().join("pictures");
    fs::create_dir(&images).unwrap();
    fs::rename(dir.path().join("images"), images.join("images")).unwrap();
    let html = |name: &str| {
        for entry in fs::read_dir(out.join("cells")).unwrap() {
            let path = entry.unwrap().path().join("pairs.jsonl");
            let rows: Vec<String> = read(&path)
                .lines()
                .map(|line| {
                    let mut row: Value = serde_json::from_str(line).unwrap();
                    row["images"] = serde_json::json!([name]);
                    format!("{row}\n")
                })
                .collect();
            fs::write(&path, rows.concat()).unwrap();
        }
        succeed(report(&out).arg("--images").arg(&images));
        read(&out.join("report.html"))
    };
    assert!(html("images/0.png").contains("data:image/"));
    for name in [outside.to_str().unwrap(), "../private.png"] {
        let page = html(name);
        assert!(
            !page.contains("data:image/") && page.contains("lies outside the folder"),
            "{name}"
        );
    }
}

#[test]
fn a_folder_without_a_finished_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let done = report(dir.path()).output().unwrap();
    assert_eq!(done.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&done.stderr).contains("summary.json"));
    fs::write(dir.path().join("summary.json"), "{\"samples\": 3}").unwrap();
    let done = report(dir.path()).output().unwrap();
    assert_eq!(done.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&done.stderr).contains("summary.json: line 1"));
}

#[test]
fn changed_words_are_marked() {
    let reference = "Yes, a red bus stands there. It rains.";
    let rejected = "No, a red bus flies over it. It rains.";
    let marked = mark_changes(reference, rejected, &[13]);
    let changed = |spans: &[bdhs::report::Span]| {
        spans.iter().filter(|s| s.changed).map(|s| s.text.clone()).collect::<Vec<_>>()
    };
    assert_eq!(changed(&marked.rejected), ["No", "flies over it"]);
    assert_eq!(changed(&marked.reference), ["Yes", "stands there"]);
    let takeover = marked.rejected.iter().find(|span| span.takeover).unwrap();
    assert!(takeover.text.starts_with(" "), "{takeover:?}");
    let same = mark_changes(reference, reference, &[]);
    assert_eq!(changed(&same.rejected), [""; 0]);
    assert_eq!(mark_changes("", "", &[0]).rejected, []);
}

proptest! {
    /// Spans are a division of the texts, whatever these are; take-overs lie where they were asked for.
    #[test]
    fn spans_join_to_the_texts(a in "[a-c \\.é]{0,24}", b in "[a-c \\.é]{0,24}", cuts in proptest::collection::btree_set(0usize..30, 0..4)) {
        let cuts: Vec<usize> = cuts.into_iter().filter(|cut| b.is_char_boundary(*cut)).collect();
        let marked = mark_changes(&a, &b, &cuts);
        let join = |spans: &[bdhs::report::Span]| spans.iter().map(|s| s.text.as_str()).collect::<String>();
        prop_assert_eq!(join(&marked.reference), a);
        prop_assert_eq!(join(&marked.rejected), b.clone());
        let mut at = 0;
        let mut seen = Vec::new();
        for span in &marked.rejected {
            if span.takeover {
                seen.push(at);
            }
            at += span.text.len();
        }
        let expected: Vec<usize> = cuts.into_iter().filter(|cut| *cut < b.len()).collect();
        prop_assert_eq!(seen, expected);
    }
}
