//! The `bdhs` command. All logic is in the library.

use std::ffi::{c_int, c_long};

// Networks allocate and free many megabytes a step; the system's allocator gives them back to the kernel each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    /// Of mimalloc: sets an option that the environment does not.
    fn mi_option_set_default(option: c_int, value: c_long);
}

/// mimalloc's number of `MIMALLOC_PURGE_DELAY`: how many milliseconds free memory is kept before
/// the kernel has it back.
const PURGE_DELAY: c_int = 15;
/// By default it is 1,000: the kernel then clears pages again and again that passes have just given
/// up, a tenth of a run's time.
const KEPT: c_long = 10_000;

fn main() -> std::process::ExitCode {
    // SAFETY: the function has this signature, and the allocator is in use by now.
    unsafe { mi_option_set_default(PURGE_DELAY, KEPT) };
    bdhs::cli::main()
}
