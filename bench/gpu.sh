#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes: builds for this GPU, runs the tests,
# the sanitizer and the benchmarks, and writes what it found to a folder.
#
#     bench/gpu.sh [FOLDER]        (bench/results by default)
#
# Wants a python3 with a CUDA torch >= 2.10, nvcc, pytest, pytest-benchmark, hypothesis, scikit-learn,
# scikit-build-core and pybind11; CuPy and compute-sanitizer are used where they are. Downloads nothing
# and installs robustcore into a temporary folder. A stage that fails does not keep the later ones from
# running; the exit status says whether all passed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
results=$(realpath -m "${1:-bench/results}")
mkdir -p "$results"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -c 'import torch; assert torch.cuda.is_available()' ||
  { echo "bench/gpu.sh: python3 has no torch that sees a GPU" >&2; exit 2; }
name=$(python3 -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "_"))')
log=$results/gpu_$name.log
: > "$log"
failed=()

stage() { # stage NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  printf '\n======== %s\n' "$name" | tee -a "$log"
  timeout "$limit" "$@" >> "$log" 2>&1
  status=$?
  [ $status -eq 0 ] || failed+=("$name")
  tail -n 15 "$log"
  printf -- '-------- %s: exit %d, %d s\n' "$name" "$status" $((SECONDS - start)) | tee -a "$log"
  return $status
}

nvidia-smi >> "$log"
stage build 240 python3 -m pip install -q --no-deps --no-build-isolation --no-cache-dir \
  --target "$work/site" . || exit 1
export PYTHONPATH=$work/site
python3 -c 'import robustcore; print(robustcore.build_info())' | tee -a "$log"

stage "tests on the GPU" 240 python3 -m pytest -m cuda -q tests
for family in smoothing lipschitz density masking; do
  stage "benchmarks: $family" 150 python3 -m pytest "bench/$family" --device cuda -q \
    --benchmark-json "$results/gpu_${name}_$family.json" \
    --report "$results/gpu_${name}_$family.md"
done
if command -v compute-sanitizer > /dev/null; then
  # Small shapes are enough for it: every kernel runs, and each access is checked.
  small="(reference or special or gradients or same_bits) and cuda"
  for tool in memcheck racecheck; do
    stage "compute-sanitizer $tool" 150 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      --target-processes all python3 -m pytest -m cuda -q -x -k "$small" \
      tests/smoothing/test_gaussian_noise.py tests/smoothing/test_gaussian_noise_gradients.py \
      tests/smoothing/test_count_votes.py tests/smoothing/test_offsets.py
  done
else
  echo "compute-sanitizer: not on this machine" | tee -a "$log"
fi

if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[*]}" | tee -a "$log"
  exit 1
fi
echo "all stages passed" | tee -a "$log"
