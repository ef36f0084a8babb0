//! The demo's checkpoints and scenes as files: unpacked once into the user's cache, then like any other.

#[cfg(feature = "demo")]
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
#[cfg(feature = "demo")]
use std::sync::{LazyLock, Mutex};

#[cfg(feature = "demo")]
use include_dir::{Dir, include_dir};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::draw::{picture, save};
use super::folder::{LLAVA, encoder_names};
use super::questions::{Kind, questions};
use super::scene::{Dice, Scene, Split};
use super::words::describe;
use super::{DESCRIBE, benchmarks, folder};
use crate::models::IMAGE;
use crate::{Error, Result};

/// What `bdhs demo train` wrote.
#[cfg(feature = "demo")]
static MODELS: Dir = include_dir!("$CARGO_MANIFEST_DIR/src/demo/models");

/// Name of the demo's scenes, as a data file.
pub const SCENES: &str = "demo-scenes";
/// Name of the demo's benchmarks, as a folder with a folder for each metric, and `images`.
pub const BENCHMARKS: &str = "demo-benchmarks";

/// Scenes of the default sweep.
const SAMPLES: u32 = 300;
/// Seed of the evaluation scenes.
const SEED: u64 = 1;

/// Whether a path is the name of something embedded: a model, the scenes, or the benchmarks.
pub fn is_embedded(path: &Path) -> bool {
    let name = path.to_str().unwrap_or_default();
    let known = [LLAVA, SCENES, BENCHMARKS].contains(&name) || encoder_names().contains(&name);
    known && !path.exists()
}

/// The file or folder that a path means: itself, or what [`is_embedded`] names, unpacked.
///
/// # Errors
/// The cache cannot be written.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    if !is_embedded(path) {
        return Ok(path.to_owned());
    }
    if path.as_os_str() == SCENES {
        return Ok(scenes()?.join("data.json"));
    }
    if path.as_os_str() == BENCHMARKS {
        return benchmark_folder();
    }
    Ok(models()?.join(path))
}

/// Where the user's caches lie: `BDHS_CACHE`, else `bdhs` in `XDG_CACHE_HOME` or `~/.cache`, else in the temporary folder, where other
/// users can make a folder of that name: [`made_once`] looks whose it is.
fn cache() -> PathBuf {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    folder("BDHS_CACHE")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("bdhs")))
        .or_else(|| Some(folder("HOME")?.join(".cache/bdhs")))
        .unwrap_or_else(|| std::env::temp_dir().join("bdhs"))
}

/// What names the folder of the checkpoints: a hash of all that they hold, once a process.
#[cfg(feature = "demo")]
static MODELS_HASH: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = blake3::Hasher::new();
    for (path, content) in files(&MODELS) {
        hasher.update(path.to_string_lossy().as_bytes());
        hasher.update(&(content.len() as u64).to_le_bytes()).update(content);
    }
    hasher.finalize().to_hex()[..16].to_owned()
});

/// The folder that holds the demo's five checkpoints.
#[cfg(not(feature = "demo"))]
fn models() -> Result<PathBuf> {
    Err(super::absent::absent("a model of the demo"))
}

/// The folder that holds the demo's five checkpoints.
#[cfg(feature = "demo")]
fn models() -> Result<PathBuf> {
    let dir = made_once(&cache().join(format!("demo-models-{}", *MODELS_HASH)), |dir| {
        for (path, content) in files(&MODELS) {
            let path = dir.join(path);
            folder::create(path.parent().unwrap_or(dir))?;
            fs::write(&path, content).map_err(Error::io(&path))?;
        }
        Ok(())
    })?;
    // Once a process.
    static CHECKED: LazyLock<Mutex<BTreeSet<PathBuf>>> = LazyLock::new(Mutex::default);
    let known = |dir: &PathBuf| CHECKED.lock().is_ok_and(|known| known.contains(dir));
    if !known(&dir) {
        check(&dir, &files(&MODELS))?;
        if let Ok(mut known) = CHECKED.lock() {
            known.insert(dir.clone());
        }
    }
    Ok(dir)
}

/// Checks that a cached folder holds these files, byte for byte.
#[cfg(feature = "demo")]
fn check(dir: &Path, wanted: &[(&Path, &[u8])]) -> Result<()> {
    for (path, content) in wanted {
        let path = dir.join(path);
        if fs::read(&path).ok().as_deref() != Some(*content) {
            let message = format!(
                "is not the file that this program holds; delete the folder {}, which is then made again",
                dir.display()
            );
            return Err(Error::invalid(path, "", message));
        }
    }
    Ok(())
}

/// Every file below a folder, with its content.
#[cfg(feature = "demo")]
fn files<'a>(dir: &'a Dir) -> Vec<(&'a Path, &'a [u8])> {
    let mut all: Vec<_> = dir.files().map(|file| (file.path(), file.contents())).collect();
    all.extend(dir.dirs().flat_map(files));
    all
}

/// The folder that holds the demo's evaluation scenes: pictures and a LLaVA conversation file. Its name follows from its
/// content, so that another version of the world never meets it.
fn scenes() -> Result<PathBuf> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(conversations(SEED, Split::Eval, SAMPLES).as_bytes());
    hasher.update(picture(SEED, Split::Eval, 0).as_raw());
    let hash = &hasher.finalize().to_hex()[..16];
    made_once(&cache().join(format!("{SCENES}-{hash}")), |dir| {
        write_scenes(dir, SEED, Split::Eval, SAMPLES)
    })
}

/// The folder that holds the demo's benchmarks, named as [`scenes`]'s is.
fn benchmark_folder() -> Result<PathBuf> {
    let mut hasher = blake3::Hasher::new();
    for (name, text) in benchmarks::files(Split::Eval) {
        hasher.update(name.as_bytes()).update(text.as_bytes());
    }
    hasher.update(benchmarks::image(Split::Eval, 0).as_raw());
    let hash = &hasher.finalize().to_hex()[..16];
    made_once(&cache().join(format!("{BENCHMARKS}-{hash}")), |dir| {
        benchmarks::write(dir, Split::Eval)
    })
}

/// Writes `data.json`, LLaVA conversations, and `images/*.png`. Two of three samples ask for a description, the third is
/// a yes/no question answered in sentences.
///
/// # Errors
/// The folder cannot be written.
pub fn write_scenes(dir: &Path, seed: u64, split: Split, count: u32) -> Result<()> {
    folder::create(&dir.join("images"))?;
    (0..count)
        .into_par_iter()
        .try_for_each(|index| save(&picture(seed, split, index), &dir.join(image_name(index))))?;
    let path = dir.join("data.json");
    fs::write(&path, conversations(seed, split, count)).map_err(Error::io(&path))
}

fn image_name(index: u32) -> String {
    format!("images/{index:05}.png")
}

fn conversations(seed: u64, split: Split, count: u32) -> String {
    let rows: Vec<Value> = (0..count)
        .map(|index| {
            let scene = Scene::sample(seed, split, index);
            let mut dice = Dice::new(seed, split, index).fork(0x300);
            let (question, answer) = match index % 3 {
                2 => yes_no(&scene, &mut dice),
                _ => ((*dice.pick(&DESCRIBE)).to_owned(), describe(&scene, &mut dice)),
            };
            json!({
                "id": format!("scene-{index:05}"),
                "image": image_name(index),
                "conversations": [
                    {"from": "human", "value": format!("{IMAGE}\n{question}")},
                    {"from": "gpt", "value": answer},
                ],
            })
        })
        .collect();
    format!("{:#}\n", json!(rows))
}

fn yes_no(scene: &Scene, dice: &mut Dice) -> (String, String) {
    let asked = questions(scene, dice);
    let fits = |kind: Kind| matches!(kind, Kind::Exists | Kind::IsColour);
    let chosen: Vec<_> = asked.into_iter().filter(|q| fits(q.kind)).collect();
    let question = dice.pick(&chosen);
    (question.text.clone(), question.long.clone())
}

/// Fills a folder under another name and gives it its own when it is whole, so that it is never seen in part.
fn made_once(dir: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    if dir.is_dir() {
        return own(dir);
    }
    let part = dir.with_extension(format!("part-{}", std::process::id()));
    fill(&part)?;
    match fs::rename(&part, dir) {
        Ok(()) => Ok(dir.to_owned()),
        // Another process was quicker; its folder has the same content.
        Err(_) if dir.is_dir() => {
            fs::remove_dir_all(&part).map_err(Error::io(&part))?;
            own(dir)
        }
        Err(error) => Err(Error::io(dir)(error)),
    }
}

/// A cached folder that this user or the administrator has made.
#[cfg(unix)]
fn own(dir: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata(dir).map_err(Error::io(dir))?;
    // SAFETY: the call has no precondition and cannot fail.
    let user = unsafe { libc::geteuid() };
    if ![user, 0].contains(&found.uid()) && user != 0 {
        let message = "belongs to another user, expected a folder of your own; name another cache with BDHS_CACHE";
        return Err(Error::invalid(dir, "", message));
    }
    Ok(dir.to_owned())
}

#[cfg(not(unix))]
fn own(dir: &Path) -> Result<PathBuf> {
    Ok(dir.to_owned())
}

#[cfg(all(test, feature = "demo"))]
mod tests {
    use std::fs;

    use super::{MODELS, check, files, made_once};

    /// A cached file that was changed, cut or removed is named.
    #[test]
    fn a_cache_is_what_this_program_holds() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let wanted = files(&MODELS);
        made_once(&cache, |dir| {
            for (path, content) in &wanted {
                fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
                fs::write(dir.join(path), content).unwrap();
            }
            Ok(())
        })
        .unwrap();
        check(&cache, &wanted).unwrap();
        let (path, content) =
            wanted.iter().find(|(path, _)| path.ends_with("config.json")).unwrap();
        let mut other = content.to_vec();
        other[3] ^= 1;
        for changed in [Some(other), Some(content[..9].to_vec()), None] {
            match changed {
                Some(bytes) => fs::write(cache.join(path), bytes).unwrap(),
                None => fs::remove_file(cache.join(path)).unwrap(),
            }
            let text = check(&cache, &wanted).unwrap_err().to_string();
            assert!(text.contains("config.json") && text.contains("delete the folder"), "{text}");
        }
    }
}
