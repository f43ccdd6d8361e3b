//! `mesh-control`: see the crate's documentation.

use std::process::ExitCode;

fn main() -> ExitCode {
    control::serve::run()
}
