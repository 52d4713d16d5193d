"""An app of the superseded shape: upload to one file name, eager PyTorch, an overlay on the disk.

It is what the service is compared with, and no example to follow: two clients at once see each
other's scan. `python benchmarks/superseded.py PORT MODEL WEIGHTS FOLDER`, in the repository's root.
"""

import json
import sys
from pathlib import Path

import flask
import numpy as np
import torch
from PIL import Image

from tumorseg.core.params import EvaluateParams, TrainParams, load_params
from tumorseg.imaging.preprocess import to_grey, to_grid, to_input, to_native
from tumorseg.training.predict_split import load_network


def create_app(model: Path, weights: Path, folder: Path) -> flask.Flask:
    """Makes the app; `model` holds the model.json that goes with the weights."""
    info = json.loads((model / "model.json").read_text())
    training, evaluating = load_params(TrainParams), load_params(EvaluateParams)
    network = load_network(info["architecture"], training, weights, evaluating)
    app = flask.Flask(__name__)

    @app.get("/")
    def page() -> str:
        return "ready"

    @app.post("/upload")
    def upload() -> dict[str, str]:
        flask.request.files["file"].save(folder / "uploaded_image.jpg")
        grey = to_grey(Image.open(folder / "uploaded_image.jpg"))
        batch = torch.from_numpy(to_input(to_grid(grey, info["image_size"]))[None])
        with torch.inference_mode():
            grid = network(batch)[0, 0].numpy()
        mask = to_native(grid, grey.shape) >= info["threshold"]
        painted = np.repeat(grey[..., None], 3, axis=2)
        painted[mask] = (255, 0, 0)
        Image.fromarray(painted).save(folder / "segmented.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "mask.png")
        return {"segmented_img": "segmented.png", "mask_img": "mask.png"}

    return app


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(f"{__doc__}\nIt needs these four arguments; latency.py gives them.")
    port, *paths = sys.argv[1:]
    create_app(*map(Path, paths)).run("127.0.0.1", int(port), threaded=True)
