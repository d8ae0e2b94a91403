#!/usr/bin/env bash
# Builds .venv-peers: the libraries the benchmarks compare with, apart from the product's own environment. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
ENV=.venv-peers

[ -x "$ENV/bin/python" ] || python3 -m venv "$ENV"
pip() { "$ENV/bin/python" -m pip install --quiet "$@"; }

# torch first and pinned, so that nothing below chooses another build.
pip torch==2.13.0
pip numpy scipy nibabel SimpleITK pandas scikit-learn scikit-image imageio tifffile matplotlib seaborn tqdm requests einops blosc2 \
    safetensors psutil yacs graphviz threadpoolctl fft-conv-pytorch rich typer humanize deprecated jaxtyping \
    connected-components-3d
pip panoptica==2.1.7
# These pull in torchvision or timm when their dependencies are followed, and none of the code measured here uses either.
pip --no-deps nnunetv2==2.8.1 batchgeneratorsv2==0.3.6 batchgenerators dynamic-network-architectures acvl-utils future unittest2 \
    monai==1.6.1 torchio==1.2.1

echo "peers: $("$ENV/bin/python" - <<'PY'
import importlib.metadata as m
print(", ".join(f"{n} {m.version(n)}" for n in ("torch", "nnunetv2", "batchgeneratorsv2", "monai", "torchio", "nibabel", "SimpleITK")))
PY
)"
"$ENV/bin/python" - <<'PY'
import batchgeneratorsv2, monai, torchio  # noqa: F401
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: F401
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: F401
print("peers: imports verified")
PY
