import numpy as np
import pandas as pd
import pytest

from tumorseg.evaluation.metrics import score, summarise
from tumorseg.evaluation.strata import by_category, by_size, strata

COLUMNS = [
    "by", "stratum", "method", "slices", "groups",
    "mean_dice", "mean_dice_low", "mean_dice_high", "mean_dice_by_patient",
    "micro_dice", "share_dice_zero", "lesion_sensitivity",
]  # fmt: skip


def scored(method: str, seed: int | None = None, found: float = 0.5) -> pd.DataFrame:
    """Nine slices of 1000 pixels with tumours of 10, 20 … 90 pixels, and one without any."""
    areas = np.array([*range(10, 100, 10), 0])
    tp = (found * areas).astype(int)
    base = {"method": method, "path": [f"{n}.png" for n in range(10)], "group": list("aabbccddee")}
    counts = {"tp": tp, "fp": 5, "fn": areas - tp, "tn": 1000 - 5 - areas}
    parts = {"lesions": areas > 0, "lesions_found": tp > 10, "calls": 1, "calls_right": tp > 10}
    kinds = {"category": ["glioma", "glioma; meningioma", "meningioma", *["glioma"] * 6, ""]}
    table = pd.DataFrame(base | counts | {k: np.int64(v) for k, v in parts.items()} | kinds)
    table["seed"] = pd.array([seed] * 10, "Int64")
    return score(table)


@pytest.fixture
def table() -> pd.DataFrame:
    seeds = [scored("unet", seed, found) for seed, found in ((0, 0.5), (1, 0.7))]
    return pd.concat([*seeds, scored("background", found=0)], ignore_index=True)


def test_sizes_are_terciles_of_slices_with_tumour(table) -> None:
    parts = by_size(table)
    # Of 1% … 9% the terciles lie at 1 + 8/3 and 1 + 16/3.
    assert {stratum: sorted(set(part["path"])) for stratum, part in parts.items()} == {
        "no tumour": ["9.png"],
        "small (below 3.7% of the image)": ["0.png", "1.png", "2.png"],
        "medium (3.7% to 6.3% of the image)": ["3.png", "4.png", "5.png"],
        "large (6.3% of the image or more)": ["6.png", "7.png", "8.png"],
    }
    assert sum(map(len, parts.values())) == len(table)
    # The borders do not depend on how many methods and seeds there are.
    more = pd.concat([table, scored("copy")[:3]], ignore_index=True).sample(frac=1, random_state=0)
    assert list(by_size(more)) == list(parts)


def test_size_is_a_share_of_each_slice_s_own_pixels() -> None:
    table = scored("unet")
    table.loc[0, "tn"] = 10 - 5 - 5  # 10 of 15 pixels are tumour
    (large,) = (part for name, part in by_size(table).items() if name.startswith("large"))
    assert "0.png" in set(large["path"])


def test_equal_sizes_and_no_tumours_leave_strata_out() -> None:
    equal = scored("unet")[8:9]
    assert list(by_size(equal)) == ["large (9% of the image or more)"]
    assert list(by_size(scored("unet")[9:])) == ["no tumour"]
    whole = equal.assign(tp=0, fp=0, fn=1000, tn=0)
    assert list(by_size(whole)) == ["large (100% of the image or more)"]


def test_a_slice_counts_in_each_of_its_categories(table) -> None:
    parts = by_category(table)
    assert list(parts) == ["glioma", "meningioma", "no category"]
    assert set(parts["meningioma"]["path"]) == {"1.png", "2.png"}
    assert set(parts["no category"]["path"]) == {"9.png"}
    assert parts["glioma"]["path"].nunique() == 8 and len(parts["glioma"]) == 24
    assert list(by_category(scored("unet")[:1])) == ["glioma"]


def test_every_stratum_has_every_method_s_figures(table) -> None:
    found = strata(table, samples=200, seed=0)
    assert list(found) == COLUMNS
    assert len(found) == (4 + 3) * 2
    row = found.query("stratum == 'meningioma' and method == 'unet'").iloc[0]
    part = table[table["path"].isin(["1.png", "2.png"]) & (table["method"] == "unet")]
    figures = summarise(part, 200, 0)
    # Of four rows, two for each seed; the slices are of two patients.
    assert row["by"] == "category" and (row["slices"], row["groups"]) == (2, 2)
    for name in COLUMNS[5:-1]:
        assert row[name] == figures[name]
    # A lesion is found here if more than 10 of its pixels are: 14 of 20, 15 and 21 of 30.
    assert row["lesion_sensitivity"] == 0.75
    healthy = found.query("stratum == 'no tumour'")
    assert healthy[["share_dice_zero", "lesion_sensitivity"]].isna().all(axis=None)
