"""``python -m vesalius.serve.training``: one training, asked for on stdin as JSON, told of on stdout line by line.

Lines are {"fraction", "text"}, at the end {"done": {"seconds", "val_dsc"}} or {"error": one sentence}. SIGTERM saves a checkpoint and ends.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

from ..core.errors import VesaliusError
from ..engine import api
from .jobs import Reported, sentence


def main() -> int:
    request, last = json.load(sys.stdin), [0.0]

    def tell(fraction: float, text: str) -> None:
        if fraction >= 1.0 or time.monotonic() - last[0] > 0.3:
            last[0] = time.monotonic()
            print(json.dumps({"fraction": fraction, "text": text}), flush=True)

    warnings.simplefilter("ignore")
    try:
        done = api.train(
            request["method"],
            request["data"],
            request["out"],
            minutes=request.get("minutes"),
            iterations=request.get("iterations"),
            options=request.get("options"),
            progress=Reported(tell),
        )
    except VesaliusError as error:
        print(json.dumps({"error": sentence(error)}), flush=True)
        return error.exit_code
    scores = [v for name, v in done.record["facts"].items() if name.startswith("val_dsc.")]
    print(json.dumps({"done": {"seconds": done.record["seconds"], "val_dsc": scores[-1] if scores else None}}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
