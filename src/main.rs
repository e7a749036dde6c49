//! The `kitfs` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    kitfs::cli::run()
}
