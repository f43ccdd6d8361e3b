#!/bin/sh
# Fuzzes one target with libFuzzer and AddressSanitizer: run.sh TARGET SECONDS. Needs a nightly toolchain.
# What is found goes to artifacts/, what is new in coverage to target/found/, and nothing into the repository.
# `run.sh TARGET merge` makes the corpus small again, with what was found.
set -eu
cd "$(dirname "$0")"
target=${1:?which target?}
seconds=${2:-60}
if [ ! -d "corpus/$target" ]; then
  echo "run.sh: no target is called '$target': there is no folder corpus/$target" >&2
  exit 2
fi
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Zsanitizer=address -Ccodegen-units=1"
export CARGO_TARGET_DIR="$PWD/target"
cargo +nightly build -p fuzz --features libfuzzer --bin libfuzzer --target "$host"
mkdir -p "artifacts/$target" "target/found/$target"
export FUZZ_TARGET="$target"
if [ "$seconds" = merge ]; then
  rm -rf "target/merged/$target"
  mkdir -p "target/merged/$target"
  "target/$host/debug/libfuzzer" -merge=1 -max_len=65536 "target/merged/$target" "corpus/$target" "target/found/$target"
  rm -rf "corpus/$target"
  exec mv "target/merged/$target" "corpus/$target"
fi
exec "target/$host/debug/libfuzzer" -max_total_time="$seconds" -max_len=65536 -timeout=10 \
  -artifact_prefix="artifacts/$target/" "target/found/$target" "corpus/$target"
