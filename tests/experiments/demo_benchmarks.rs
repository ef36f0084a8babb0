//! The demo's eight benchmarks and their judge: files, grading, the service, and what a masked image does to scores.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use crate::common::{bdhs, json, succeed};
use bdhs::demo::benchmarks::{caption, contents, files, image, scenes, write};
use bdhs::demo::judge::claims::{Claim, claims};
use bdhs::demo::judge::{MODEL, Service, grade};
use bdhs::demo::questions::{Negative, probes};
use bdhs::demo::scene::{Dice, Scene, Shape, Split};
use bdhs::demo::words::{describe, edit};
use bdhs::eval::judge::{Cost, Endpoint, Judge};
use bdhs::eval::{Files, METRICS, Outcome, Settings, Sources, ask_judge, evaluate, metric};
use serde_json::{Value, json};

/// The words of a question tell nothing: of each shape, a yes for every no.
#[test]
fn probes_cannot_be_guessed_from_their_words() {
    let scenes = scenes(Split::Eval);
    for &negative in Negative::ALL {
        let mut dice = Dice::new(1, Split::Eval, 0);
        let probes = probes(&scenes, negative, &mut dice);
        assert_eq!(probes.len(), 2 * scenes.len());
        let mut counts: HashMap<&str, [i32; 2]> = HashMap::new();
        for (scene, question) in &probes {
            let shape = Shape::ALL.iter().find(|shape| question.text.contains(shape.name()));
            let shape = *shape.expect("a question names a shape");
            let there = scenes[*scene].object(shape).is_some();
            assert_eq!(question.answer, if there { "Yes" } else { "No" });
            assert_eq!(question.negative, (!there).then_some(negative));
            counts.entry(shape.name()).or_default()[usize::from(there)] += 1;
        }
        assert!(counts.values().all(|[no, yes]| no == yes), "{counts:?}");
    }
}

#[test]
fn files_are_what_the_real_readers_read() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), Split::Eval).unwrap();
    assert_eq!(files(Split::Eval), files(Split::Eval), "a function of nothing");
    for (name, items) in [
        ("pope", 960),
        ("gqa", 960),
        ("recall-coco", 160),
        ("mmhal", 96),
        ("llavaw", 60),
        ("mmvet", 60),
    ] {
        let folder = Files { folder: Some(dir.path().join(name)), ..Files::default() };
        let settings = Settings::default();
        let benchmark = metric(name).unwrap().open(&folder, &settings).unwrap();
        assert_eq!(benchmark.items().len(), items, "{name}");
        for item in benchmark.items() {
            let picture = item.image.as_deref().expect("an image");
            bdhs::eval::folder::find_image(&dir.path().join("images"), picture).unwrap();
        }
    }
}

/// Every shape survives the suffix rules that bring words to their singular.
#[test]
fn captions_that_are_true_recall_everything() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), Split::Eval).unwrap();
    let scenes = scenes(Split::Eval);
    let rows: String = scenes
        .iter()
        .enumerate()
        .map(|(i, scene)| {
            let mut dice = Dice::new(5, Split::Eval, i as u32);
            let row = json!({"image_id": format!("{i:05}"), "caption": describe(scene, &mut dice)});
            format!("{row}\n")
        })
        .collect();
    let predictions = dir.path().join("captions.jsonl");
    std::fs::write(&predictions, rows).unwrap();
    let folder = Files { folder: Some(dir.path().join("recall-coco")), ..Files::default() };
    let sources = Sources { predictions: Some(predictions), ..Sources::default() };
    let metric = metric("recall-coco").unwrap();
    let outcome = evaluate(metric, &folder, &Settings::default(), &sources).unwrap();
    assert_eq!(outcome.score, Some(100.0));
    assert_eq!(outcome.details["scores"]["chair_i"]["value"], 0.0);
}

/// True descriptions have no false claim; of a scene with changes, some claim is false for nearly all of them.
#[test]
fn claims_are_read_from_descriptions() {
    let (mut found, mut read) = (0, 0);
    const SCENES: u32 = 400;
    for i in 0..SCENES {
        let scene = Scene::sample(11, Split::Eval, i);
        let mut dice = Dice::new(11, Split::Eval, i).fork(9);
        let text = describe(&scene, &mut dice);
        let said = claims(&text);
        read += said.len();
        let wrong: Vec<&Claim> = said.iter().filter(|claim| !claim.holds(&scene)).collect();
        assert!(wrong.is_empty(), "{text}\n{wrong:?}");
        for object in &scene.objects {
            assert!(said.contains(&Claim::Coloured(object.shape, object.colour)), "{text}");
        }
        let (other, _) = edit(&scene, 2, &mut dice);
        let lie = describe(&other, &mut dice);
        found += u32::from(claims(&lie).iter().any(|claim| !claim.holds(&scene)));
    }
    assert!(read as u32 > 10 * SCENES, "{read} claims");
    assert!(found > SCENES * 85 / 100, "{found} of {SCENES} false texts");
}

#[test]
fn claims_of_single_sentences() {
    use bdhs::demo::scene::{Cell, Colour, Size};
    use bdhs::demo::words::{Relation, Subject};
    let top = Cell { row: 0, column: 1 };
    let star = Subject::Object(Shape::Star);
    for (text, expected) in [
        ("No, there is no moon in the picture.", vec![Claim::Absent(Shape::Moon)]),
        (
            "No, the star is red. It is at the top.",
            vec![
                Claim::Present(Shape::Star),
                Claim::Coloured(Shape::Star, Colour::Red),
                Claim::At(star, top),
            ],
        ),
        (
            "The star is small and red.",
            vec![
                Claim::Present(Shape::Star),
                Claim::Coloured(Shape::Star, Colour::Red),
                Claim::Sized(Shape::Star, Size::Small),
            ],
        ),
        (
            "Above the red ring is a star and the letter K is at the top.",
            vec![
                Claim::Present(Shape::Ring),
                Claim::Coloured(Shape::Ring, Colour::Red),
                Claim::Present(Shape::Star),
                Claim::Relative(star, Relation::Above, Shape::Ring),
                Claim::Letter('K'),
                Claim::At(Subject::Letter('K'), top),
            ],
        ),
        ("There are four shapes.", vec![Claim::Count(4)]),
        ("There is no letter.", vec![Claim::NoLetter]),
        ("Blah, blah: left and right.", vec![]),
        ("", vec![]),
    ] {
        assert_eq!(claims(text), expected, "{text}");
    }
}

#[test]
fn grades_follow_the_scene_and_the_reference() {
    let scene = (0..).map(|i| Scene::sample(3, Split::Eval, i)).find(|s| s.objects.len() > 3);
    let scene = scene.unwrap();
    let object = scene.objects[0];
    let (shape, colour) = (object.shape.name(), object.colour.name());
    let other = scene.absent()[0].name();
    let reference = format!("Yes, there is a {colour} {shape}.");
    let rate = |answer: &str| grade::rating(&grade::examine(answer, &reference, &scene));
    assert_eq!(rate(&reference), 5);
    assert_eq!(rate("Yes"), 4, "right, and little");
    assert_eq!(rate("I cannot say."), 3, "says nothing");
    assert_eq!(rate(&format!("Yes, there is a {colour} {shape}. There is a {other}.")), 2);
    assert_eq!(rate("No"), 0);
    assert_eq!(rate(&format!("No, there is no {shape}.")), 0);

    assert_eq!(grade::share("It is in the top left corner.", "top left"), 1.0);
    assert_eq!(grade::share("It is in the top left corner.", "top"), 0.0);
    assert_eq!(grade::share("There is a red star.", "red star<AND>blue ring"), 0.5);
    assert_eq!(grade::share("There are 4 shapes.", "four<OR>4"), 1.0);
    assert_eq!(grade::share("K", "K"), 1.0);
    assert_eq!(grade::share("", "K"), 0.0);
}

fn judge(service: &Service) -> Judge {
    Judge {
        endpoint: Endpoint::new(service.url(), MODEL, None),
        runs: 1,
        threads: 2,
        tries: 1,
        backoff: Duration::ZERO,
        timeout: Duration::from_secs(20),
        max_tokens: None,
        accept_model: None,
        detail: "auto".into(),
        prices: None,
    }
}

/// Judges a file of answers, one for each item, over HTTP.
fn judged(dir: &Path, name: &str, answers: &[String], service: &Service) -> Outcome {
    let benchmark = if name == "mmhalv" { "mmhal" } else { name };
    let folder = Files { folder: Some(dir.join(benchmark)), ..Files::default() };
    let (metric, settings) = (metric(name).unwrap(), Settings::default());
    let opened = metric.open(&folder, &settings).unwrap();
    let rows: String = opened
        .items()
        .iter()
        .zip(answers)
        .map(|(item, answer)| format!("{}\n", json!({"question_id": item.id, "text": answer})))
        .collect();
    let out = tempfile::tempdir_in(dir).unwrap();
    let predictions = out.path().join("answers.jsonl");
    std::fs::write(&predictions, rows).unwrap();
    let images = dir.join("images");
    let places = (predictions.as_path(), Some(images.as_path()), out.path());
    let told: (&dyn bdhs::engine::Progress, &dyn Fn(Cost)) = (&(), &|_| {});
    let (replies, _) =
        ask_judge(metric, &folder, &settings, places, &judge(service), told).unwrap();
    let sources = Sources { predictions: Some(predictions), replies: vec![replies] };
    evaluate(metric, &folder, &settings, &sources).unwrap()
}

/// Reference answers are rated high, answers about other scenes low, with the picture and without.
#[test]
fn the_judge_knows_right_from_wrong_over_the_wire() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), Split::Eval).unwrap();
    let service = Service::start(0).unwrap();
    let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
    let items: Vec<Value> = serde_json::from_str(&read("mmhal/response_template.json")).unwrap();
    let right: Vec<String> =
        items.iter().map(|item| item["gt_answer"].as_str().unwrap().to_owned()).collect();
    // The same questions' answers, eight items later: of other scenes.
    let mut wrong = right.clone();
    wrong.rotate_left(8);
    let value =
        |outcome: &Outcome, name: &str| outcome.details["scores"][name]["value"].as_f64().unwrap();
    for name in ["mmhal", "mmhalv"] {
        let best = judged(dir.path(), name, &right, &service);
        assert!(best.score.unwrap() >= 5.0, "{name}: {:?}", best.score);
        assert_eq!(value(&best, "hallucination_rate"), 0.0);
        assert_eq!(best.details["judge_models"], json!({MODEL: 96}));
        assert_eq!(best.details["official_prompt"], false);
        let worst = judged(dir.path(), name, &wrong, &service);
        assert!(worst.score.unwrap() < 2.5, "{name}: {:?}", worst.score);
        assert!(value(&worst, "hallucination_rate") > 0.6);
    }
    let texts = |path: &str| -> Vec<String> {
        let text = |line: &str| serde_json::from_str::<Value>(line).unwrap()["text"].clone();
        read(path).lines().map(|line| text(line).as_str().unwrap().to_owned()).collect()
    };
    let references = texts("llavaw/answers_gpt4.jsonl");
    assert_eq!(judged(dir.path(), "llavaw", &references, &service).score, Some(100.0));
    let silent = vec!["I do not know.".to_owned(); references.len()];
    assert!(judged(dir.path(), "llavaw", &silent, &service).score.unwrap() < 20.0);
    let items: serde_json::Map<String, Value> =
        serde_json::from_str(&read("mmvet/mm-vet.json")).unwrap();
    let truths: Vec<String> = items
        .values()
        .map(|item| item["answer"].as_str().unwrap().replace("<AND>", ", ").replace("<OR>", " "))
        .collect();
    assert_eq!(judged(dir.path(), "mmvet", &truths, &service).score, Some(100.0));
    assert_eq!(judged(dir.path(), "mmvet", &silent, &service).score, Some(0.0));
}

/// Status and body of a request to the service.
fn post(service: &Service, path: &str, body: &str) -> (u16, Value) {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let url = service.url().replace("/v1", path);
    let mut response = agent.post(url).send(body.as_bytes()).unwrap();
    let status = response.status().as_u16();
    let body = response.body_mut().read_to_string().unwrap();
    (status, serde_json::from_str(&body).unwrap())
}

#[test]
fn the_judge_refuses_what_it_cannot_judge() {
    let service = Service::start(0).unwrap();
    let chat = "/v1/chat/completions";
    let ask = |content: Value| {
        json!({"model": MODEL, "messages": [{"role": "user", "content": content}]}).to_string()
    };
    let pixel = "data:image/png;base64,aGVsbG8=";
    for (path, body, status, says) in [
        ("/v1/models", "{}".to_owned(), 404, "POST /v1/chat/completions"),
        (chat, "{".to_owned(), 400, "no JSON"),
        (chat, json!({"model": "gpt-4o", "messages": []}).to_string(), 404, "gpt-4o"),
        (chat, json!({"model": MODEL}).to_string(), 400, "messages"),
        (chat, ask(json!("How are you?")), 400, "no benchmark"),
        (chat, ask(json!([{"type": "image_url", "image_url": {"url": pixel}}])), 400, "format"),
    ] {
        let (found, document) = post(&service, path, &body);
        assert_eq!(found, status, "{body}: {document}");
        let message = document["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    }
}

/// The judge finds scenes by what prompts show of them, so no two may look alike there.
#[test]
fn what_prompts_show_names_one_scene() {
    let scenes = scenes(Split::Eval);
    let mut seen: HashMap<String, &Scene> = HashMap::new();
    for (i, scene) in scenes.iter().enumerate() {
        for text in [contents(scene).join(", "), caption(scene)] {
            if let Some(other) = seen.insert(text.clone(), scene) {
                assert_eq!(
                    (&other.objects, other.letter),
                    (&scene.objects, scene.letter),
                    "{text}"
                );
            }
        }
        assert_eq!(image(Split::Eval, i).dimensions(), (96, 96));
    }
}

#[test]
fn all_eight_metrics_and_what_hiding_the_image_does() {
    let dir = tempfile::tempdir().unwrap();
    let demo = |arguments: &[&str], out: &Path| {
        let mut command = bdhs();
        command.env("BDHS_CACHE", dir.path().join("cache")).arg("--json").args(arguments);
        json(&succeed(command.arg("--out").arg(out)))
    };
    let sweep = dir.path().join("run");
    demo(&["sweep", "--limit", "6"], &sweep);
    let out = |name: &str| sweep.join("eval").join(name);
    let run = |name: &str, rho: &str| demo(&["eval", "all", "--rho", rho], &out(name));
    let (seeing, blind) = (run("clear", "0"), run("masked", "1"));
    let names: Vec<&str> = METRICS.iter().map(|metric| metric.spec().name).collect();
    for summary in [&seeing, &blind] {
        assert_eq!(summary["model"], "demo-llava");
        assert_eq!(summary["data"], "demo-benchmarks");
        let rows = summary["metrics"].as_array().unwrap();
        let found: Vec<&str> = rows.iter().map(|row| row["metric"].as_str().unwrap()).collect();
        assert_eq!(found, names);
        for row in rows {
            let [low, value, high] =
                ["low", "value", "high"].map(|name| row["score"][name].as_f64().unwrap());
            assert!(low <= value && value <= high && low < high, "{row}");
        }
    }
    for (name, score) in
        [("pope", "f1"), ("gqa", "accuracy"), ("vqat", "accuracy"), ("recall-coco", "recall")]
    {
        let result = |run: &str| out(run).join(name).join("result.json");
        let mut command = bdhs();
        command.args(["--json", "eval", "compare"]).arg(result("clear")).arg(result("masked"));
        let compared = json(&succeed(&mut command));
        let high = compared["scores"][score]["difference"]["high"].as_f64().unwrap();
        assert!(high < -5.0, "{name}: {}", compared["scores"][score]);
    }
    // A second run finds every answer and reply there.
    assert_eq!(run("clear", "0")["metrics"], seeing["metrics"]);
    let replies = std::fs::read_to_string(out("clear").join("mmhal/replies.jsonl")).unwrap();
    assert_eq!(replies.lines().count(), 96, "nothing is asked twice");

    // The run's report shows both, and items that differ, with their pictures.
    let written = json(&succeed(bdhs().args(["--json", "report"]).arg(&sweep)));
    let sections = written["sections"].as_array().unwrap();
    assert!(sections.iter().any(|section| section["id"] == "benchmarks"), "{written}");
    let page = std::fs::read_to_string(sweep.join("report.html")).unwrap();
    let (_, section) = page.split_once(r#"<section id="benchmarks""#).unwrap();
    let (section, _) = section.split_once("</section>").unwrap();
    assert!(section.contains("masked against clear"));
    let items = section.matches("<article").count();
    assert!((8..=24).contains(&items), "{items}");
    assert_eq!(section.matches("<image ").count(), items);
    for row in seeing["metrics"].as_array().unwrap() {
        let value = format!("{:.2} [", row["score"]["value"].as_f64().unwrap());
        assert!(section.contains(&value), "{value}");
    }
}
