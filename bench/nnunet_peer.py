"""nnU-Net's own planning, preprocessing, augmentation, training and prediction on a folder in its layout; run in .venv-peers.

    python bench/nnunet_peer.py 3d_fullres --prepare            fingerprint, plans, preprocessing
    python bench/nnunet_peer.py 3d_fullres --seconds 60         how long its steps take
    python bench/nnunet_peer.py 3d_fullres --steps 400 --seed 0 trains, then predicts imagesTs into ``nnUNet_results``/predictions

The folders are those of nnU-Net's environment variables; accuracy.py sets them and fills the first. Facts are the last line of stdout.
What differs from ``nnUNetv2_train``: the rate decays over the steps given, there is no validation between them, and all cases train
(fold 'all'), as they do for the other peer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

DATASET = "Dataset001_Bench"


def prepare(configuration: str) -> dict:
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    start = time.monotonic()
    api.extract_fingerprints([1], num_processes=1, check_dataset_integrity=True, show_progress_bar=False)
    api.plan_experiments([1])
    api.preprocess([1], configurations=[configuration], num_processes=[1], show_progress_bar=False)
    return {"seconds": time.monotonic() - start}


def trainer_for(configuration: str, steps: int, seed: int):
    """nnU-Net's default trainer with as many steps as given: an 'epoch' is one step, so that its polynomial decay ends with them."""
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(seed)
    np.random.seed(seed)
    at = Path(os.environ["nnUNet_preprocessed"]) / DATASET
    plans, dataset = (json.loads((at / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    trainer = nnUNetTrainer({**plans, "continue_training": False}, configuration, "all", dataset, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.disable_checkpointing = steps, 1, True
    return trainer


def train(trainer, steps: int, seconds: float) -> list[float]:
    """Up to ``steps`` steps within ``seconds``; the times at which they ended, the start at 0."""
    trainer.on_train_start()
    start, ends = time.monotonic(), []
    while len(ends) < steps and time.monotonic() - start < seconds:
        trainer.on_train_epoch_start()
        trainer.train_step(next(trainer.dataloader_train))
        trainer.current_epoch += 1
        ends.append(time.monotonic() - start)
    trainer.on_train_end()
    return ends


def predict(trainer) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(use_mirroring=True, perform_everything_on_device=False, device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    images, out = Path(os.environ["nnUNet_raw"]) / DATASET / "imagesTs", Path(os.environ["nnUNet_results"]) / "predictions"
    shutil.rmtree(out, ignore_errors=True)  # of another seed
    out.mkdir(parents=True)
    predictor.predict_from_files_sequential(str(images), str(out), overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configuration", choices=("2d", "3d_fullres"))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prepare", action="store_true")
    what.add_argument("--seconds", type=float)
    what.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.prepare:
        facts = prepare(options.configuration)
    else:
        steps = options.steps or 10**6
        trainer = trainer_for(options.configuration, steps, options.seed)
        ends = train(trainer, steps, options.seconds or float("inf"))
        plan = trainer.configuration_manager
        facts = {"ends": ends, "patch": list(plan.patch_size), "batch": plan.batch_size}
        if options.steps:
            predict(trainer)
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
