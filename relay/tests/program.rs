//! The program says what it cannot do, in the forms that scripts rely on.
#![cfg(feature = "serve")]
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::process::{Command, Output};

#[test]
fn what_is_missing_is_said_with_exit_code_2() {
    let output = run(&["--json", "serve"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("cannot run \"serve\" yet"), "{stderr}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["error"]["code"], "not_available");
    assert!(json["error"]["hint"].is_string());
}

#[test]
fn the_version_is_one_line_with_name_and_commit() {
    let output = run(&["--version"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.starts_with("mesh-relay 0.") && text.trim_end().ends_with(')'), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn no_verb_is_a_usage_error() {
    assert_eq!(run(&[]).status.code(), Some(2));
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mesh-relay")).args(arguments).output().expect("the program starts")
}
