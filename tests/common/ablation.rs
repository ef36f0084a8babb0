//! A 2 x 2 ablation of the tiny models.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use bdhs::demo::benchmarks::{files, image};
use bdhs::demo::scene::Split;

use super::{bdhs, dataset, encoders, llava};

/// Images of the benchmarks.
const IMAGES: usize = 6;

/// The demo's POPE and Recall_coco, of the first images only.
fn benchmarks(dir: &Path) {
    let known = |text: &str| (0..IMAGES).any(|i| text.contains(&format!("{i:05}")));
    let lines = |text: &str| {
        text.lines().filter(|line| known(line)).map(|line| format!("{line}\n")).collect::<String>()
    };
    for (name, text) in files(Split::Eval) {
        let text = match name.split_once('/') {
            Some(("pope", _)) | Some(("recall-coco", "questions.jsonl")) => lines(&text),
            Some(("recall-coco", "gt_objects.json")) => {
                let mut all: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(&text).unwrap();
                all.retain(|image, _| known(image));
                serde_json::Value::Object(all).to_string()
            }
            Some(("recall-coco", _)) => text,
            _ => continue,
        };
        let path = dir.join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    std::fs::create_dir_all(dir.join("images")).unwrap();
    for i in 0..IMAGES {
        image(Split::Eval, i).save(dir.join(format!("images/{i:05}.png"))).unwrap();
    }
}

/// Two encoders, two thresholds, two seeds, two variants of which one has pairs of its own; returns the file.
pub fn configuration(dir: &Path) -> PathBuf {
    let data = dataset(dir, 8);
    benchmarks(&dir.join("benchmarks"));
    let [first, second] = encoders();
    let text = format!(
        "model.path = {:?}\ndata.file = {data:?}\n\
         [sampling]\nrho = 0.5\nmax_sentence_tokens = 16\nmax_response_tokens = 32\nattempts = 3\n\
         [grid]\nencoders = [{first:?}, {second:?}]\nthresholds = [0.95, 0.97]\n\
         [train]\nrank = 2\nalpha = 4.0\nlearning_rate = 2e-2\nepochs = 2\nbatch = 4\ncheckpoint = 1\nexclude_flagged = false\n\
         [eval]\ndata = {:?}\nmetrics = [\"pope\", \"recall-coco\"]\nmax_new_tokens = 6\nresamples = 100\n\
         [ablation]\nseeds = 2\n\
         [[variant]]\nname = \"blind\"\nsampling = {{ rho = 1.0 }}\n\
         [[variant]]\nname = \"ipo\"\ntrain = {{ loss = \"ipo\", beta = 0.5 }}\n",
        llava(),
        dir.join("benchmarks"),
    );
    let path = dir.join("sweep.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// The whole of it, by one command.
pub fn ablate(configuration: &Path, out: &Path) -> Command {
    let mut command = bdhs();
    command.arg("sweep").arg(configuration).arg("--out").arg(out).args(["--train", "--eval"]);
    command
}

/// Its numbers.
pub fn table(run: &Path) -> String {
    std::fs::read_to_string(run.join("ablation.csv")).unwrap()
}
