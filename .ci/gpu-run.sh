#!/usr/bin/env bash
# Proves the CUDA engine on this machine's GPU with what .ci/gpu-pack built, and writes gpu.md.
#
#   run [folder]    from the root of a checkout, which has the models; gpu.md and logs go to the folder
#
# SANITIZE=0 leaves compute-sanitizer out.
set -uo pipefail
pack=$(cd "$(dirname "$0")" && pwd)
out=${1:-$pack/out}
mkdir -p "$out"
summary=$out/gpu.md
failures=0

# NVRTC where the loader does not look
for folder in /usr/local/cuda/lib64 \
  "$(python3 -c 'import nvidia, os; print(os.path.join(list(nvidia.__path__)[0], "cu13", "lib"))' 2> "$out/python.log")"; do
  if [ -z "${GROUPED_ATTENTION_NVRTC:-}" ] && [ -e "$folder/libnvrtc.so.13" ]; then
    export GROUPED_ATTENTION_NVRTC=$folder/libnvrtc.so.13
  fi
done
export GROUPED_ATTENTION_CUDA_CACHE=${GROUPED_ATTENTION_CUDA_CACHE:-$(mktemp -d)}
export GROUPED_ATTENTION_REQUIRE_ENGINES=cuda,cuda-naive

# check NAME COMMAND..: a line of the summary, the log beside it
check() {
  local name=$1 start=$SECONDS result=ok
  shift
  "$@" > "$out/$name.log" 2>&1 || { result=FAILED; failures=$((failures + 1)); }
  local counts
  counts=$(grep -a '^test result' "$out/$name.log" | tail -1 | sed 's/^test result: [a-zA-Z]*\. //; s/; 0 measured.*//')
  echo "| $name | $result | ${counts:-} | $((SECONDS - start)) s |" | tee -a "$summary"
}

generate() {
  local prompt='Now is the winter of our discontent' variant speculate
  for variant in gqa gta mla gla; do
    for speculate in 0 4; do
      for backend in cpu cuda; do
        "$pack/generate" --model "conformance/models/$variant.safetensors" --variant "$variant" \
          --backend "$backend" --temperature 0 --tokens 200 --speculate "$speculate" \
          --prompt "$prompt" > "$out/text.$backend" || return 1
      done
      cmp "$out/text.cpu" "$out/text.cuda" || return 1
    done
  done
}

sanitize() {
  local tool=$1
  shift
  compute-sanitizer --tool "$tool" --error-exitcode 1 "$@"
}

{
  echo "# Results on a GPU"
  echo
  echo "Written by \`.ci/gpu-pack\` and the script it packs."
  echo
  echo "* device: $(nvidia-smi --query-gpu=name,memory.total --format=csv,noheader)"
  echo "* driver: $(nvidia-smi --query-gpu=driver_version --format=csv,noheader)"
  echo "* commit: $(cat "$pack/commit")"
  echo "* sources: $(cat "$pack/hash")"
  echo
  echo "| check | result | trials | time |"
  echo "|---|---|---|---|"
} > "$summary"

check conformance-cuda "$pack/backends" cuda/
check conformance-cuda-naive "$pack/backends" cuda-naive/
check gpu-first "$pack/gpu"
check gpu-second "$pack/gpu"
check generate generate
if [ "${SANITIZE:-1}" != 0 ]; then
  # A few whole cases of every variant, and what no case has; far rows and threads only cost time.
  subset=(--skip far --skip past --skip threads --test-threads 1)
  export GROUPED_ATTENTION_RANDOM_CASES=1
  for tool in memcheck racecheck synccheck initcheck; do
    check "$tool-gpu" sanitize "$tool" "$pack/gpu" "${subset[@]}" cuda/
    check "$tool-cases" timeout 300 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$pack/backends" --test-threads 1 cuda/gta/grid-00
  done
fi
echo >> "$summary"
echo "$failures checks failed." | tee -a "$summary"
exit "$failures"
