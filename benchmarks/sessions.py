"""Two sessions at once on the routes of the superseded Flask app."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from io import BytesIO

import httpx
import numpy as np
from PIL import Image
from served import Picture, Server

SECONDS = 120.0


def sessions(server: Server, pictures: Sequence[Picture], rounds: int = 200) -> tuple[str, bool]:
    """Two sessions upload different scans at once, and look at what the old names show."""
    counts: Counter[str] = Counter()
    together = threading.Barrier(2, timeout=SECONDS)

    def session(place: int) -> None:
        try:
            visit(place)
        except Exception as error:  # the other one must not wait for this one
            counts[f"broken off ({type(error).__name__}: {str(error)[:80]})"] += 1
            together.abort()

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

    threads = [threading.Thread(target=session, args=(n,)) for n in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    rows = [f"| {name} | {number} |" for name, number in counts.items()]
    fine = counts["uploads"] == counts.total() == 2 * rounds
    return "\n".join([f"| two sessions, {rounds} rounds | |", "|---|--:|", *rows]), fine


def _painted(png: bytes, own: Picture) -> bool:
    """Whether the picture is this one, painted where its tumour is and nowhere else."""
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    if pixels.shape[:2] != own.mask.shape:
        return False
    coloured = np.ptp(pixels, axis=2) > 0
    same = np.abs(pixels[~own.mask] - own.pixels[~own.mask][:, None]).max(initial=0) <= 2
    return bool(same) and int((coloured != own.mask).sum()) <= max(2, own.mask.size // 1000)
