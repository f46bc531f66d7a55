#!/bin/sh
# Builds the fuzz targets and runs each for a number of inputs (200000, and a hundredth of that where an input is a
# connection or an image, a twentieth where it is a device's life),
# from a fixed seed: fuzz/run.sh [RUNS]
#
# Needs a nightly toolchain and a C++ compiler (libFuzzer is C++); without them it says so and succeeds. No cargo-fuzz.
set -eu
runs=${1:-200000}
cd "$(dirname "$0")"
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "SKIPPED: fuzzing needs a nightly toolchain (rustup toolchain install nightly --profile minimal)"
    exit 0
fi
if ! command -v c++ >/dev/null 2>&1; then
    echo "SKIPPED: fuzzing needs a C++ compiler (Debian package g++)"
    exit 0
fi
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-../target}/fuzz"
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS="$coverage -Zsanitizer=address --cfg fuzzing -Ccodegen-units=1" \
    cargo +nightly build --quiet --release --locked --target x86_64-unknown-linux-gnu
mkdir -p artifacts
# libdeflate includes one file with static tables twice, which the compiler of C tells the sanitizer of as two of one name.
export ASAN_OPTIONS=detect_odr_violation=0
for target in ring_hostile_driver ring_hostile_device vhost_hostile_frontend vhost_hostile_backend \
    qcow2_hostile device_e1000 device_ide device_lsi scsi_target; do
    case $target in
    vhost_* | qcow2_*) count=$((runs / 100)) ;;
    device_*) count=$((runs / 20)) ;;
    *) count=$runs ;;
    esac
    echo "fuzz: $target, $count inputs"
    log="$CARGO_TARGET_DIR/$target.log"
    if ! "$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release/$target" -runs="$count" -seed=1 -max_len=400 \
        -len_control=0 -artifact_prefix=artifacts/ >"$log" 2>&1; then
        tail -n 40 "$log"
        echo "fuzz: $target failed; the input is in fuzz/artifacts"
        exit 1
    fi
    grep DONE "$log"
done
