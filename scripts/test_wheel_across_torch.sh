#!/usr/bin/env bash
# Builds the wheel once and runs the tests of mask2former/ops with it under two versions of torch, in environments of
# their own. Takes some minutes, and some GB of disk where the index has only CUDA builds of torch.
#
#   scripts/test_wheel_across_torch.sh [PYTHON=TORCH ...]     default: python3=2.13.0 python3=2.6.0
#
# TORCH is a version of the index; PYTHON runs it. TORCH_INSTALL, where set, is given to pip besides torch itself.
set -euo pipefail
cd "$(dirname "$0")/.."
clone=$PWD
[ $# -gt 0 ] || set -- python3=2.13.0 python3=2.6.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${1%%=*}" -m venv "$folder/build"
"$folder/build/bin/python" -m pip install --quiet build
git ls-files -z --cached --others --exclude-standard | tar --null -T - --ignore-failed-read -c 2>/dev/null |
    tar -x --one-top-level="$folder/clone"
"$folder/build/bin/python" -m build --wheel --outdir "$folder" "$folder/clone" >"$folder/build.log" 2>&1 ||
    { cat "$folder/build.log"; exit 1; }
wheel=$(echo "$folder"/*.whl)
echo "built $(basename "$wheel")"
mkdir "$folder/tests"
cp -r tests/ops tests/support tests/conftest.py "$folder/tests"

for pair in "$@"; do
    environment="$folder/${pair##*=}"
    "${pair%%=*}" -m venv "$environment"
    # shellcheck disable=SC2086  # several options
    "$environment/bin/python" -m pip install --quiet "torch==${pair##*=}" ${TORCH_INSTALL:-}
    "$environment/bin/python" -m pip install --quiet --no-deps "$wheel"
    "$environment/bin/python" -m pip install --quiet numpy pytest hypothesis
    echo "torch ${pair##*=}, $("$environment/bin/python" --version)"
    (cd "$folder/tests" && MASK2FORMER_OPS=cpu "$environment/bin/python" -c \
        "from mask2former.ops import cpu; reason = cpu.why_unavailable(); print(cpu.LIBRARY); assert reason is None, reason")
    (cd "$folder/tests" && PYTHONPATH=support OMP_NUM_THREADS=2 "$environment/bin/python" -m pytest -q -p no:cacheprovider ops)
done
cd "$clone"
