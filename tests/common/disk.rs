//! A file system that is soon full.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system, mounted until it is dropped.
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts one of `size` (as mount has it, `160k`) on a new folder in `dir`; a skip
    /// where that is not allowed.
    pub fn mount(dir: &Path, size: &str) -> Option<Self> {
        let place = dir.join("full");
        std::fs::create_dir(&place).unwrap();
        let option = format!("size={size}");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &option, "tmpfs"])
            .arg(&place)
            .output();
        if output.is_ok_and(|output| output.status.success()) {
            return Some(Self(place));
        }
        super::skip::skip("disk", "a small file system cannot be mounted here");
        None
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes room.
    pub fn grow(&self) {
        let status = Command::new("mount").args(["-o", "remount,size=64m"]).arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a file may still be open. What is left goes with the folder's parent.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
