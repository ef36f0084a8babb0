//! How long work reports itself and hears that it should stop.

/// Hears of progress and can ask long work to stop. `()` is the silent one.
pub trait Progress: Sync {
    /// A stage begins: its name and the number of steps, where known.
    fn begin(&self, _stage: &str, _steps: Option<u64>) {}
    /// So many more steps of the current stage are done.
    fn advance(&self, _steps: u64) {}
    /// Something that the user should read, now.
    fn warn(&self, _message: &str) {}
    /// Whether to stop at the next safe point with [`crate::Error::Interrupted`].
    fn stop_requested(&self) -> bool {
        false
    }
}

impl Progress for () {}

/// The safe points of long work: an error once a stop was requested.
pub fn checkpoint(progress: &dyn Progress) -> crate::Result<()> {
    if progress.stop_requested() { Err(crate::Error::Interrupted) } else { Ok(()) }
}
