#!/usr/bin/env bash
# All that needs a GPU, in one call of at most ten minutes: tests, training speed beside nnU-Net, a profile, augmentation.
#
#     OUT=FOLDER bash benchmarks/on_gpu.sh [OPTIONS OF training_speed.py]
#     OUT=FOLDER bash benchmarks/on_gpu.sh --plans b,a --variant compile=never --variant compile=graphs
#
# Results go to FOLDER, or to benchmarks/results/gpu.
# For a machine that has python3 with torch, triton and the usual scientific packages, but nothing to download from.
# What it lacks travels as wheels in .whl/, made before, where packages can be had, for its Python 3.12 (23 MB):
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#         --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 \
#         --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl \
#         pydantic==2.14.3 pydantic_core==2.50.4 annotated-types==0.8.0 typing-inspection==0.4.5 nibabel==5.4.2 \
#         blosc2==4.14.1 ndindex==1.10.1 numexpr==2.14.2 connected-components-3d==4.1.1 graphviz==0.21 yacs==0.1.8 \
#         isal==1.9.1 stream-zip==0.0.84 pycryptodome==4.4.0
#     pip wheel --no-deps -w .whl nnunetv2==2.8.1 batchgenerators==0.25.5 batchgeneratorsv2==0.3.6 acvl_utils==0.2.6 \
#         dynamic_network_architectures==0.4.4
#
# SimpleITK is left out on purpose (50 MB): nnunet_training_speed.py does without it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${OUT:-benchmarks/results/gpu}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
site=$(mktemp -d)
if [ -d .whl ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || exit
fi
export PYTHONPATH="$site:$PWD"
peer=()
if (cd benchmarks && python3 -c 'import nnunet_training_speed') 2>"$out/nnunet_import.log"; then
    peer=(--nnunet-python python3)
fi

timeout 100 python3 -m pytest -q -m cuda --continue-on-collection-errors tests 2>&1 | tee "$out/tests.log" | tail -n 15

# channels last is what the compiled code promises most of (docs/gpus.md), and nobody has measured
if ! timeout 350 python3 benchmarks/training_speed.py --device cuda --seconds 290 "${peer[@]}" \
    --variant channels_last=true --out "$out/training_speed_cuda.json" "$@" >"$out/training_speed_cuda.md" 2>"$out/training_speed_cuda.log"; then
    tail -n 15 "$out/training_speed_cuda.log"
    python3 benchmarks/training_report.py "$out/training_speed_cuda.json" >"$out/training_speed_cuda.md" # as far as it got
fi
cat "$out/training_speed_cuda.md"

timeout 60 python3 benchmarks/training_profile.py --device cuda --plans b,a --steps 5 2>&1 | tee "$out/profile_cuda.md"
timeout 40 python3 benchmarks/augmentation.py --device cuda 2>&1 | tee "$out/augmentation_cuda.md"
rm -r "$site"
