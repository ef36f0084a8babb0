//! The `bdhs` command. All logic is in the library.

fn main() -> std::process::ExitCode {
    bdhs::cli::main()
}
