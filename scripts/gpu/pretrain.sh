#!/usr/bin/env bash
# What the device machine runs, from the root of the repository's copy there. README.md beside this has the calls.
#
#   load                  keep the carried .gpu/cache-N (parts of the art world) and .gpu/models in the kit
#   start SECONDS ARGS    set up, begin pretrain.py ARGS in a session of its own, then attach for SECONDS
#   attach SECONDS        wait for its end, at most SECONDS; bring its newest export to $OUT
#   stop                  let it finish its step, export, and end
#   decoder ARGS          retrain the autoencoder's decoder: parts.py decoder ARGS, in the foreground
#   bench ARGS            bench_real_size.py ARGS: needs .gpu/whl or an earlier start, nothing else
#   make-flux ARGS        checks.py make-flux ARGS in a session of its own, which goes on when the call ends: after start
#   check SECONDS ARGS    checks.py ARGS: impasto's own commands on the device; may run beside a training
#
# IMPASTO_GPU_RUN names the run, so that two bases train at once: each comes back in a folder of its name, without its
# log (8 files come back in all). "run" is the first one's name.
# The kit, $IMPASTO_GPU_KIT (/tmp/impasto-kit), is a copy: a later call that renews the working tree disturbs nothing.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
export IMPASTO_GPU_KIT=${IMPASTO_GPU_KIT:-/tmp/impasto-kit}
kit=$IMPASTO_GPU_KIT
name=${IMPASTO_GPU_RUN:-run}
run=$kit/$name
python=${PYTHON:-python3}
out=${OUT:?"OUT is the folder whose files come back; set it to try this elsewhere"}
export IMPASTO_CACHE=$kit/cache PYTHONPATH=$kit/site:$kit/src PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
export TORCHINDUCTOR_CACHE_DIR=$kit/inductor
mkdir -p "$kit" "$run" "$out"

alive() { [ -f "$run/pid" ] && kill -0 "$(cat "$run/pid")" 2>/dev/null; }

others() { for pid in "$kit"/*/pid; do [ -f "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null && return 0; done; return 1; }

keep() {  # what is carried, in the kit
  local load
  for load in "$root"/.gpu/cache*; do
    [ -d "$load" ] || continue
    mkdir -p "$kit/loads"
    rm -rf "$kit/loads/$(basename "$load")"
    cp -r "$load" "$kit/loads/"
  done
  if [ -d "$root/.gpu/models" ]; then mkdir -p "$kit/models"; cp -r "$root/.gpu/models/." "$kit/models/"; fi
  if [ -d "$root/.gpu/start" ]; then rm -rf "$kit/start"; cp -r "$root/.gpu/start" "$kit/start"; fi
  if [ ! -d "$kit/site" ] && [ -d "$root/.gpu/whl" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$kit/site" \
      "$root"/.gpu/whl/*.whl
    local info=$kit/site/impasto-0.dist-info  # runs note its version
    mkdir -p "$info"
    printf 'Metadata-Version: 2.1\nName: impasto\nVersion: %s\n' \
      "$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$root/src/impasto/__init__.py")" >"$info/METADATA"
  fi
}

setup() {
  if alive; then echo "pretrain.py is running: attach or stop" >&2; exit 1; fi
  if others; then return; fi  # of this packing, and in use
  rm -rf "$kit/src" "$kit/scripts" "$kit/tests"
  mkdir -p "$kit/scripts"
  cp -r "$root/src" "$kit/src"
  cp -r "$root/scripts/gpu" "$kit/scripts/gpu"
  [ ! -d "$root/tests" ] || cp -r "$root/tests" "$kit/tests"  # checks.py makes its FLUX with tests/tiny.py
  keep
  if [ -d "$kit/models" ]; then cp -r "$kit/models/." "$kit/src/impasto/models/"; fi
  local loads=("$kit"/loads/*/artworld/artworld128.safetensors)
  if [ -f "${loads[0]}" ]; then
    "$python" "$kit/scripts/gpu/kit.py" join "$IMPASTO_CACHE/artworld/artworld128.safetensors" "${loads[@]}"
  fi
}

attach() {
  local end=$((SECONDS + $1)) said=$SECONDS
  while [ $SECONDS -lt $end ] && [ ! -f "$run/done.json" ] && alive; do
    sleep 1
    if [ $((SECONDS - said)) -ge 60 ]; then said=$SECONDS; tail -n 1 "$run/stdout.log" || true; fi
  done
  if [ "$name" = run ]; then "$python" "$kit/scripts/gpu/kit.py" collect "$run" "$out"
  else
    "$python" "$kit/scripts/gpu/kit.py" collect "$run" "$out/$name"
    rm -f "$out/$name/log.jsonl"
    tail -n 6 "$run/state/log.jsonl" || true
  fi
  tail -n 3 "$run/stdout.log"
  if [ -f "$run/done.json" ]; then cat "$run/done.json"
  elif ! alive; then echo "pretrain.py ended before its time:" >&2; tail -n 40 "$run/stdout.log" >&2; exit 1
  fi
}

verb=${1:?"load, start, attach, stop, decoder, bench, make-flux or check"}
shift
case $verb in
  load)
    keep
    du -shc "$kit"/*
    "$python" -c 'import torch, transformers
print("torch", torch.__version__, "transformers", transformers.__version__, "cuda", torch.cuda.is_available())
if torch.cuda.is_available():
    x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    print(torch.cuda.get_device_name(), torch.cuda.mem_get_info(), float((x @ x).float().std()))'
    ;;
  start)
    seconds=$1
    shift
    setup
    rm -f "$run/done.json" "$run/pid"
    setsid bash -c 'echo $$ > "$0/pid"; exec "$@"' "$run" \
      "$python" -W ignore "$kit/scripts/gpu/pretrain.py" --run "$run" "$@" >"$run/stdout.log" 2>&1 </dev/null &
    for _ in $(seq 50); do [ -f "$run/pid" ] && break; sleep 0.1; done
    attach "$seconds"
    ;;
  attach) attach "$1" ;;
  stop)
    if alive; then kill -TERM "$(cat "$run/pid")"; fi
    attach 120
    ;;
  decoder)
    [ -f "$IMPASTO_CACHE/artworld/artworld128.safetensors" ] || setup
    "$python" -W ignore "$kit/scripts/gpu/parts.py" decoder --run "$kit/decoder" "$@"
    mkdir -p "$out/decoder"
    "$python" "$kit/scripts/gpu/kit.py" collect "$kit/decoder" "$out/decoder"
    ;;
  bench)
    [ -d "$kit/src" ] || setup
    "$python" -W ignore "$kit/scripts/gpu/bench_real_size.py" --out "$out/bench.json" "$@"
    ;;
  make-flux)
    [ -d "$kit/src" ] || setup
    setsid "$python" -W ignore "$kit/scripts/gpu/checks.py" make-flux --device cpu "$@" \
      >"$kit/make-flux.log" 2>&1 </dev/null &
    df -h /dev/shm | tail -n 1 || true
    ;;
  check)
    seconds=$1
    shift
    [ -d "$kit/src" ] || setup
    [ ! -f "$kit/make-flux.log" ] || tail -n 2 "$kit/make-flux.log"
    timeout "$seconds" "$python" -W ignore "$kit/scripts/gpu/checks.py" --out "$out/checks.json" \
      --seconds $((seconds - 10)) "$@" || echo "checks: $?"  # the last row is written before it is stopped
    ;;
  *) echo "unknown verb $verb" >&2; exit 2 ;;
esac
