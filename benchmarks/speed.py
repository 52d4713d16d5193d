"""Speed of our networks beside MONAI's, all in one run, and their Dice after equal time.

    python benchmarks/speed.py [--seconds 90] [--rates 1e-3 3e-3] [--compile] [--phantom]

Takes the slices that `dvc repro augment` left, or a phantom where there are none. Speeds are
measured in turns, round after round, so that noise of the machine hits all alike. Prints Markdown:

- GFLOP an image: of forward and backward pass, counted by PyTorch.
- train images/s: of steps on one batch already drawn; the median of the rounds. MONAI's networks
  run in both memory layouts and are shown in their faster one.
- step efficiency: FLOP/s of a training step over those of the fastest 3×3 convolution found.
- PyTorch ms, ONNX Runtime ms: for one image, the former in its faster layout.
- Dice: of the validation slices, after equal seconds of training, one network after the other,
  drawing included, with the learning rate falling linearly to zero; with the best of `--rates`.
"""

import argparse
import copy
import os
import shutil
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from statistics import median

import onnxruntime
import torch
from rivals import LAYOUTS, REFERENCE, Course, Rival, Setting, Training, rivals
from torch import nn
from turns import Entry, Key, best_convolution, take_turns

from tumorseg.core import environment
from tumorseg.core.errors import InputError
from tumorseg.core.params import AugmentParams, TrainParams, ValidateParams, load_params
from tumorseg.data.arrays import ARRAYS, Slices, build_arrays, load_slices
from tumorseg.data.manifest import build_manifest
from tumorseg.data.phantom import make_phantom
from tumorseg.registry.export import export_onnx
from tumorseg.training.augmentation import Policy, load_policy, save_policy
from tumorseg.training.trainer import precision

warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # of the ONNX exporter
SPLITS = ("train", "valid")
COLUMNS = (
    "network",
    "layout",
    "parameters M",
    "GFLOP an image",
    "train images/s (least–most)",
    f"of {REFERENCE}",
    "step efficiency",
    "PyTorch ms",
    "ONNX Runtime ms",
    "mean Dice",
    "micro Dice",
    "epochs",
    "learning rate",
)


def inference(rival: Rival, side: int, setting: Setting, scratch: Path) -> dict[str, Entry]:
    """One image at a time: PyTorch in each layout, and ONNX Runtime on the CPU."""
    network = rival.build().eval()
    path = scratch / f"{rival.title}.onnx"
    export_onnx(network, side, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = torch.rand(1, 1, side, side)
    given = {"image": image.numpy()}
    entries = {"onnx": Entry(lambda: session.run(["probability"], given))}
    for name, layout in LAYOUTS.items():
        placed = copy.deepcopy(network).to(setting.device, memory_format=layout)
        shown = image.to(setting.device).contiguous(memory_format=layout)

        @torch.inference_mode()
        def step(placed: nn.Module = placed, shown: torch.Tensor = shown) -> None:
            with setting.autocast():
                placed(shown)

        entries[name] = Entry(step)
    return entries


def measure(chosen: argparse.Namespace, course: Course, setting: Setting, scratch: Path) -> None:
    """Measures everything and prints the table and what it rests on."""
    networks = rivals(load_params(TrainParams, chosen.params))
    drawn = course.batches()
    images, masks, _ = next(drawn)
    words, layer, sweep = best_convolution(chosen.size, setting)
    training: dict[Key, Entry] = {
        ("convolution",): layer,
        ("drawing",): Entry(lambda: next(drawn), chosen.batch),
    }
    answering: dict[Key, Entry] = {}
    for rival in networks:
        for layout in rival.layouts:
            step = partial(Training(rival.build(), layout, setting, 1e-3).step, images, masks)
            training[rival.title, layout] = Entry(step, chosen.batch)
        for runtime, entry in inference(rival, chosen.size, setting, scratch).items():
            answering[rival.title, runtime] = entry
    trained = take_turns(training, chosen.rounds, chosen.turn, setting.wait)
    answered = take_turns(answering, chosen.rounds, chosen.turn / 6, setting.wait)
    peak = max(sweep, median(trained["convolution",]))

    def best_layout(rival: Rival) -> str:
        return max(rival.layouts, key=lambda layout: median(trained[rival.title, layout]))

    reference = next(trained[r.title, best_layout(r)] for r in networks if r.title == REFERENCE)
    print(f"| {' | '.join(COLUMNS)} |\n|---|---|{'--:|' * (len(COLUMNS) - 2)}")
    for rival in networks:
        layout = best_layout(rival)
        parameters, flop = rival.size(chosen.size)
        rates = trained[rival.title, layout]
        eager = max(median(answered[rival.title, name]) for name in LAYOUTS)
        cells = [
            rival.title,
            layout,
            f"{parameters / 1e6:.2f}",
            f"{flop / 1e9:.2f}",
            f"{median(rates):.2f} ({min(rates):.2f}–{max(rates):.2f})",
            f"{median(a / b for a, b in zip(rates, reference, strict=True)):.2f}",
            f"{median(rates) * flop / peak:.1%}",
            f"{1000 / eager:.1f}",
            f"{1000 / median(answered[rival.title, 'onnx']):.1f}",
            *after_equal_time(course, rival, layout, setting, chosen.rates),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    drawing = median(trained["drawing",])
    ours = (f"{drawing / median(trained[r.title, best_layout(r)]):.1f}" for r in networks[:2])
    print(f"\nbest convolution, {words}: {peak / 1e9:.1f} GFLOP/s forward and backward")
    print(f"drawing alone: {drawing:.1f} images/s, {' and '.join(ours)} times our two trainings'")


def after_equal_time(
    course: Course, rival: Rival, layout: str, setting: Setting, rates: list[float]
) -> list[str]:
    """The table's cells on Dice: those of the rate with the highest mean."""
    if not course.seconds:
        return ["–"] * 4
    scores = [course.run(rival, layout, setting, rate) for rate in rates]
    top = max(scores, key=lambda one: one["mean"])
    return [f"{top['mean']:.3f}", f"{top['micro']:.3f}", f"{top['epochs']:.1f}", f"{top['rate']:g}"]


def find_slices(chosen: argparse.Namespace, scratch: Path) -> tuple[dict[str, Slices], Policy, str]:
    """The arrays of the last run, or of a phantom; the policy; and in words what they are.

    Raises:
        InputError: There are arrays, but on another grid.
    """
    if ARRAYS.is_dir() and not chosen.phantom:
        slices = {split: load_slices(split) for split in SPLITS}
        if (side := slices["train"].images.shape[-1]) != chosen.size:
            raise InputError(
                f"{ARRAYS}: slices are {side}², not {chosen.size}²: set augment.image_size to "
                f"{chosen.size} and run `dvc repro augment`, or give --phantom"
            )
        return slices, load_policy(ARRAYS.with_name("policy.json")), "the data set's"
    count = chosen.phantom or 240
    data, folder = scratch / "data", scratch / "arrays"
    make_phantom(data, counts={"train": count, "valid": count // 4}, size=max(96, chosen.size))
    section = load_params(ValidateParams, chosen.params)
    table = build_manifest(data, section, scratch / "small.npy")
    build_arrays(table, data, chosen.size, folder)
    save_policy(load_params(AugmentParams, chosen.params), scratch / "policy.json")
    slices = {split: load_slices(split, folder) for split in SPLITS}
    return slices, load_policy(scratch / "policy.json"), "a phantom's"


def positive(text: str) -> int:
    """A whole number from one on, for argparse."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1 on")
    return int(text)


def main() -> None:
    """Reads the options, finds the slices, measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--size", type=int, default=256, help="side of the slices, in pixels")
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--turn", type=float, default=3, help="seconds of a turn of training")
    parser.add_argument(
        "--seconds", type=float, default=90, help="of training before Dice; 0: none"
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help="best of these")
    parser.add_argument("--average", type=float, default=0, help="decay of averaged weights")
    parser.add_argument(
        "--phantom", type=positive, nargs="?", const=240, help="so many train slices"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="default: as train.common.precision"
    )
    parser.add_argument("--compile", action="store_true")
    chosen = parser.parse_args()
    os.environ |= environment.SILENT
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    try:
        common = load_params(TrainParams, chosen.params).common
        bf16 = precision(common) == "bf16-mixed" if chosen.bf16 is None else chosen.bf16
        if chosen.compile and not (shutil.which("c++") or shutil.which("g++")):
            raise InputError("--compile needs a C++ compiler, such as g++")
        if chosen.size % 64:
            raise InputError(f"--size {chosen.size}: must be a multiple of 64")
        with tempfile.TemporaryDirectory() as temporary:
            scratch = Path(temporary)
            slices, policy, whose = find_slices(chosen, scratch)
            if len(slices["train"].images) < chosen.batch or not len(slices["valid"].images):
                raise InputError(f"--batch {chosen.batch} needs as many train slices, and a valid")
            print(
                f"{whose} slices, {chosen.size}², batch {chosen.batch}, {device.type}, "
                f"{chosen.threads} threads, {'bf16' if bf16 else 'float32'}, "
                f"{'compiled' if chosen.compile else 'eager'}, PyTorch {torch.__version__}\n"
            )
            course = Course(slices, policy, chosen.batch, chosen.seconds, chosen.average)
            measure(chosen, course, Setting(device, bf16, chosen.compile), scratch)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
