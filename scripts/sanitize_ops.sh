#!/usr/bin/env bash
# The C++ of the CPU operators under AddressSanitizer and UndefinedBehaviorSanitizer, over odd sizes and numbers:
# once as plain code, once with this machine's vectors. Takes about two minutes; needs g++.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
sanitize=(-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all)
for machine in x86-64 native; do
    [ "$(uname -m)" = x86_64 ] || [ $machine = native ] || continue
    "${CXX:-g++}" -std=c++17 -O2 -ftree-vectorize -g -march=$machine -fno-math-errno -fno-trapping-math \
        -fopenmp -DONE_INSTRUCTION_SET "${sanitize[@]}" tests/ops/sanitize_cpu.cpp -o "$folder/sanitize"
    echo "built for $machine"
    "$folder/sanitize"
done
