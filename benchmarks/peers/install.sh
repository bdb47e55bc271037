#!/usr/bin/env bash
# Installs a peer of benchmarks/peers.py that pip cannot put beside this project, below build/peers/.
#   benchmarks/peers/install.sh litgpt     a Python of its own (it needs an older huggingface_hub), 2 GB
#   benchmarks/peers/install.sh nanogpt    a clone
# PYTHON=python3.12 picks the interpreter. On a machine without a GPU, PIP_FLAGS spares the CUDA build of torch:
#   PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" benchmarks/peers/install.sh litgpt
set -euo pipefail
cd "$(dirname "$0")/../.."

case "${1:-}" in
litgpt)
    "${PYTHON:-python3}" -m venv build/peers/litgpt
    build/peers/litgpt/bin/python -m pip install --quiet --upgrade pip
    # shellcheck disable=SC2086 # several words
    build/peers/litgpt/bin/python -m pip install --quiet ${PIP_FLAGS:-} --requirement benchmarks/peers/litgpt.txt
    ;;
nanogpt)
    [ -d build/peers/nanogpt ] || git clone --quiet https://github.com/karpathy/nanoGPT build/peers/nanogpt
    git -C build/peers/nanogpt checkout --quiet 3adf61e154c3fe3fca428ad6bc3818b27a3b8291
    ;;
*)
    echo "usage: $0 litgpt|nanogpt, not '${1:-}'" >&2
    exit 2
    ;;
esac
echo "installed build/peers/$1"
