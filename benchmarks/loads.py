"""Load on a running service: many mixed requests."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import httpx
import numpy as np
from PIL import Image
from served import Picture, Server, picture, quantile
from spoilt_requests import Spoilt
from volumes import dicom_picture, dicom_volume, nifti_volume

from tumorseg.inference.client import retry_after
from tumorseg.inference.predictor import Predictor

AT_ONCE = 64
SECONDS = 120.0  # without an answer until a request counts as hanging
RETRIES = 40  # after 503
GROWTH = 1.1  # of memory without the page's pictures, from the middle to the end, or 32 MiB
# The service closes what was idle for 5 s; a client that was held up may be too late to notice.
_LIMITS = httpx.Limits(
    max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE, keepalive_expiry=2.0
)
# What is not said here is a picture to /segment.
_SHARES = {"refused": 0.2, "batch": 0.08, "upload": 0.06, "page": 0.05, "volume": 0.01}


@dataclass
class Tally:
    """What came of the requests.

    Attributes:
        statuses: How often each status was answered.
        wrong: Violations, in words.
        seconds: Of the answers to `/segment`, the waiting after 503 left out.
        busy: Answers 503 of the bounded queue, after which the client asked again.
        memory: Of the server in MiB, at shares of the requests: all of it, and what the page keeps.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    busy: int = 0
    memory: dict[str, tuple[float, float]] = field(default_factory=dict)


async def _send(
    client: httpx.AsyncClient, path: str, sent: dict[str, Any], tally: Tally
) -> httpx.Response | None:
    """Sends until the queue has room; None, and a violation, where no answer comes."""
    for _ in range(RETRIES):
        begun = time.perf_counter()
        try:
            answer = await client.post(path, **sent)
        except httpx.TimeoutException:
            tally.wrong["hangs"] += 1
            return None
        except httpx.HTTPError as error:
            tally.wrong[f"no answer ({type(error).__name__})"] += 1
            return None
        if answer.status_code != 503:
            tally.statuses[answer.status_code] += 1
            if answer.status_code >= 500:
                tally.wrong["5xx"] += 1
            elif path == "/segment" and answer.status_code == 200:
                tally.seconds.append(time.perf_counter() - begun)
            return answer
        tally.busy += 1
        if "Retry-After" not in answer.headers:
            tally.wrong["503 without Retry-After"] += 1
        await asyncio.sleep(retry_after(answer))
    tally.wrong["503 forever"] += 1
    return None


Kind = Callable[[httpx.AsyncClient, int, Tally], Awaitable[None]]


class Mix:
    """What is sent, most of it with known masks: pictures to every address, and a few volumes.

    Args:
        predictor: Finds the masks beforehand.
        spoilt: What must be refused, from `corpus`.
        count: How many different pictures.
    """

    def __init__(self, predictor: Predictor, spoilt: list[Spoilt], count: int = 48) -> None:
        kinds = ("PNG", "PNG", "JPEG", "DICOM")
        self.pictures = [
            dicom_picture(predictor, n)
            if kinds[n % 4] == "DICOM"
            else picture(predictor, n, kinds[n % 4], 640 if n % 2 else None)
            for n in range(count)
        ]
        self.volumes = [
            make(predictor, n) for n in range(4) for make in (dicom_volume, nifti_volume)
        ]
        self.spoilt = spoilt

    def check(self, own: Picture, answer: dict[str, Any], tally: Tally) -> None:
        """Counts a mask that is not this picture's."""
        if not own.is_answered_by(answer["mask_png"]):
            others = [one for one in self.pictures if one is not own]
            swapped = any(one.is_answered_by(answer["mask_png"]) for one in others)
            tally.wrong["swapped masks" if swapped else "wrong masks"] += 1

    async def one(self, client: httpx.AsyncClient, number: int, tally: Tally) -> None:
        """One picture to `/segment`."""
        own = self.pictures[number % len(self.pictures)]
        sent = {"files": {"file": ("x", own.data)}}
        answer = await _send(client, "/segment", sent, tally)
        if answer is not None and answer.status_code == 200:
            self.check(own, answer.json(), tally)
        elif answer is not None:
            tally.wrong[f"good picture answered {answer.status_code}"] += 1

    async def batch(self, client: httpx.AsyncClient, number: int, tally: Tally) -> None:
        """Three pictures, and a damaged file among them, to `/segment/batch`."""
        own = [self.pictures[(number + k) % len(self.pictures)] for k in range(3)]
        parts = [("files", ("x", one.data)) for one in own]
        parts.insert(1, ("files", ("x", own[0].data[:99])))
        answer = await _send(client, "/segment/batch", {"files": parts}, tally)
        if answer is None:
            return
        results = answer.json().get("results", [])
        if answer.status_code != 200 or len(results) != 4 or "error" not in results.pop(1):
            tally.wrong["batch answered otherwise"] += 1
            return
        for one, result in zip(own, results, strict=True):
            self.check(one, result, tally)

    async def upload(self, client: httpx.AsyncClient, number: int, tally: Tally) -> None:
        """One picture to `/upload`, and its mask fetched, as the superseded app's page does."""
        own = self.pictures[number % len(self.pictures)]
        sent = {"files": {"file": ("x.png", own.data)}}
        async with _browser(client) as browser:
            answer = await _send(browser, "/upload", sent, tally)
            if answer is None:
                return
            if answer.status_code != 200 or "mask_img" not in answer.json():
                tally.wrong["upload answered otherwise"] += 1
                return
            await self._shown(browser, f"/segmented/{answer.json()['mask_img']}", own, tally)

    async def page(self, client: httpx.AsyncClient, number: int, tally: Tally) -> None:
        """One picture to `/studies`, looked at and removed, as the page does."""
        own = self.pictures[number % len(self.pictures)]
        async with _browser(client) as browser:
            answer = await _send(browser, "/studies", {"files": {"file": ("x", own.data)}}, tally)
            if answer is None:
                return
            if answer.status_code != 200:
                tally.wrong["study answered otherwise"] += 1
                return
            at = f"/studies/{answer.json()['id']}"
            image = await browser.get(f"{at}/0/image.png")
            shown = np.asarray(Image.open(BytesIO(image.content)))
            if not np.array_equal(shown, own.pixels):
                tally.wrong["other originals"] += 1
            await self._shown(browser, f"{at}/mask.png", own, tally)
            await browser.delete(at)

    async def _shown(
        self, browser: httpx.AsyncClient, address: str, own: Picture, tally: Tally
    ) -> None:
        mask = await browser.get(address)
        tally.statuses[mask.status_code] += 1
        if mask.status_code != 200 or not own.is_answered_by_file(mask.content):
            tally.wrong["wrong masks"] += 1

    async def volume(self, client: httpx.AsyncClient, number: int, tally: Tally) -> None:
        """A small volume to `/segment/volume`: a zip of DICOM files, or NIfTI."""
        own = self.volumes[number % len(self.volumes)]
        sent = {"files": {"file": ("x", own.data)}}
        answer = await _send(client, "/segment/volume", sent, tally)
        if answer is None:
            return
        if answer.status_code != 200:
            tally.wrong[f"good volume answered {answer.status_code}: {answer.text[:200]}"] += 1
        elif not own.is_answered_by(answer.content):
            tally.wrong["wrong masks"] += 1

    async def refused(self, client: httpx.AsyncClient, number: int, tally: Tally) -> None:
        """One request that must be refused, with a sentence."""
        case: Spoilt = self.spoilt[number % len(self.spoilt)]
        answer = await _send(client, case.path, case.sent, tally)
        if answer is None or answer.status_code >= 500:
            return
        known = case.status is None or case.status == answer.status_code
        if not 400 <= answer.status_code < 500 or not known:
            tally.wrong[f"{case.path}: {case.name} answered {answer.status_code}"] += 1
        elif "error" not in answer.text and case.path.startswith("/segment"):
            tally.wrong[f"{case.path}: {case.name} answered without a sentence"] += 1

    def plan(self, count: int) -> Iterator[tuple[Kind, int]]:
        """Every request in turn: each kind has its exact share, each of its cases as often."""
        names = [name for name, share in _SHARES.items() for _ in range(round(share * count))]
        names += ["one"] * (count - len(names))
        turns: Counter[str] = Counter()
        for name in np.random.default_rng(0).permutation(names):
            yield getattr(self, name), turns[name]
            turns[name] += 1


@asynccontextmanager
async def _browser(client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """A browser of its own: the other one's jar would bring other sessions' cookies."""
    async with httpx.AsyncClient(
        base_url=client.base_url, timeout=SECONDS, limits=_LIMITS, trust_env=False
    ) as browser:
        yield browser


async def load(server: Server, mix: Mix, count: int) -> tuple[Tally, float]:
    """Sends `count` requests, 64 at once; returns what came of them, and the seconds it took."""
    tally, work, done = Tally(), mix.plan(count), 0

    def look(mark: str) -> None:
        tally.memory[mark] = server.memory(), server.kept()

    look("before")
    marks = {max(1, count * share // 100): f"{share}%" for share in (10, 25, 50, 75, 100)}

    async def worker(client: httpx.AsyncClient) -> None:
        nonlocal done
        for kind, number in work:
            await kind(client, number, tally)
            done += 1
            if done in marks:
                look(marks[done])

    begun = time.perf_counter()
    async with httpx.AsyncClient(
        base_url=server.url, timeout=SECONDS, limits=_LIMITS, trust_env=False
    ) as client:
        await asyncio.gather(*(worker(client) for _ in range(AT_ONCE)))
    return tally, time.perf_counter() - begun


def load_table(tally: Tally, count: int, seconds: float) -> str:
    """The result as a Markdown table; adds memory that grows to what is wrong."""
    middle, end = (tally.memory[mark][0] - tally.memory[mark][1] for mark in ("50%", "100%"))
    if end > max(GROWTH * middle, middle + 32):
        tally.wrong["memory grows"] += 1
    statuses = ", ".join(f"{n} × {status}" for status, n in sorted(tally.statuses.items()))
    memory = ", ".join(
        f"{at} {whole:.0f} ({kept:.0f})" for at, (whole, kept) in tally.memory.items()
    )
    rows = {
        f"requests, {AT_ONCE} at once": f"{count} in {seconds:.0f} s",
        "requests a second": f"{count / seconds:.1f}",
        "statuses": statuses,
        "503 of the bounded queue, asked again": str(tally.busy),
        "5xx": str(tally.wrong["5xx"]),
        "hangs": str(tally.wrong["hangs"]),
        "swapped or wrong masks": str(tally.wrong["swapped masks"] + tally.wrong["wrong masks"]),
        "memory of the server, MiB (of it the page's pictures)": memory,
        "`/segment`, p50 and p95": f"{quantile(tally.seconds, 0.5):.2f} s, "
        f"{quantile(tally.seconds, 0.95):.2f} s",
    }
    rows |= {f"**{what}**": f"**{n}**" for what, n in tally.wrong.items() if n}
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| load | |", "|---|---|", *lines])
