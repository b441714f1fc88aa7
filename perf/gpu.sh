#!/usr/bin/env bash
# Everything that needs a GPU, in one go: the tests, one steering operation, generation.
#
#     bash perf/gpu.sh                    # results as JSON and Markdown in perf/results
#     OUT=/tmp/results bash perf/gpu.sh
#
# Needs torch with CUDA, triton and transformers; nothing is installed. About ten minutes on an
# H100. Each part runs and reports by itself: what fails last does not take the others with it.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
OUT="${OUT:-perf/results}"
PYTHON="${PYTHON:-python3}"
mkdir -p "$OUT"
failed=0

part() {
    echo "== $*"
    local start=$SECONDS
    "$@" || { echo "== failed ($?): $*"; failed=1; }
    echo "== $((SECONDS - start)) s"
}

part "$PYTHON" -c "import torch; assert torch.cuda.is_available(), 'no CUDA device'"
if "$PYTHON" -c "import pytest" 2>/dev/null; then
    part "$PYTHON" -m pytest -m gpu tests/ode/test_triton_kernels.py tests/backends/vllm/test_place_gpu.py
fi
part "$PYTHON" perf/steer_gpu.py --out "$OUT" ${STEER_ARGS:-}
part "$PYTHON" perf/decode_gpu.py --out "$OUT" ${DECODE_ARGS:-}
exit "$failed"
