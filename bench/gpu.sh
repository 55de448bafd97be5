#!/usr/bin/env bash
# Everything that needs a GPU, in two calls of at most 400 and 240 s:
#
#     bench/gpu.sh [OUT]             builds for this GPU; ops against the CPU's bits; the tests; every
#                                    kernel beside the device's ceilings; whole pieces of work
#     bench/gpu.sh --again [OUT]     what failed; compute-sanitizer; ncu (on the same machine)
#     bench/gpu.sh --rehearse [OUT]  every line of both on a machine without a GPU, at tiny sizes
#
# OUT (build/gpu/out by default) gets gpu.tar, and gpu.md made of it; the last lines printed are a
# summary. For bench/results and the README: python3 bench/gpu/report.py gpu.tar --results FILE ...
# `--wheel FILE` installs that instead of building. Wants a python3 with a CUDA torch >= 2.10, pytest,
# pytest-xdist, hypothesis, scikit-learn, torchvision and, to build, nvcc, scikit-build-core and
# pybind11. Downloads nothing; what it builds stays in build/gpu. Every stage has its own time, and one
# that fails or is slow costs only itself; the exit status says whether all passed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

device=cuda again= tiny=() source=. workers=8 out=
while [ $# -gt 0 ]; do
  case $1 in
    --again) again=1 ;;
    --rehearse) device=cpu tiny=(--tiny) workers=2 ;;
    --wheel) source=$2; shift ;;
    -*) echo "bench/gpu.sh: $1 is no option" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
rehearse=${tiny[0]:-}
mkdir -p "${out:=build/gpu/out}" build/gpu
out=$(realpath "$out") work=$(realpath build/gpu)
found=$work/found # what becomes the tar
if [ -z "$again" ]; then rm -rf "$found" "$work/cache"; fi
mkdir -p "$found"

# The checkout is kept off Python's path, or its folder robustcore would hide the one installed.
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONPATH=$work/site:$PWD/bench/gpu
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
if [ -z "$rehearse" ]; then
  archs=$(python3 -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') ||
    { echo "bench/gpu.sh: python3 has no torch that sees a GPU" >&2; exit 2; }
  export ROBUSTCORE_CUDA=on ROBUSTCORE_CUDA_ARCHS=$archs
  nvidia-smi > "$found/machine.txt" 2>&1
fi

end=$((SECONDS + 390))
if [ -n "$again" ]; then end=$((SECONDS + 230)); fi
if [ -n "$rehearse" ]; then end=$((SECONDS + 1800)); fi
touch "$found/stages.tsv"

stage() { # stage NAME SECONDS COMMAND...: its output goes to NAME.log
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  if [ -n "$rehearse" ]; then limit=$((4 * limit)); fi # few and slow cores
  limit=$((limit < end - start ? limit : end - start))
  if [ "$limit" -lt 5 ]; then
    printf '%s\tno time left\t0\n' "$name" >> "$found/stages.tsv"
    return 1
  fi
  timeout -k 10 -s INT "$limit" "$@" > "$found/$name.log" 2>&1
  status=$?
  case $status in
    0 | 5) status=passed ;; # 5: pytest had nothing to run again
    124 | 137) status="stopped after $limit s" ;;
    *) status="exit $status" ;;
  esac
  printf '%s\t%s\t%d\n' "$name" "$status" $((SECONDS - start)) | tee -a "$found/stages.tsv"
  [ "$status" = passed ]
}

measure() { # measure STAGE SECONDS FILE ARGUMENTS...: a piece of bench/gpu, its table STAGE.tsv
  stage "$1" "$2" python3 "bench/gpu/$3.py" "$found/$1.tsv" --device "$device" "${tiny[@]}" "${@:4}"
}

pack() { # the summary, and everything in one file: at any time before the end, too
  python3 bench/gpu/summary.py "$found" > "$work/summary.txt" 2>&1
  tar -czf "$out/gpu.tar" -C "$found" .
}

# A rehearsal collects few tests: without a GPU they are skipped.
tests=(tests)
if [ -n "$rehearse" ]; then tests=(tests/common tests/density/test_logsumexp.py); fi
pytest=(python3 -m pytest "${tests[@]}" -q -m cuda -n "$workers" --continue-on-collection-errors
  -o "cache_dir=$work/cache" --tb short)

if [ ! -d "$work/site/robustcore" ] || [ -z "$again" ]; then
  rm -rf "$work/site"
  stage build 150 python3 -m pip install -q --no-deps --no-build-isolation --no-cache-dir \
    --no-index --target "$work/site" "$source" || { pack; cat "$found/build.log"; exit 1; }
fi

first_call() {
  measure ops 40 ops_once
  stage tests 75 "${pytest[@]}" --junitxml "$found/tests.xml"
  pack
  measure kernels 55 kernels
  measure launched 25 launched
  measure certify 55 end_to_end --piece certify --seconds 35
  pack
  measure resnet50 50 end_to_end --piece resnet50 --seconds 25
  measure soc 45 end_to_end --piece soc --seconds 25
  measure density 45 end_to_end --piece density --seconds 25
}

second_call() {
  local memcheck=(compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1)
  local racecheck=(compute-sanitizer --tool racecheck --error-exitcode 1)
  local ncu=(ncu --csv --page details --log-file "$found/ncu.csv" --clock-control none
    --kernel-name-base demangled --kernel-name 'regex:robustcore' --launch-count 80
    --section SpeedOfLight --section WarpStateStats --section Occupancy --section LaunchStats)
  if [ -n "$rehearse" ]; then memcheck=(env) racecheck=(env) ncu=(env); fi
  local touch=(python3 bench/gpu/ops_once.py "$work/touched.tsv" --device "$device" --touch)
  stage tests_again 50 "${pytest[@]}" --lf --lfnf none --junitxml "$found/tests_again.xml"
  # Without torch's cache every tensor is an allocation of its own, whose ends are seen.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage memcheck 70 "${memcheck[@]}" "${touch[@]}"
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage racecheck 70 "${racecheck[@]}" "${touch[@]}"
  # Of what fell short, why.
  stage ncu 60 "${ncu[@]}" python3 bench/gpu/kernels.py "$work/profiled.tsv" --device "$device" \
    "${tiny[@]}" --once --slow "$found/kernels.tsv"
}

if [ -z "$again" ]; then first_call; fi
if [ -n "$again$rehearse" ]; then second_call; fi
pack
python3 bench/gpu/report.py "$out/gpu.tar" --results "$out/gpu.md" ||
  printf 'report\tfailed\t0\n' | tee -a "$found/stages.tsv"
cat "$work/summary.txt"
awk -F '\t' '$2 != "passed" { failed = 1 } END { exit failed }' "$found/stages.tsv"
