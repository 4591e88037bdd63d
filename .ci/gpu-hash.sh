#!/usr/bin/env bash
# A hash of the sources that results on a GPU depend on: cuda/, conformance/ and what they compute with, but for
# the test of what ptxas reports, which runs on no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
git ls-files -z -- cuda/src cuda/kernels cuda/tests conformance/src conformance/corpus conformance/tests \
  reference/src ':!cuda/src/gate.rs' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16
