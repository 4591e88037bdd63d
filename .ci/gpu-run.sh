#!/usr/bin/env bash
# Proves the CUDA engine on this machine's GPU with what .ci/gpu-pack built, and writes gpu.md.
#
#   run [folder]    from the root of a checkout, which has the models; gpu.md and logs go to the folder
#
# SANITIZE=0 leaves compute-sanitizer out; LIMIT is the seconds that one check may take (600);
# GROUPED_ATTENTION_RANDOM_CASES thins the suite.
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
export GROUPED_ATTENTION_REQUIRE_ENGINES=cuda,cuda-portable,cuda-naive

# check NAME COMMAND..: starts a check, whose log and line of the summary lie beside each other
names=()
check() {
  names+=("$1")
  run_check "$@" &
}
run_check() {
  local name=$1 start=$SECONDS result=ok counts
  shift
  timeout "${LIMIT:-600}" "$@" > "$out/$name.log" 2>&1 || result=FAILED
  counts=$(grep -a '^test result' "$out/$name.log" | tail -1 |
    sed 's/^test result: [a-zA-Z]*\. //; s/; 0 measured.*//')
  echo "| $name | $result | ${counts:-} | $((SECONDS - start)) s |" > "$out/$name.line"
}
# Waits for the checks so far and adds their lines.
collect() {
  wait
  local name
  for name in "${names[@]}"; do
    tee -a "$summary" < "$out/$name.line"
    grep -q '| ok |' "$out/$name.line" || failures=$((failures + 1))
  done
  names=()
}

# Beside the portable kernel, whose rows have the same bits with drafts and without: the matrix unit's have not, and
# a near tie then ends in another text, whatever the GPU does.
generate_all() {
  local -x GROUPED_ATTENTION_CPU_KERNEL=portable
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

export pack out
export -f generate_all

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

check gpu-first "$pack/gpu"
check generate bash -c generate_all
for engine in cuda cuda-portable cuda-naive; do
  check "conformance-$engine" "$pack/backends" "$engine/"
done
collect
check gpu-second "$pack/gpu"
if [ "${SANITIZE:-1}" != 0 ]; then
  # What launches everything once (each family of kernels with each of its loaders, sequences that are
  # cut and combined, append, merge, the device's scheduler, illegal page ids), and a slice of the grid.
  sanitizer=(compute-sanitizer --error-exitcode 1)
  export GROUPED_ATTENTION_RANDOM_CASES=1
  for tool in memcheck racecheck synccheck initcheck; do
    check "$tool-gpu" "${sanitizer[@]}" --tool "$tool" "$pack/gpu" --test-threads 1 small/
    check "$tool-cases" "${sanitizer[@]}" --tool "$tool" "$pack/backends" --test-threads 1 \
      --skip cpu --skip reference --skip naive grid-000
  done
fi
collect
echo >> "$summary"
echo "$failures checks failed." | tee -a "$summary"
exit "$failures"
