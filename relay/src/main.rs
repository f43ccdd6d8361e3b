//! `mesh-relay`: see the crate's documentation.

use std::process::ExitCode;

fn main() -> ExitCode {
    relay::serve::run()
}
