"""The service under measurement: load, SIGTERM, sessions, latency; a Markdown table each.

`python benchmarks/service.py load` sends 10 000 mixed requests, 64 at once, a fifth of them
malformed, and checks each answer against its own picture or volume. `sigterm` ends the service
under load, while some uploads break off. `sessions` has two browsers upload at once, 200 rounds.
`latency` compares one picture over HTTP with the bare network, and the service with an app of the
superseded shape. Each starts the service itself: the packaged champion, a model folder
(`--model`), or, but for `latency`, a toy network (`--phantom`). The exit status is 1 where a
promise is broken.

Clients and service share the machine's cores, so the figures are of both.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
from common import PYTHONPATH, REPOSITORY, Server, head, row, running, serve
from PIL import Image
from service_inputs import Picture, Spoilt, corpus, dicom_volume, nifti_volume, picture

from tests.support.serving_model import write_model
from tumorseg.core import environment
from tumorseg.core.errors import InputError
from tumorseg.core.params import EvaluateParams, TrainParams, load_params
from tumorseg.core.prefect_server import free_port
from tumorseg.imaging.decode import decode
from tumorseg.inference.client import retry_after
from tumorseg.inference.predict import packaged_model
from tumorseg.inference.predictor import Predictor, load_info
from tumorseg.inference.segment import slice_answer
from tumorseg.monitoring.ood import OodDetector
from tumorseg.registry.bento import packaged

LOG = Path(".state/load.log")
AT_ONCE = 64
SECONDS = 120.0  # without an answer until a request counts as hanging
RETRIES = 40  # after 503
GROWTH = 1.1  # of memory without the page's pictures, from the middle to the end, or 32 MiB
# The service closes what was idle for 5 s; a client that was held up may be too late to notice.
LIMITS = httpx.Limits(
    max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE, keepalive_expiry=2.0
)
# The rest are pictures to /segment.
SHARES = {"refused": 0.2, "batch": 0.08, "upload": 0.06, "page": 0.05, "volume": 0.01}
BROKEN = 8  # uploads whose clients go away
STOP_SECONDS = 60.0  # in which the service must have answered what it had accepted
GOAL = 1.25  # HTTP over the bare network, by whichever session runs it faster
BARE, PLAIN = "network, bare", "network, bare, ONNX Runtime's defaults"


class Load:
    """Mixed requests to a service, most of them with known masks.

    Args:
        server: The service.
        pictures: With their masks.
        predictor: Finds the masks of volumes beforehand.
        spoilt: What must be refused.

    Attributes:
        statuses: How often each status was answered.
        wrong: Violations, in words.
        seconds: Of the answers to `/segment`, the waiting after 503 left out.
        busy: Answers 503 of the bounded queue, after which the client asked again.
        memory: Of the server in MiB, at shares of the requests: all of it, and the page's pictures.
    """

    def __init__(
        self, server: Server, pictures: list[Picture], predictor: Predictor, spoilt: list[Spoilt]
    ) -> None:
        self.server, self.pictures, self.spoilt = server, pictures, spoilt
        kinds = (dicom_volume, nifti_volume)
        self.volumes = [make(predictor, n) for n in range(4) for make in kinds]
        self.statuses: Counter[int] = Counter()
        self.wrong: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.busy = 0
        self.memory: dict[str, tuple[float, float]] = {}

    def client(self) -> httpx.AsyncClient:
        """A client of its own cookies."""
        return httpx.AsyncClient(
            base_url=self.server.url, timeout=SECONDS, limits=LIMITS, trust_env=False
        )

    async def send(self, client: httpx.AsyncClient, path: str, **sent: Any) -> httpx.Response:
        """Sends until the queue has room.

        Raises:
            httpx.HTTPError: No answer comes.
        """
        for _ in range(RETRIES):
            begun = time.perf_counter()
            answer = await client.post(path, **sent)
            if answer.status_code != 503:
                self.statuses[answer.status_code] += 1
                if path == "/segment" and answer.status_code == 200:
                    self.seconds.append(time.perf_counter() - begun)
                return answer
            self.busy += 1
            self.expect("Retry-After" in answer.headers, "503 without Retry-After")
            await asyncio.sleep(retry_after(answer))
        return answer

    def expect(self, right: bool, wrong: str) -> None:
        """Counts a violation, unless all is right."""
        self.wrong[wrong] += not right

    def check(self, own: Picture, encoded: str) -> None:
        """Counts a mask that is not this picture's."""
        if not own.is_answered_by(encoded):
            others = [one for one in self.pictures if one is not own]
            swapped = any(one.is_answered_by(encoded) for one in others)
            self.wrong["swapped masks" if swapped else "wrong masks"] += 1

    def own(self, number: int) -> Picture:
        """The picture of a request."""
        return self.pictures[number % len(self.pictures)]

    async def one(self, client: httpx.AsyncClient, number: int) -> None:
        """One picture to `/segment`."""
        own = self.own(number)
        answer = await self.send(client, "/segment", files={"file": ("x", own.data)})
        answer.raise_for_status()
        self.check(own, answer.json()["mask_png"])

    async def batch(self, client: httpx.AsyncClient, number: int) -> None:
        """Three pictures, and a damaged file among them, to `/segment/batch`."""
        own = [self.own(number + k) for k in range(3)]
        files = [one.data for one in own]
        files.insert(1, files[0][:99])
        parts = [("files", ("x", data)) for data in files]
        answer = await self.send(client, "/segment/batch", files=parts)
        results = answer.raise_for_status().json()["results"]
        self.expect("error" in results.pop(1), "batch with a damaged file answered otherwise")
        for one, result in zip(own, results, strict=True):
            self.check(one, result["mask_png"])

    async def upload(self, _: httpx.AsyncClient, number: int) -> None:
        """One picture to `/upload`, and its mask fetched, as the superseded app's page does."""
        own = self.own(number)
        async with self.client() as browser:
            answer = await self.send(browser, "/upload", files={"file": ("x.png", own.data)})
            name = answer.raise_for_status().json()["mask_img"]
            await self.shown(browser, f"/segmented/{name}", own)

    async def page(self, _: httpx.AsyncClient, number: int) -> None:
        """One picture to `/studies`, looked at and removed, as the page does."""
        own = self.own(number)
        async with self.client() as browser:
            answer = await self.send(browser, "/studies", files={"file": ("x", own.data)})
            at = f"/studies/{answer.raise_for_status().json()['id']}"
            image = await browser.get(f"{at}/0/image.png")
            pixels = np.asarray(Image.open(BytesIO(image.content)))
            self.expect(np.array_equal(pixels, own.pixels), "other originals")
            await self.shown(browser, f"{at}/mask.png", own)
            await browser.delete(at)

    async def shown(self, browser: httpx.AsyncClient, address: str, own: Picture) -> None:
        """Fetches a mask and checks it."""
        mask = await browser.get(address)
        self.statuses[mask.status_code] += 1
        right = mask.status_code == 200 and own.is_answered_by_file(mask.content)
        self.expect(right, "wrong masks")

    async def volume(self, client: httpx.AsyncClient, number: int) -> None:
        """A small volume to `/segment/volume`: a zip of DICOM files, or NIfTI."""
        own = self.volumes[number % len(self.volumes)]
        answer = await self.send(client, "/segment/volume", files={"file": ("x", own.data)})
        self.expect(own.is_answered_by(answer.raise_for_status().content), "wrong masks")

    async def refused(self, client: httpx.AsyncClient, number: int) -> None:
        """One request that must be refused, with a sentence."""
        case = self.spoilt[number % len(self.spoilt)]
        answer = await self.send(client, case.path, **case.sent)
        known = case.status in (None, answer.status_code) and 400 <= answer.status_code < 500
        self.expect(known, f"{case.path}: {case.name} answered {answer.status_code}")
        sentence = "error" in answer.text or not case.path.startswith("/segment")
        self.expect(sentence, f"{case.path}: {case.name} answered without a sentence")

    def plan(self, count: int) -> Iterator[tuple[Callable[..., Awaitable[None]], int]]:
        """Every request in turn: each kind has its exact share, each of its cases as often."""
        names = [name for name, share in SHARES.items() for _ in range(round(share * count))]
        names += ["one"] * (count - len(names))
        turns: Counter[str] = Counter()
        for name in np.random.default_rng(0).permutation(names):
            yield getattr(self, name), turns[name]
            turns[name] += 1

    async def run(self, count: int) -> None:
        """Sends so many requests, 64 at once."""
        work, done = self.plan(count), 0
        marks = {max(1, count * share // 100): f"{share}%" for share in (10, 25, 50, 75, 100)}
        self.memory["before"] = self.server.memory(), self.server.page_memory()

        async def worker(client: httpx.AsyncClient) -> None:
            nonlocal done
            for kind, number in work:
                try:
                    await kind(client, number)
                except httpx.TimeoutException:
                    self.wrong["hangs"] += 1
                except httpx.HTTPStatusError as error:
                    what = f"good {kind.__name__} answered {error.response.status_code}"
                    self.wrong[f"{what}: {error.response.text[:200]}"] += 1
                except (LookupError, ValueError):  # no such field, or no JSON
                    self.wrong[f"{kind.__name__} answered otherwise"] += 1
                except httpx.HTTPError as error:
                    self.wrong[f"no answer ({type(error).__name__})"] += 1
                done += 1
                if done in marks:
                    memory = self.server.memory(), self.server.page_memory()
                    self.memory[marks[done]] = memory

        async with self.client() as client:
            await asyncio.gather(*(worker(client) for _ in range(AT_ONCE)))


def load(server: Server, pictures: list[Picture], predictor: Predictor, count: int) -> bool:
    """Sends `count` mixed requests and prints what came of them; whether nothing was wrong."""
    traffic = Load(server, pictures, predictor, corpus())
    begun = time.perf_counter()
    asyncio.run(traffic.run(count))
    seconds = time.perf_counter() - begun
    middle, end = (traffic.memory[mark][0] - traffic.memory[mark][1] for mark in ("50%", "100%"))
    traffic.expect(end <= max(GROWTH * middle, middle + 32), "memory grows")
    statuses = sorted(traffic.statuses.items())
    memory = (
        f"{at} {all_of_it:.0f} ({page:.0f})" for at, (all_of_it, page) in traffic.memory.items()
    )
    head("load", "")
    row(f"requests, {AT_ONCE} at once", f"{count} in {seconds:.0f} s")
    row("requests a second", f"{count / seconds:.1f}")
    row("statuses", ", ".join(f"{n} × {status}" for status, n in statuses))
    row("503 of the bounded queue, asked again", traffic.busy)
    row("5xx", sum(n for status, n in statuses if status >= 500))
    row("hangs", traffic.wrong["hangs"])
    row("swapped or wrong masks", traffic.wrong["swapped masks"] + traffic.wrong["wrong masks"])
    row("memory of the server, MiB (of it the page's pictures)", ", ".join(memory))
    p50, p95 = np.quantile(traffic.seconds, [0.5, 0.95])
    row("`/segment`, p50 and p95", f"{p50:.2f} s, {p95:.2f} s")
    for what, number in (+traffic.wrong).items():
        row(f"**{what}**", f"**{number}**")
    if traffic.wrong.total():
        LOG.parent.mkdir(exist_ok=True)
        shutil.copy(server.log, LOG)
        print(f"\nthe service's log: {LOG}")
    return not traffic.wrong.total()


def sigterm(server: Server, pictures: list[Picture], seconds: float = 3.0) -> bool:
    """Stops the service under load; prints a table; whether all that was accepted is answered.

    Every request has a connection of its own. One that was under way when the signal came was
    accepted; later ones may be refused or reset, but what is answered must be right. Uploads that
    broke off before the signal, or do so after it, must not hold up the end.
    """
    outcomes: Counter[str] = Counter()
    signalled, end = threading.Event(), threading.Event()

    def client(place: int) -> None:
        for number in range(place, sys.maxsize, AT_ONCE):
            if end.is_set():
                return
            own = pictures[number % len(pictures)]
            when = "after" if signalled.is_set() else "before"
            send = partial(httpx.post, f"{server.url}/segment", timeout=SECONDS, trust_env=False)
            try:
                answer = send(files={"file": ("x", own.data)})
            except httpx.ConnectError:  # nobody accepted it
                late = signalled.is_set()
                outcomes[f"{'after' if late else 'before'}, not connected"] += 1
                if late:
                    return
            except httpx.HTTPError as error:
                outcomes[f"{when}, lost ({type(error).__name__})"] += 1
            else:
                right = answer.status_code == 200 and own.is_answered_by(answer.json()["mask_png"])
                refused = "refused with 503" if answer.status_code == 503 else "wrong"
                outcomes[f"{when}, {'answered' if right else refused}"] += 1

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for place in range(AT_ONCE):
            pool.submit(client, place)
        broken = [_half_sent(server, pictures[n].data) for n in range(BROKEN)]
        time.sleep(seconds)
        for one in broken[::2]:
            one.close()
        signalled.set()
        begun = time.perf_counter()
        threading.Timer(0.5, lambda: [one.close() for one in broken]).start()
        server.process.terminate()
        status = server.process.wait(STOP_SECONDS)
        took = time.perf_counter() - begun
        end.set()
    head("SIGTERM under load", "", numbers=1)
    for name, number in sorted(outcomes.items()):
        row(f"sent {name}", number)
    row("uploads that broke off", len(broken))
    row("the service ended", f"after {took:.1f} s with status {status}")
    bad = {"before, wrong", "after, wrong", "before, not connected"}
    return status == 0 and not any(
        name in bad or name.startswith("before, lost") for name in outcomes
    )


def _half_sent(server: Server, data: bytes) -> socket.socket:
    """Begins to upload a file; returns the connection, on which the rest never comes."""
    url = httpx.URL(server.url)
    start = "POST /segment HTTP/1.1\r\nHost: localhost\r\n"
    start += "Content-Type: multipart/form-data; boundary=b\r\n"
    start += f"Content-Length: {len(data)}\r\n\r\n"
    connection = socket.create_connection((url.host, url.port or 80))
    connection.sendall(start.encode() + data[: len(data) // 2])
    return connection


def sessions(server: Server, pictures: list[Picture], rounds: int) -> bool:
    """Two sessions upload different scans at once on the routes of the superseded Flask app.

    Prints how often one saw the other's; whether neither ever did.
    """
    counts: Counter[str] = Counter()
    together = threading.Barrier(2, timeout=SECONDS)

    def visit(place: int) -> None:
        with httpx.Client(base_url=server.url, timeout=SECONDS, trust_env=False) as client:
            for number in range(rounds):
                own = pictures[(2 * number + place) % len(pictures)]
                together.wait()
                files = {"file": ("scan.png", own.data)}
                answer = client.post("/upload", files=files).raise_for_status().json()
                together.wait()
                original = client.get(f"/uploads/uploaded_image.jpg?{time.time_ns()}").content
                painted = client.get(f"/segmented/{answer['segmented_img']}?{number}").content
                mask = client.get(f"/segmented/{answer['mask_img']}").content
                pixels = np.asarray(Image.open(BytesIO(original)).convert("L"))
                counts["uploads"] += 1
                counts["other originals"] += not np.array_equal(pixels, own.pixels)
                counts["other masks"] += not own.is_answered_by_file(mask)
                counts["other overlays"] += not _painted(painted, own)

    with ThreadPoolExecutor(2) as pool:
        visits = [pool.submit(visit, place) for place in range(2)]
    head(f"two sessions, {rounds} rounds", "", numbers=1)
    for name, number in counts.items():
        row(name, number)
    for one in visits:
        if error := one.exception():  # the barrier lets the other one go on to its own
            row(f"broken off ({type(error).__name__})", str(error)[:80])
    return counts["uploads"] == counts.total() == 2 * rounds


def _painted(png: bytes, own: Picture) -> bool:
    """Whether the picture is this one, painted where its tumour is and nowhere else."""
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    if pixels.shape[:2] != own.mask.shape:
        return False
    coloured = np.ptp(pixels, axis=2) > 0
    same = np.abs(pixels[~own.mask] - own.pixels[~own.mask][:, None]).max(initial=0) <= 2
    return bool(same) and int((coloured != own.mask).sum()) <= max(2, own.mask.size // 1000)


def superseded(port: int, model: Path, weights: Path, folder: Path) -> None:
    """Serves an app of the superseded shape: one file name, eager PyTorch, overlays on the disk.

    It is only for comparison: two clients at once see each other's scan.

    Args:
        port: On loopback.
        model: Holds the model.json that goes with the weights.
        weights: The safetensors file.
        folder: For uploads and masks.
    """
    import flask
    import torch

    from tumorseg.imaging.preprocess import to_grey, to_grid, to_input, to_native
    from tumorseg.training.predict_split import load_network

    info = load_info(model)
    training = load_params(TrainParams, REPOSITORY / "params.yaml")
    evaluating = load_params(EvaluateParams, REPOSITORY / "params.yaml")
    network = load_network(info.architecture, training, weights, evaluating)
    app = flask.Flask(__name__)

    @app.get("/")
    def page() -> str:
        return "ready"

    @app.post("/upload")
    def upload() -> dict[str, str]:
        flask.request.files["file"].save(folder / "uploaded_image.jpg")
        grey = to_grey(Image.open(folder / "uploaded_image.jpg"))
        batch = torch.from_numpy(to_input(to_grid(grey, info.image_size))[None])
        with torch.inference_mode():
            grid = network(batch)[0, 0].numpy()
        mask = to_native(grid, grey.shape) >= info.threshold
        painted = np.repeat(grey[..., None], 3, axis=2)
        painted[mask] = (255, 0, 0)
        Image.fromarray(painted).save(folder / "segmented.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "mask.png")
        return {"segmented_img": "segmented.png", "mask_img": "mask.png"}

    app.run("127.0.0.1", port, threaded=True)


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


def steps(predictor: Predictor, model: Path, data: bytes) -> dict[str, Callable[[], Any]]:
    """What the service does with one picture, step by step, each ready to be repeated."""
    study = decode(data)
    grey = study.slices[0]
    ready = predictor.prepare(grey)[None]
    grid = predictor.probabilities(ready)[0]
    found = predictor.finish(grid, grey.shape)
    detector = OodDetector(predictor.info.inputs)
    # With ONNX Runtime's default options its threads spin while they wait.
    plain = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    return {
        "decode": lambda: decode(data),
        "resize and normalise": lambda: predictor.prepare(grey),
        BARE: lambda: predictor.probabilities(ready),
        "mask and contours": lambda: predictor.finish(grid, grey.shape),
        "familiarity": lambda: detector.assess(grey, study.colour),
        "PNG and JSON": lambda: slice_answer(grey, study, found, []).model_dump_json(),
        # Last, since those threads spin on for a moment and slow down whatever comes next.
        PLAIN: lambda: plain.run(["probability"], {"image": ready}),
    }


def latency(model: Path, tag: str | None, weights: Path, count: int, scratch: Path) -> bool:
    """Prints the time of each step, and that of an app of the superseded shape.

    Args:
        model: The model folder.
        tag: The bento to serve; this checkout's code if None.
        weights: The model's.
        count: Pictures, one after the other.
        scratch: A folder.

    Returns:
        Whether HTTP costs at most `GOAL` times the bare network.

    Raises:
        InputError: The weights are another model's.
    """
    predictor = Predictor(model)
    sent = picture(predictor, 1, side=640)
    parts = steps(predictor, model, sent.data)
    port = free_port(0)
    command = [sys.executable, __file__, "superseded", str(port)]
    command += [str(path.resolve()) for path in (model, weights, scratch)]
    seconds: dict[str, list[float]] = {}
    with (
        serve(model, tag) as server,
        running(command, port, "/", scratch, {"PYTHONPATH": PYTHONPATH}) as other,
        httpx.Client(timeout=SECONDS) as client,
    ):

        def post(address: str) -> httpx.Response:
            return client.post(address, files={"file": ("x.png", sent.data)}).raise_for_status()

        turns = {
            "/segment": partial(post, f"{server.url}/segment"),
            "/upload": partial(post, f"{other.url}/upload"),
        }
        right = sent.is_answered_by(turns["/segment"]().json()["mask_png"])
        turns["/upload"]()
        if not sent.is_answered_by_file((scratch / "mask.png").read_bytes()):
            raise InputError(f"{weights}: are another model's: name the model's own by --weights")
        for number in range(-3, count):  # the first turns warm up
            for name, step in (turns | parts).items():
                begun = time.perf_counter()
                step()
                if number >= 0:
                    seconds.setdefault(name, []).append(time.perf_counter() - begun)
    middle = {name: 1e3 * float(np.median(values)) for name, values in seconds.items()}
    bare, whole = min(middle[BARE], middle[PLAIN]), middle["/segment"]
    rest = whole - sum(middle[name] for name in parts if name != PLAIN)
    rows = {name: middle[name] for name in parts} | {"HTTP, queue and the rest": rest}
    rows |= {"**over HTTP, all together**": whole, "superseded shape over HTTP": middle["/upload"]}
    size = predictor.info.image_size
    head(f"one 640² PNG, network at {size}², {count} turns", "ms, p50", "× faster bare", numbers=2)
    for name, value in rows.items():
        row(name, f"{value:.2f}", f"{value / bare:.2f}")
    met = whole <= GOAL * bare
    print(f"\ngoal: at most {GOAL} × the faster bare; {'met' if met else 'missed'}")
    return right and met


def choose(chosen: argparse.Namespace, scratch: Path) -> tuple[Path, str | None]:
    """The model folder, and the bento's tag where the packaged champion is served.

    Raises:
        InputError: There is no packaged champion.
    """
    if chosen.phantom:
        return write_model(scratch / "model"), None
    if chosen.model:
        return chosen.model, None
    if (known := packaged()) is None:
        raise InputError("no champion is packaged: type `make run`, or give --model or --phantom")
    return packaged_model(known["tag"]), known["tag"]


def measure(chosen: argparse.Namespace, scratch: Path) -> bool:
    """Measures one thing; whether every promise was kept."""
    if chosen.what == "latency" and chosen.phantom:
        raise InputError("latency: needs a trained model; leave out --phantom")
    model, tag = choose(chosen, scratch)
    if chosen.what == "latency":
        weights = chosen.weights or weights_of(model)
        return latency(model, tag, weights, chosen.count or 60, scratch)
    predictor = Predictor(model)
    kinds = ("PNG", "PNG", "JPEG", "DICOM")
    pictures = [picture(predictor, n, kinds[n % 4], 640 if n % 2 else None) for n in range(48)]
    with serve(model, tag) as server:
        if chosen.what == "load":
            return load(server, pictures, predictor, chosen.count or 10_000)
        if chosen.what == "sigterm":
            return sigterm(server, pictures)
        return sessions(server, pictures, chosen.count or 200)


def main() -> None:
    """Reads the options and measures one thing."""
    if sys.argv[1:2] == ["superseded"]:  # the process that `latency` starts
        port, *paths = sys.argv[2:]
        superseded(int(port), *map(Path, paths))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("load", "sigterm", "sessions", "latency"))
    parser.add_argument("--model", type=Path, help="a folder with model.onnx and model.json")
    parser.add_argument("--phantom", action="store_true", help="a toy network, quick to make")
    parser.add_argument("--count", type=int, help="requests, rounds or pictures")
    parser.add_argument("--weights", type=Path, help="latency: the model's weights.safetensors")
    chosen = parser.parse_args()
    environment.set_up()
    os.environ |= environment.SILENT
    for name in environment.TRAINING:
        del os.environ[name]
    try:
        with tempfile.TemporaryDirectory(prefix="tumorseg-bench-") as scratch:
            fine = measure(chosen, Path(scratch))
    except InputError as error:
        sys.exit(str(error))
    sys.exit(not fine)


if __name__ == "__main__":
    main()
