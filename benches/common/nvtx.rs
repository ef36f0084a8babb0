//! NVTX ranges around profiled cases. The library is looked up at run time, so that nothing is needed to build: the CUDA
//! toolkit has it as `libnvtx3interop` (12.9 on) or `libnvToolsExt` (before 13).

use std::ffi::{CString, c_char, c_int};
use std::path::Path;

use criterion::profiler::Profiler;

const NAMES: [&str; 3] = ["libnvtx3interop.so.1", "libnvtx3interop.so", "libnvToolsExt.so.1"];

/// Under `--profile-time`: an NVTX range named as the case, from its first run to its last.
#[derive(Default)]
pub struct Ranges {
    library: Option<libloading::Library>,
}

impl Profiler for Ranges {
    fn start_profiling(&mut self, benchmark_id: &str, _: &Path) {
        if self.library.is_none() {
            // SAFETY: NVIDIA's library has no initialiser with preconditions.
            self.library =
                NAMES.iter().find_map(|name| unsafe { libloading::Library::new(*name) }.ok());
        }
        let Some(library) = &self.library else {
            eprintln!("no NVTX range for {benchmark_id}: none of {NAMES:?} is on the library path");
            return;
        };
        let name = CString::new(benchmark_id).expect("a name without zero bytes");
        // SAFETY: the signature is that of nvToolsExt.h; the string outlives the call, which copies it.
        unsafe {
            if let Ok(push) =
                library.get::<unsafe extern "C" fn(*const c_char) -> c_int>(b"nvtxRangePushA\0")
            {
                push(name.as_ptr());
            }
        }
    }

    fn stop_profiling(&mut self, _: &str, _: &Path) {
        if let Some(library) = &self.library {
            // SAFETY: as above; the range was pushed by this thread.
            unsafe {
                if let Ok(pop) = library.get::<unsafe extern "C" fn() -> c_int>(b"nvtxRangePop\0") {
                    pop();
                }
            }
        }
    }
}
