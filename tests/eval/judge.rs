//! The judge client against a local server that behaves as badly as real ones do.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bdhs::eval::{
    Outcome, Settings, Sources, ask_judge, evaluate,
    judge::{Cost, Endpoint, Judge},
    metric, mmhal,
};
use serde_json::{Value, json};

use super::{folder, golden::lines, write};

/// What the server does with a request.
pub enum Act {
    /// A chat completion with this content, by the model asked for.
    Reply(String),
    /// A chat completion by another model.
    OtherModel(String),
    /// A status with headers and body.
    Status(u16, &'static str, String),
    /// A 200 whose body is not what it says: the connection closes after these bytes.
    CutOff(String),
    /// Nothing, until the client gives up.
    Hang,
}

/// A server that asks `script` what to do with each request: its number and its JSON.
pub struct Server {
    pub url: String,
    /// Requests with their authorization header.
    pub seen: Arc<Mutex<Vec<(String, Value)>>>,
    /// Chat completions that were sent completely: what a service would charge for.
    pub paid: Arc<Mutex<usize>>,
}

pub fn serve(script: impl Fn(usize, &Value) -> Act + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    let server = Server { url, seen: Arc::default(), paid: Arc::default() };
    let (seen, paid, script) = (server.seen.clone(), server.paid.clone(), Arc::new(script));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (seen, paid, script) = (seen.clone(), paid.clone(), script.clone());
            std::thread::spawn(move || answer(stream, &seen, &paid, &*script));
        }
    });
    server
}

fn answer(
    mut stream: TcpStream,
    seen: &Mutex<Vec<(String, Value)>>,
    paid: &Mutex<usize>,
    script: &dyn Fn(usize, &Value) -> Act,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut length, mut key, mut line) = (0, String::new(), String::new());
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let (name, value) = line.trim().split_once(':').unwrap_or((line.trim(), ""));
        match name.to_lowercase().as_str() {
            "" => break,
            "content-length" => length = value.trim().parse().ok()?,
            "authorization" => key = value.trim().to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request: Value = serde_json::from_slice(&body).ok()?;
    let number = {
        let mut seen = seen.lock().ok()?;
        seen.push((key, request.clone()));
        seen.len() - 1
    };
    let model = request["model"].as_str().unwrap_or_default().to_owned();
    let mut send = |status: u16, headers: &str, body: &str, length: usize| {
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes()).and_then(|()| stream.flush()).ok()
    };
    let completion = |content: &str, model: &str| {
        json!({"model": model, "choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10}})
        .to_string()
    };
    match script(number, &request) {
        Act::Reply(content) => {
            let body = completion(&content, &model);
            *paid.lock().ok()? += 1;
            send(200, "content-type: application/json\r\n", &body, body.len())
        }
        Act::OtherModel(other) => {
            let body = completion("Rating: 3", &other);
            *paid.lock().ok()? += 1;
            send(200, "", &body, body.len())
        }
        Act::Status(status, headers, body) => send(status, headers, &body, body.len()),
        Act::CutOff(body) => send(200, "", &body, body.len() + 1000),
        Act::Hang => {
            std::thread::sleep(Duration::from_secs(5));
            None
        }
    }
}

/// A judge at this server that does not wait long.
pub fn judge(url: &str) -> Judge {
    Judge {
        endpoint: Endpoint::new(url, "gpt-x", Some("sk-secret".into())),
        runs: 1,
        threads: 3,
        tries: 4,
        backoff: Duration::from_millis(5),
        timeout: Duration::from_millis(1500),
        max_tokens: None,
        accept_model: None,
        detail: "low".into(),
        prices: Some((10.0, 30.0)),
    }
}

/// Eight MMHal items with images, answers with braces, and a prompt of the official form.
pub fn mmhal(dir: &Path) -> PathBuf {
    let items: Vec<Value> = mmhal::TYPES
        .iter()
        .enumerate()
        .map(|(i, kind)| {
            json!({"question_type": kind, "image_src": format!("https://host/{i}.png"), "image_content": ["Cup", "Table"],
                "question": format!("What {kind}?"), "gt_answer": "A {cup}."})
        })
        .collect();
    write(dir, "response_template.json", &json!(items).to_string());
    write(dir, "mmhal_template.txt", "C {} Q {} G {} A {}\n");
    std::fs::create_dir_all(dir.join("images")).expect("a folder");
    for i in 0..8 {
        // A PNG's first bytes are enough for a file that is passed on as it is.
        let bytes = [b"\x89PNG\r\n\x1a\n".as_slice(), &[i]].concat();
        std::fs::write(dir.join(format!("images/{i}.png")), bytes).expect("a writable file");
    }
    let answers: Vec<Value> =
        (0..8).map(|i| json!({"question_id": i, "text": format!("answer {{}} {i}")})).collect();
    let rows: Vec<String> = answers.iter().map(Value::to_string).collect();
    write(dir, "answers.jsonl", &rows.join("\n"))
}

pub type Asked = bdhs::Result<(PathBuf, Cost)>;

pub fn ask(dir: &Path, name: &str, judge: &Judge) -> Asked {
    let answers = dir.join("answers.jsonl");
    let (images, out) = (dir.join("images"), dir.join("out"));
    let places = (answers.as_path(), Some(images.as_path()), out.as_path());
    let files = folder(dir);
    ask_judge(metric(name)?, &files, &Settings::default(), places, judge, (&(), &|_| {}))
}

pub fn scored(dir: &Path, name: &str, replies: PathBuf) -> Outcome {
    let sources = Sources { predictions: Some(dir.join("answers.jsonl")), replies: vec![replies] };
    let settings = Settings { resamples: 0, ..Settings::default() };
    evaluate(metric(name).unwrap(), &folder(dir), &settings, &sources).unwrap()
}

#[test]
fn every_reply_is_asked_for_once_and_can_be_scored_again() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let server = serve(|_, _| Act::Reply("Rating: 4, good".into()));
    let mut judge = judge(&server.url);
    judge.runs = 2;
    let (replies, cost) = ask(dir.path(), "mmhal", &judge).unwrap();
    assert_eq!((cost.requests, cost.prompt_tokens, cost.completion_tokens), (16, 1600, 160));
    assert!((cost.price.unwrap() - (0.016 + 0.0048)).abs() < 1e-12);
    assert_eq!(server.seen.lock().unwrap().len(), 16);
    let (_, key) = (0, server.seen.lock().unwrap()[0].0.clone());
    assert_eq!(key, "Bearer sk-secret");
    let outcome = scored(dir.path(), "mmhal", replies.clone());
    assert_eq!(outcome.score, Some(4.0));
    assert_eq!(outcome.details["counts"]["judge_runs"], 2);
    assert_eq!(outcome.details["official_prompt"], true);
    // Both runs are in an item's sums, also in those of a written result.
    let cells = &outcome.items[0].cells;
    assert!(cells.0.iter().any(|(name, value)| &**name == "n" && *value == 2.0), "{cells:?}");
    let folder = dir.path().join("result");
    bdhs::eval::layout::write(&folder, &outcome, "model", 0.0).unwrap();
    let read = bdhs::eval::compare::read(&folder.join("result.json")).unwrap();
    assert_eq!((&read.items[0].cells, read.score), (cells, outcome.score));
    // The same command again asks nothing.
    let (_, cost) = ask(dir.path(), "mmhal", &judge).unwrap();
    assert_eq!((cost.requests, server.seen.lock().unwrap().len()), (0, 16));
    // Nothing holds the key.
    for name in ["replies.jsonl", "judge.json"] {
        let text = std::fs::read_to_string(dir.path().join("out").join(name)).unwrap();
        assert!(!text.contains("sk-secret"), "{name}");
    }
    assert!(!format!("{judge:?}").contains("sk-secret"));
}

#[test]
fn prompts_are_the_benchmarks_and_answers_with_braces_are_safe() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let server = serve(|_, _| Act::Reply("Rating: 1".into()));
    ask(dir.path(), "mmhal", &judge(&server.url)).unwrap();
    let seen = server.seen.lock().unwrap();
    let wanted = "C Cup, Table Q What attribute? G A {cup}. A answer {} 0\n";
    assert!(seen.iter().any(|(_, body)| body["messages"][0]["content"] == wanted));
    assert!(seen.iter().all(|(_, body)| body["temperature"] == 0.0 && body["model"] == "gpt-x"));
    assert!(seen.iter().all(|(_, body)| body["messages"].as_array().unwrap().len() == 1));
}

#[test]
fn mmhalv_shows_the_image() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let server = serve(|_, _| Act::Reply("Rating: 1".into()));
    ask(dir.path(), "mmhalv", &judge(&server.url)).unwrap();
    let seen = server.seen.lock().unwrap();
    for (_, body) in seen.iter() {
        let content = &body["messages"][0]["content"];
        assert!(content[0]["text"].as_str().unwrap().starts_with("C Cup"));
        let url = content[1]["image_url"]["url"].as_str().unwrap();
        assert!(url.starts_with("data:image/png;base64,iVBORw0KGgo"), "{url}");
        assert_eq!(content[1]["image_url"]["detail"], "low");
    }
}

/// What a body of HTML is made into.
type Failing = fn(&str) -> Act;

/// Each kind of failure, on the first try of every other request; all are overcome, and nothing is paid twice.
#[test]
fn failures_are_tried_again() {
    let html = "<html><body>502 Bad Gateway sk-secret</body></html>";
    let cases: [(&str, Failing, &str); 8] = [
        ("429", |_| Act::Status(429, "retry-after: 0.05\r\n", "{}".into()), "status 429"),
        ("500", |_| Act::Status(500, "", "oops".into()), "status 500: oops"),
        ("503 html", |html| Act::Status(503, "", html.into()), "[key]"),
        ("html", |html| Act::Status(200, "", html.into()), "no JSON: <html>"),
        ("half a JSON", |_| Act::Status(200, "", "{\"model\": \"gpt-x\", \"cho".into()), "no JSON"),
        ("no choices", |_| Act::Status(200, "", "{\"error\": {}}".into()), "no choices[0].message"),
        ("cut off", |_| Act::CutOff("{\"model\"".into()), "\"status\":0"),
        ("hang", |_| Act::Hang, "\"status\":0"),
    ];
    for (name, act, wanted) in cases {
        let dir = tempfile::tempdir().unwrap();
        mmhal(dir.path());
        let tried: Mutex<Vec<Value>> = Mutex::default();
        let server = serve(move |_, body| {
            let mut tried = tried.lock().unwrap();
            let question = body["messages"][0]["content"].clone();
            let odd = question.as_str().unwrap().contains("o");
            if odd && !tried.contains(&question) {
                tried.push(question);
                return act(html);
            }
            Act::Reply("Rating: 2".into())
        });
        let (replies, cost) = ask(dir.path(), "mmhal", &judge(&server.url)).unwrap();
        assert_eq!((cost.requests, *server.paid.lock().unwrap()), (8, 8), "{name}");
        let text = std::fs::read_to_string(&replies).unwrap();
        assert!(text.contains("\"kind\":\"failure\"") && text.contains(wanted), "{name}: {text}");
        assert!(!text.contains("sk-secret"), "{name}");
        assert_eq!(scored(dir.path(), "mmhal", replies).score, Some(2.0), "{name}");
    }
}

#[test]
fn a_429_holds_requests_back_for_as_long_as_it_says() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let server = serve(|number, _| match number {
        0 => Act::Status(429, "retry-after: 0.6\r\n", String::new()),
        _ => Act::Reply("Rating: 2".into()),
    });
    let mut judge = judge(&server.url);
    judge.threads = 1;
    let begun = Instant::now();
    ask(dir.path(), "mmhal", &judge).unwrap();
    assert!(begun.elapsed() > Duration::from_millis(600));
}

#[test]
fn a_slow_reply_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let server = serve(|_, _| {
        std::thread::sleep(Duration::from_millis(300));
        Act::Reply("Rating: 2".into())
    });
    let (_, cost) = ask(dir.path(), "mmhal", &judge(&server.url)).unwrap();
    assert_eq!((cost.requests, *server.paid.lock().unwrap()), (8, 8));
}

/// A wrong key ends the run at once; what was received before is kept and used.
#[test]
fn other_statuses_end_the_run_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let server = serve(|number, _| match number {
        0..5 => Act::Reply("Rating: 2".into()),
        _ => Act::Status(401, "", "{\"error\": \"no such key sk-secret\"}".into()),
    });
    let mut first = judge(&server.url);
    first.threads = 1;
    let error = ask(dir.path(), "mmhal", &first).unwrap_err().to_string();
    assert!(error.contains("item 5") && error.contains("status 401"), "{error}");
    assert!(error.contains("[key]") && !error.contains("sk-secret"), "{error}");
    assert_eq!(server.seen.lock().unwrap().len(), 6);
    let second = serve(|_, _| Act::Reply("Rating: 2".into()));
    let (replies, cost) = ask(dir.path(), "mmhal", &judge(&second.url)).unwrap();
    assert_eq!((cost.requests, second.seen.lock().unwrap().len()), (3, 3));
    assert_eq!(scored(dir.path(), "mmhal", replies).score, Some(2.0));
}

#[test]
fn tries_end() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let server = serve(|_, _| Act::Status(500, "", "down".into()));
    let mut judge = judge(&server.url);
    judge.threads = 1;
    let error = ask(dir.path(), "mmhal", &judge).unwrap_err().to_string();
    assert!(
        error.contains("no reply about item 0 in 4 tries") && error.contains("down"),
        "{error}"
    );
    assert_eq!(server.seen.lock().unwrap().len(), 4);
}

/// A reply of another model was paid for: it is kept, refused, and used once it is accepted by name.
#[test]
fn other_models_are_kept_but_not_used() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let server = serve(|_, _| Act::OtherModel("mini-y".into()));
    let mut judge = judge(&server.url);
    judge.threads = 1;
    let error = ask(dir.path(), "mmhal", &judge).unwrap_err().to_string();
    assert!(error.contains("names \"mini-y\"") && error.contains("judge gpt-x"), "{error}");
    judge.accept_model = Some("mini-y".into());
    let (replies, cost) = ask(dir.path(), "mmhal", &judge).unwrap();
    assert_eq!((cost.requests, *server.paid.lock().unwrap()), (7, 8));
    let outcome = scored(dir.path(), "mmhal", replies);
    assert_eq!((outcome.score, &outcome.details["judge_models"]["mini-y"]), (Some(3.0), &json!(8)));
    // A dated version of the model asked for is that model.
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let server = serve(|_, _| Act::OtherModel("gpt-x-2024-08-06".into()));
    judge.endpoint = Endpoint::new(&server.url, "gpt-x", None);
    assert!(ask(dir.path(), "mmhal", &judge).is_ok());
}

#[test]
fn refusals_are_replies_without_a_score() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let refusal = json!({"model": "gpt-x", "choices": [{"message": {"content": null, "refusal": "I cannot."}}]});
    let server = serve(move |number, _| match number {
        0..6 => Act::Status(200, "", refusal.to_string()),
        _ => Act::Reply("Rating: 4".into()),
    });
    let mut judge = judge(&server.url);
    judge.threads = 1;
    let (replies, _) = ask(dir.path(), "mmhal", &judge).unwrap();
    assert_eq!(server.seen.lock().unwrap().len(), 8);
    let outcome = scored(dir.path(), "mmhal", replies.clone());
    assert_eq!((outcome.score, &outcome.details["unparsed"]), (Some(1.0), &json!(6)));
    assert_eq!(lines(&replies)[0]["raw"]["choices"][0]["message"]["refusal"], "I cannot.");
}

/// A store of other answers, another model or another prompt is refused; a row that was cut off is asked for again.
#[test]
fn stores_belong_to_one_run() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    let server = serve(|_, _| Act::Reply("Rating: 2 caf\u{e9}".into()));
    let judge = judge(&server.url);
    let (replies, _) = ask(dir.path(), "mmhal", &judge).unwrap();
    // Cut within the last row's last character of two bytes.
    let bytes = std::fs::read(&replies).unwrap();
    let cut = bytes.iter().rposition(|&byte| byte == 0xc3).unwrap() + 1;
    std::fs::write(&replies, &bytes[..cut]).unwrap();
    let (_, cost) = ask(dir.path(), "mmhal", &judge).unwrap();
    assert_eq!((cost.requests, lines(&replies).len()), (1, 8));
    let mut other = judge.clone();
    other.endpoint = Endpoint::new(&server.url, "gpt-z", None);
    let error = ask(dir.path(), "mmhal", &other).unwrap_err().to_string();
    assert!(error.contains("was made with model \"gpt-x\", this run has \"gpt-z\""), "{error}");
    let rows: Vec<String> =
        (0..8).map(|i| json!({"question_id": i, "text": "another"}).to_string()).collect();
    write(dir.path(), "answers.jsonl", &rows.join("\n"));
    let error = ask(dir.path(), "mmhal", &judge).unwrap_err().to_string();
    assert!(error.contains("was made with asks"), "{error}");
    assert_eq!(server.seen.lock().unwrap().len(), 9);
}

#[test]
fn without_the_official_prompt_a_result_says_so() {
    let dir = tempfile::tempdir().unwrap();
    mmhal(dir.path());
    std::fs::remove_file(dir.path().join("mmhal_template.txt")).unwrap();
    let server = serve(|_, _| Act::Reply("Rating: 2".into()));
    let (replies, _) = ask(dir.path(), "mmhal", &judge(&server.url)).unwrap();
    let manifest = std::fs::read_to_string(dir.path().join("out/judge.json")).unwrap();
    assert!(manifest.contains("\"comparable\": false"), "{manifest}");
    assert_eq!(scored(dir.path(), "mmhal", replies).details["official_prompt"], false);
    write(dir.path(), "mmhal_template.txt", "only {} two {}");
    let error = ask(dir.path(), "mmhal", &judge(&server.url)).unwrap_err().to_string();
    assert!(error.contains("has 2 gaps {}, expected 4"), "{error}");
}

/// MM-Vet asks again, warmer each time, until a reply is a grade; four times at most.
#[test]
fn mmvet_asks_again_at_rising_temperatures() {
    let dir = tempfile::tempdir().unwrap();
    let items = json!({
        "v1_0": {"imagename": "a.png", "question": "Q0", "answer": "x<AND>y<OR>z", "capability": ["ocr"]},
        "v1_1": {"imagename": "b.png", "question": "Q1", "answer": "x", "capability": ["rec"]},
    });
    write(dir.path(), "mm-vet.json", &items.to_string());
    write(dir.path(), "mmvet_prompt.txt", "PROMPT\n");
    write(dir.path(), "answers.jsonl", &json!({"v1_0": "p0", "v1_1": "p1"}).to_string());
    let server = serve(|_, body| {
        let text = body["messages"][0]["content"].as_str().unwrap();
        let warm = body["temperature"].as_f64().unwrap() >= 1.0;
        Act::Reply(if text.contains("Q0") && warm { "0.7 or so" } else { "Well" }.into())
    });
    let mut judge = judge(&server.url);
    judge.threads = 1;
    let (replies, _) = ask(dir.path(), "mmvet", &judge).unwrap();
    let seen = server.seen.lock().unwrap().clone();
    let temperatures = |question: &str| -> Vec<f64> {
        let asked = seen.iter().filter(|(_, body)| {
            body["messages"][0]["content"].as_str().unwrap().contains(question)
        });
        asked.map(|(_, body)| body["temperature"].as_f64().unwrap()).collect()
    };
    assert_eq!(temperatures("Q0"), [0.0, 0.0, 0.5, 1.0]);
    assert_eq!(temperatures("Q1"), [0.0, 0.0, 0.5, 1.0, 1.5]);
    let text = |i: usize| seen[i].1["messages"][0]["content"].as_str().unwrap().to_owned();
    assert_eq!(text(0), "PROMPT\n\nQ0 | x <AND> y <OR> z | p0 | ");
    assert_eq!(text(1), format!("{}\nPredict the correctness of the answer (digit): ", text(0)));
    assert_eq!(seen[0].1["max_tokens"], 3);
    let outcome = scored(dir.path(), "mmvet", replies.clone());
    assert!((outcome.score.unwrap() - 35.0).abs() < 1e-9);
    // Cut in the middle of a chain, it goes on where it was.
    let rows = std::fs::read_to_string(&replies).unwrap();
    let kept: Vec<&str> = rows.lines().take(2).collect();
    std::fs::write(&replies, format!("{}\n", kept.join("\n"))).unwrap();
    let (_, cost) = ask(dir.path(), "mmvet", &judge).unwrap();
    assert_eq!(cost.requests, 7);
}

#[test]
fn llavaw_asks_with_context_reference_and_rule() {
    let dir = tempfile::tempdir().unwrap();
    let question = json!({"question_id": 0, "image": "a.jpg", "text": "Why?", "category": "conv"});
    write(dir.path(), "questions.jsonl", &question.to_string());
    write(
        dir.path(),
        "context.jsonl",
        &json!({"id": 0, "image": "a.jpg", "caption": ["A.", "B."]}).to_string(),
    );
    write(
        dir.path(),
        "answers_gpt4.jsonl",
        &json!({"question_id": 0, "text": "Because."}).to_string(),
    );
    let rule = json!({"llava_bench_conv": {"role": "Assistant", "prompt": "RULE"}, "default": {"prompt": "no"}});
    write(dir.path(), "rule.json", &rule.to_string());
    write(dir.path(), "answers.jsonl", &json!({"question_id": 0, "text": "So."}).to_string());
    let server = serve(|_, _| Act::Reply("8 4\nSince".into()));
    let (replies, _) = ask(dir.path(), "llavaw", &judge(&server.url)).unwrap();
    let body = server.seen.lock().unwrap()[0].1.clone();
    assert_eq!(
        body["messages"][1]["content"],
        "[Context]\nA.\nB.\n\n[Question]\nWhy?\n\n[Assistant 1]\nBecause.\n\n[End of Assistant 1]\n\n\
         [Assistant 2]\nSo.\n\n[End of Assistant 2]\n\n[System]\nRULE\n\n"
    );
    assert_eq!(
        (&body["messages"][0]["role"], &body["temperature"]),
        (&json!("system"), &json!(0.2))
    );
    assert_eq!(scored(dir.path(), "llavaw", replies).score, Some(50.0));
    std::fs::remove_file(dir.path().join("context.jsonl")).unwrap();
    let error = ask(dir.path(), "llavaw", &judge(&server.url)).unwrap_err().to_string();
    assert!(error.contains("item 0: has no row of context.jsonl"), "{error}");
}

#[test]
fn metrics_without_a_judge_refuse_one() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "answers.jsonl", "{\"question_id\": 1, \"text\": \"a\"}");
    let error = ask(dir.path(), "gqa", &judge("http://127.0.0.1:9")).unwrap_err().to_string();
    assert!(error.contains("gqa: --judge is given, expected nothing"), "{error}");
}
