#!/usr/bin/env bash
# Everything that is measured on a GPU, part by part, in at most eight minutes.
#
#     bash benchmarks/gpu.sh [--rehearse] [--wheels DIR] [--output DIR]
#
# --wheels    directory of the wheels that the machine lacks; they are installed beside it, without
#             a network, and nothing of the machine's own is changed
# --output    where each part writes NAME.json and NAME.log (default benchmarks/results/gpu)
# --rehearse  everything tiny, on the CPU
#
# Needs Python 3.11 or later with jax and its CUDA plugin, flax, torch and transformers; an image that
# has these usually lacks grain, array-record, portpicker, tyro, docstring-parser, typeguard and cattrs:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#         --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d DIR NAME ...
#
# Each part has a limit of its own and is ended there, and keeps what it had written. The parts are
# described in benchmarks/gpu.py; parts.txt lists how they ended, and the exit status is 0 if all did
# well.
set -u
cd "$(dirname "$0")/.."

output=benchmarks/results/gpu wheels='' rehearse='' slower=1
while [ $# -gt 0 ]; do
  case $1 in
    --rehearse) rehearse=--rehearse slower=20 ;;  # nobody hurries a rehearsal on a busy CPU
    --wheels) wheels=${2:?--wheels needs a directory}; shift ;;
    --output) output=${2:?--output needs a directory}; shift ;;
    -h|--help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "unknown $1: see --help" >&2; exit 2 ;;
  esac
  shift
done
python=${PYTHON:-python3}
total=$((480 * slower))  # seconds for all of it
mkdir -p "$output"

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # several processes share the GPU
export JAXFORMER_CACHE=${JAXFORMER_CACHE:-$(mktemp -d)}
[ -n "$rehearse" ] && export JAX_PLATFORMS=cpu
if [ -n "$wheels" ]; then
  site=$(mktemp -d)
  $python -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl || exit
  export PYTHONPATH=$PYTHONPATH:$site
fi

parts=$output/parts.txt
: > "$parts"
part() {  # NAME SECONDS: run a part, for as long as its limit and what is left allow
  local name=$1 limit=$(($2 * slower)) left=$((total - SECONDS - 5)) begun=$SECONDS
  [ "$limit" -gt "$left" ] && limit=$left
  if [ "$limit" -lt 10 ]; then
    echo "$name: no time was left" | tee -a "$parts"
    return
  fi
  timeout --kill-after 5 "$limit" $python -m benchmarks.gpu "$name" --output "$output" $rehearse \
    > "$output/$name.log" 2>&1
  echo "$name: exit status $? after $((SECONDS - begun)) s" | tee -a "$parts"
}

part train 150
part decode 110
part resume 60
part plan 50
part float64 95 &  # a proof keeps a GPU busy for a small part of its time
part float32 95
wait
! grep -qv 'exit status 0 ' "$parts"
