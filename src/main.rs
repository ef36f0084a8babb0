//! The `bdhs` command. All logic is in the library.

// Networks allocate and free many megabytes a step; the system's allocator gives them back to the kernel each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    bdhs::cli::main()
}
