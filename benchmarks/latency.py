"""One picture over HTTP beside the bare network, and a rate beside the superseded app's shape."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from served import drawn, picture, quantile, serve, stop

from tests.serving_model import write_model
from tumorseg.core.errors import InputError
from tumorseg.core.params import AugmentParams, EvaluateParams, TrainParams, load_params
from tumorseg.core.prefect_server import free_port
from tumorseg.imaging.decode import decode
from tumorseg.inference.answers import slice_answer
from tumorseg.inference.predictor import Predictor, load_info
from tumorseg.monitoring.ood import OodDetector
from tumorseg.registry.export import export_onnx
from tumorseg.training.networks import build_network
from tumorseg.training.predict_split import load_network

GOAL = 1.25  # HTTP over the bare network, by whichever session runs it faster
CLOSE = 1e-3  # between probabilities of ONNX Runtime and PyTorch, over all pixels
SIDE = 640
AT_ONCE = 8
TURN_SECONDS = 4.0
BARE, PLAIN = "network, bare", "network, bare, ONNX Runtime's defaults"


def untrained(folder: Path) -> tuple[Path, Path]:
    """A network of params.yaml that has learnt nothing, as a model folder, and its weights."""
    params = load_params(TrainParams)
    weights, size = folder / "weights.safetensors", load_params(AugmentParams).image_size
    torch.manual_seed(0)
    network = build_network("attention_unet", params.network("attention_unet"))
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, weights)
    ready = load_network("attention_unet", params, weights, load_params(EvaluateParams))
    model = write_model(folder / "model")
    export_onnx(ready, size, model / "model.onnx")
    info = json.loads((model / "model.json").read_text())
    digest = hashlib.sha256((model / "model.onnx").read_bytes()).hexdigest()
    info |= {"digest": digest, "image_size": size, "architecture": "attention_unet"}
    # Half of what an untrained network says would be tumour; a trained one finds a few regions.
    (model / "model.json").write_text(json.dumps(info | {"threshold": 1.0}))
    return model, weights


def weights_of(model: Path) -> Path:
    """The weights that a model was exported from, by the id of its run.

    Raises:
        InputError: They are not in artifacts/train.
    """
    wanted = load_info(model).run_id
    for path in Path("artifacts/train").glob("*/run.json"):
        if json.loads(path.read_text()).get("run_id") == wanted:
            return path.with_name("weights.safetensors")
    raise InputError(f"artifacts/train: holds no weights of run {wanted}; name them by --weights")


def check_weights(predictor: Predictor, weights: Path) -> None:
    """Checks that the app of the superseded shape will run the same network as the service.

    Raises:
        InputError: The weights cannot be read, or are another network's.
    """
    try:
        network = load_network(
            predictor.info.architecture,
            load_params(TrainParams),
            weights,
            load_params(EvaluateParams),
        )
    except OSError as error:
        raise InputError(f"{weights}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, RuntimeError):
        raise InputError(
            f"{weights}: are no weights of the {predictor.info.architecture} of params.yaml: name "
            "the model's own by --weights, and set params.yaml as it was trained"
        ) from None
    ready = predictor.prepare(drawn(0))[None]
    with torch.inference_mode():
        theirs = network(torch.from_numpy(ready))[:, 0].numpy()
    if np.abs(theirs - predictor.probabilities(ready)).max() > CLOSE:
        raise InputError(f"{weights}: are another model's: name the model's own by --weights")


@contextmanager
def superseded(model: Path, weights: Path, folder: Path) -> Iterator[str]:
    """Runs the app of the superseded shape and yields its address."""
    port = free_port(0)
    script = Path(__file__).with_name("superseded.py")
    command = [sys.executable, str(script), str(port), str(model), str(weights), str(folder)]
    source = str(Path(__file__).resolve().parents[1] / "src")
    with (folder / "superseded.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": source}
        )
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                httpx.get(url, timeout=2, trust_env=False)
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > end:
                    said = (folder / "superseded.log").read_text()[-500:]
                    raise InputError(
                        f"the app of the superseded shape did not start: {said}"
                    ) from None
                time.sleep(0.2)
        yield url
    finally:
        stop(process)


def steps(predictor: Predictor, model: Path, data: bytes) -> dict[str, Callable[[], Any]]:
    """What the service does with one picture, step by step, each ready to be repeated."""
    study = decode(data)
    grey = study.slices[0]
    ready = predictor.prepare(grey)[None]
    grid = predictor.probabilities(ready)[0]
    found = predictor.finish(grid, grey.shape)
    familiar = OodDetector(predictor.info.inputs)
    # As who knows no option of ONNX Runtime runs it: its threads spin while they wait.
    plain = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    return {
        "decode": lambda: decode(data),
        "resize and normalise": lambda: predictor.prepare(grey),
        BARE: lambda: predictor.probabilities(ready),
        "mask and contours": lambda: predictor.finish(grid, grey.shape),
        "familiarity": lambda: familiar.warnings(grey, study.colour),
        "PNG and JSON": lambda: slice_answer(grey, study, found, []).model_dump_json(),
        # Last, since those threads spin on for a moment and slow down whatever comes next.
        PLAIN: lambda: plain.run(["probability"], {"image": ready}),
    }


def rate(url: str, path: str, data: bytes) -> tuple[float, int]:
    """Answers 200 a second to so many clients, for a few seconds; and how many others came."""
    end = time.perf_counter() + TURN_SECONDS

    def client(_: int) -> Counter[bool]:
        found: Counter[bool] = Counter()
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
            while time.perf_counter() < end:
                answer = http.post(path, files={"file": ("x.png", data)})
                found[answer.status_code == 200] += 1
        return found

    begun = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = sum(pool.map(client, range(AT_ONCE)), Counter())
    return found[True] / (time.perf_counter() - begun), found[False]


def measure(
    model: Path | None, tag: str | None, weights: Path | None, count: int, scratch: Path
) -> bool:
    """Prints both tables; an untrained network of params.yaml if `model` is None.

    Args:
        model: The model folder.
        tag: The bento to serve; this checkout's code if None.
        weights: The model's; looked for by its run if None.
        count: Pictures one after the other; the turns of many at once are a twentieth as many.
        scratch: A folder.

    Returns:
        Whether HTTP costs at most `GOAL` times the bare network, and the service answers more
        requests a second than the app of the superseded shape.

    Raises:
        InputError: The model or its weights are missing, broken or do not belong together.
    """
    if model is None:
        model, weights = untrained(scratch)
    predictor = Predictor(model)
    weights = weights or weights_of(model)
    check_weights(predictor, weights)
    sent = picture(predictor, 1, side=SIDE)
    parts = steps(predictor, model, sent.data)
    seconds: dict[str, list[float]] = {name: [] for name in ("HTTP", "superseded", *parts)}
    rates: dict[str, list[tuple[float, int]]] = {"ours": [], "superseded": []}
    with serve(model, tag) as server, superseded(model, weights, scratch) as other:
        with (
            httpx.Client(base_url=server.url, timeout=120, trust_env=False) as ours,
            httpx.Client(base_url=other, timeout=120, trust_env=False) as theirs,
        ):

            def post(http: httpx.Client, path: str) -> httpx.Response:
                files = {"file": ("x.png", sent.data)}
                return http.post(path, files=files).raise_for_status()

            answer = post(ours, "/segment").json()
            turns = {
                "HTTP": lambda: post(ours, "/segment"),
                "superseded": lambda: post(theirs, "/upload"),
            }
            for number in range(-3, count):  # the first turns warm up
                for name, step in (turns | parts).items():
                    begun = time.perf_counter()
                    step()
                    if number >= 0:
                        seconds[name].append(time.perf_counter() - begun)
        for _ in range(max(1, count // 20)):
            rates["ours"].append(rate(server.url, "/segment", sent.data))
            rates["superseded"].append(rate(other, "/upload", sent.data))
    middle = {name: 1e3 * quantile(values, 0.5) for name, values in seconds.items()}
    bare, whole = min(middle[BARE], middle[PLAIN]), middle["HTTP"]
    size = predictor.info.image_size
    print(
        f"| one {SIDE}² PNG, network at {size}², {count} turns | ms, p50 | × faster bare |\n"
        "|---|--:|--:|"
    )
    for name in parts:
        print(f"| {name} | {middle[name]:.2f} | {middle[name] / bare:.2f} |")
    rest = whole - sum(middle[name] for name in parts if name != PLAIN)
    print(f"| HTTP, queue and the rest | {rest:.2f} | {rest / bare:.2f} |")
    print(f"| **over HTTP, all together** | **{whole:.2f}** | **{whole / bare:.2f}** |")
    old = middle["superseded"]
    print(f"| superseded shape over HTTP | {old:.2f} | {old / bare:.2f} |")
    print(
        f"\n| {AT_ONCE} clients at once, turns of {TURN_SECONDS:g} s | answers a second | failed |"
    )
    print("|---|--:|--:|")
    pace = {name: float(np.median([turn for turn, _ in found])) for name, found in rates.items()}
    failed = {name: sum(number for _, number in found) for name, found in rates.items()}
    for name, title in (("ours", "the service"), ("superseded", "superseded shape, same weights")):
        print(f"| {title} | {pace[name]:.2f} | {failed[name]} |")
    right = sent.is_answered_by(answer["mask_png"]) and not failed["ours"]
    print(
        f"\ngoal: at most {GOAL} × the faster bare; {'met' if whole <= GOAL * bare else 'missed'}"
    )
    return right and pace["ours"] > pace["superseded"] and whole <= GOAL * bare
