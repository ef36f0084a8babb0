//! Calls as a CUDA graph: enqueued once, launched as one thing again and again. What a call may do is said in [`super`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaStream, result};

use super::{driver_error, is_capturing};
use crate::{Error, Result};

const OP: &str = "cuda::graph";

/// Work that was captured, with the addresses and counts of that time.
pub struct Graph(cudarc::driver::CudaGraph);

// SAFETY: it is no thread's own, and one thread at a time has it: launching takes `&mut`.
unsafe impl Send for Graph {}
// SAFETY: nothing can be done with a shared one.
unsafe impl Sync for Graph {}

impl Graph {
    /// Captures what `work` enqueues on `stream`. None of it runs before [`Graph::launch`].
    ///
    /// # Errors
    /// Those of `work`, and statuses of the driver: of a stream that is the default one, for one, or if `work` waits for
    /// another stream. The stream is as before then.
    pub fn capture(stream: &Arc<CudaStream>, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        // An error that was recorded earlier, as a buffer was dropped, is nothing that the capture
        // could mend.
        let _ = stream.context().check_err();
        stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(driver_error(OP, "beginning a capture"))?;
        let worked = work();
        // One that was recorded meanwhile would be all that the end has to say, and the stream
        // would go on capturing.
        let recorded = stream.context().check_err();
        // What is allocated within is freed within.
        let graph = stream.end_capture(CUgraphInstantiate_flags(0));
        if graph.is_err() {
            abandon(stream);
        }
        worked?;
        recorded.map_err(driver_error(OP, "capturing"))?;
        let graph = graph.map_err(driver_error(OP, "ending a capture"))?;
        let none =
            || Error::Device { op: OP, what: "ending a capture", message: "no graph".into() };
        graph.map(Self).ok_or_else(none)
    }

    /// Runs it once, on the stream that it was captured on. Its buffers must be alive, and nobody else may write to them.
    ///
    /// # Safety
    /// Everything whose address was captured is still there.
    ///
    /// # Errors
    /// Statuses of the driver.
    pub unsafe fn launch(&mut self) -> Result<()> {
        self.0.launch().map_err(driver_error(OP, "launching"))
    }
}

/// Ends a capture whose end has failed, if the stream is still at it.
fn abandon(stream: &CudaStream) {
    let _ = stream.context().check_err();
    if is_capturing(OP, stream).is_ok_and(|capturing| !capturing) {
        return;
    }
    // SAFETY: the stream is alive; the graph is nobody else's. What the driver says to an end after
    // a failed one is no news.
    unsafe {
        if let Ok(graph) = result::stream::end_capture(stream.cu_stream())
            && !graph.is_null()
        {
            let _ = result::graph::destroy(graph);
        }
    }
}

/// While this lives, cudarc neither records nor waits for the events by which it keeps streams of a context apart. A call could
/// not be captured with them: a captured stream cannot wait for what was recorded before.
pub struct Untracked {
    context: Arc<CudaContext>,
    was_tracked: bool,
    _alone: MutexGuard<'static, ()>,
}

impl Untracked {
    /// One at a time in a process; the next waits.
    ///
    /// # Safety
    /// Whoever enqueues work meanwhile sees to the order of streams themselves, and allocates nothing that several streams will
    /// use.
    pub unsafe fn new(context: &Arc<CudaContext>) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        // It guards nothing that a panic could leave half done.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let was_tracked = context.is_event_tracking();
        // SAFETY: the caller's.
        unsafe { context.disable_event_tracking() };
        Self { context: context.clone(), was_tracked, _alone: alone }
    }
}

impl Drop for Untracked {
    fn drop(&mut self) {
        if self.was_tracked {
            // SAFETY: nothing was allocated meanwhile that several streams use.
            unsafe { self.context.enable_event_tracking() };
        }
    }
}
