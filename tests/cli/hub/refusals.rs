//! What is said where nothing can be fetched.

use std::collections::HashMap;
use std::fs;

use super::World;
use super::server::{Faults, files, sha256};
use crate::common::{skip::skip, succeed};

/// Exit code and parts of the message.
fn says(told: (i32, String), code: i32, parts: &[&str]) {
    let (found, message) = told;
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert_eq!(found, code, "{message}");
}

#[test]
fn the_hub_refuses() {
    let world = World::new();
    let refused = |status, code, message| Faults {
        refused: HashMap::from([("tiny/llava".to_owned(), (status, code, message))]),
        ..Faults::default()
    };
    let mut with_token = world.fetch("tiny/llava");
    with_token.env("HF_TOKEN", "secret");
    let page = format!("{}/tiny/llava", world.hub.url());
    for status in [401, 403] {
        world.hub.set(refused(status, "GatedRepo", "Access to model tiny/llava is restricted."));
        let told = world.refused(&mut world.fetch("tiny/llava"));
        says(told, 3, &["tiny/llava", "gated", &page, "HF_TOKEN", "hf auth login"]);
        let told = world.refused(&mut with_token);
        assert!(!told.1.contains("secret"), "{}", told.1);
        says(told, 3, &["gated", &page, "the same account", "HF_TOKEN"]);
    }
    world.hub.set(refused(401, "", "Invalid credentials in Authorization header"));
    says(world.refused(&mut with_token), 3, &["does not know the token from HF_TOKEN"]);
    world.hub.set(refused(403, "", "needs a fine-grained token"));
    says(world.refused(&mut with_token), 3, &["needs a fine-grained token", &page]);
    world.hub.set(refused(404, "RepoNotFound", ""));
    says(world.refused(&mut with_token), 3, &["no folder here", &page, "private"]);
    world.hub.set(Faults::default());
    // As the real one answers for repositories that do not exist.
    says(
        world.refused(&mut world.fetch("tiny/lava")),
        3,
        &["tiny/lava", "no folder here, and no repository at", "HF_TOKEN"],
    );
    says(
        world.refused(&mut world.fetch("tiny/llava@v2")),
        3,
        &["tiny/llava@v2", "no branch, tag or commit \"v2\"", "/tree/main"],
    );
    says(
        world.refused(&mut world.embed("tiny-mpnet")),
        3,
        &["sentence-transformers/tiny-mpnet", "no repository"],
    );
    assert!(!world.home().join("hub").exists(), "nothing was fetched");
    // A hub that is busy for a moment is asked again; one that stays busy is not asked for ever.
    world.hub.set(Faults { busy: 2, ..Faults::default() });
    succeed(&mut world.fetch("tiny/llava"));
    world.hub.set(Faults { busy: 9, ..Faults::default() });
    says(world.refused(&mut world.fetch("tiny/llava@v1")), 4, &["status 503"]);
}

/// A branch is completed at the commit that it was when it was cached; where that has been deleted since, the branch is not blamed.
#[test]
fn a_cached_commit_is_gone() {
    let world = World::new();
    let (gone, repo) = ("0123456789abcdef0123456789abcdef01234567", world.repo("tiny/llava"));
    let reference = repo.join("refs/main");
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(&reference, gone).unwrap();
    let told = world.refused(&mut world.fetch("tiny/llava"));
    says(told, 3, &["tiny/llava: ", gone, "no longer has", reference.to_str().unwrap()]);
    let told = world.refused(&mut world.fetch(&format!("tiny/llava@{gone}")));
    says(told, 3, &[&format!("no branch, tag or commit {gone:?}")]);
    // What it says helps.
    fs::remove_file(reference).unwrap();
    succeed(&mut world.fetch("tiny/llava"));
}

#[test]
fn nothing_is_cached_and_there_is_no_hub() {
    let world = World::new();
    let cache = world.repo("tiny/llava");
    let cache = cache.to_str().unwrap();
    let told = world.refused(world.fetch("tiny/llava").env("HF_HUB_OFFLINE", "1"));
    says(told, 3, &["tiny/llava", "HF_HUB_OFFLINE", cache, "`hf download tiny/llava`"]);
    let told = world.refused(world.fetch("tiny/llava@v1").env("HF_ENDPOINT", "http://127.0.0.1:9"));
    says(
        told,
        4,
        &["127.0.0.1:9", "not to be reached", cache, "`hf download tiny/llava --revision v1`"],
    );
    assert!(world.hub.seen().is_empty());
}

#[test]
fn a_repository_is_something_else() {
    let world = World::new();
    fs::remove_file(world.dir.path().join("hub/bert/model.safetensors")).unwrap();
    let told = world.refused(&mut world.embed("tiny/bert"));
    says(told, 3, &["tiny/bert", "pytorch_model.bin", "expected model.safetensors"]);
    let told = world.refused(&mut world.embed("tiny/llava"));
    says(told, 3, &["tiny/llava", "no modules.json", "sentence-transformers"]);
    assert!(!world.home().join("hub").exists());
}

#[test]
fn a_file_that_comes_as_another_is_deleted() {
    let world = World::new();
    world.hub.set(Faults { damaged: true, ..Faults::default() });
    let mut bytes = fs::read(world.dir.path().join("hub/bert/model.safetensors")).unwrap();
    let expected = sha256(&bytes);
    *bytes.last_mut().unwrap() ^= 1;
    let told = world.refused(&mut world.embed("tiny/bert"));
    says(told, 3, &["tiny/bert", "model.safetensors", &expected, &sha256(&bytes), "deleted"]);
    let blobs = files(&world.repo("tiny/bert").join("blobs"), "");
    assert!(!blobs.iter().any(|name| name.contains(&expected)), "{blobs:?}");
    assert!(!world.snapshot("tiny/bert").join("model.safetensors").exists());
    world.hub.set(Faults::default());
    succeed(&mut world.embed("tiny/bert"));
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named_and_gone_on_from() {
    let world = World::new();
    let home = world.home();
    fs::create_dir_all(&home).unwrap();
    let mount = |arguments: &[&str]| {
        let mut command = std::process::Command::new("mount");
        command.args(arguments).arg(&home).output().is_ok_and(|output| output.status.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=120k", "tmpfs"]) {
        skip("disk", "a small file system cannot be mounted here");
        return;
    }
    let told = world.refused(&mut world.fetch("tiny/llava"));
    let remounted = mount(&["-o", "remount,size=64m"]);
    world.hub.seen();
    let after = world.fetch("tiny/llava").output().unwrap();
    let ranged = world.hub.seen().into_iter().any(|seen| seen.range.is_some());
    let clean = std::process::Command::new("umount").arg("-l").arg(&home).status();
    says(told, 4, &["no space for model.safetensors of tiny/llava", "HF_HOME"]);
    assert!(remounted && after.status.success() && clean.is_ok_and(|status| status.success()));
    assert!(ranged, "what had come was fetched again");
}
