#!/bin/sh
# Fuzzes one target with libFuzzer and AddressSanitizer: run.sh TARGET SECONDS. Needs a nightly toolchain.
# What is found goes to artifacts/, what is new in coverage to target/found/, and nothing into the repository.
set -eu
cd "$(dirname "$0")"
target=$1
seconds=${2:-60}
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Zsanitizer=address -Ccodegen-units=1"
export CARGO_TARGET_DIR="$PWD/target"
cargo +nightly build -p fuzz --features libfuzzer --bin "$target" --target "$host"
mkdir -p "artifacts/$target" "target/found/$target"
exec "target/$host/debug/$target" -max_total_time="$seconds" -max_len=1024 -timeout=10 \
  -artifact_prefix="artifacts/$target/" "target/found/$target" "corpus/$target"
