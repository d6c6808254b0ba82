"""docs/hosted.md shows the tables and names the variables that the code has today."""

from __future__ import annotations

import re
from pathlib import Path

from embatch.client.providers import vertex_regions
from embatch.runs import prices

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "hosted.md").read_text("utf-8")
_VARIABLE = re.compile(r'"((?:GOOGLE|GEMINI|EMBATCH|STORAGE)_[A-Z_]+)"')


def test_the_table_of_locations_is_todays() -> None:
    """One row for models that are served alike, and its date."""
    table = vertex_regions.DEFAULT
    assert f"as far as is known ({table.date})" in PAGE
    for locations in set(table.served.values()):
        models = ", ".join(f"`{model}`" for model, where in table.served.items() if where == locations)
        shown = "single regions" if locations == ("*-*",) else ", ".join(locations)
        assert f"| {models} | {shown} |" in PAGE


def test_every_variable_of_a_hosted_target_is_explained() -> None:
    """What providers read from the environment stands in a table of the page."""
    providers = (ROOT / "src" / "embatch" / "client" / "providers").glob("*.py")
    read = {name for path in providers for name in _VARIABLE.findall(path.read_text("utf-8"))}
    rows = " ".join(line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| `"))
    assert "GOOGLE_API_KEY" in read
    assert sorted(name for name in read if f"`{name}`" not in rows) == []


def test_the_table_of_prices_is_todays() -> None:
    """Each model of the table, by the target that asks so much for it, and the table's date."""
    assert f"({prices.DEFAULT.date}); your own" in PAGE
    shown = {}
    for target, models, batch, alone in re.findall(
        r"^\| `(\w+)` \| (`[^|]*`) \| ([\d.]+[^|]*) \| ([\d.]+[^|]*) \|$", PAGE, re.MULTILINE
    ):
        unit = "characters" if "characters" in batch and "characters" in alone else "tokens"
        price = prices.Price(float(batch.split()[0]), float(alone.split()[0]), unit)
        for model in re.findall(r"`([^`]+)`", models):
            shown[f"{target}/{model}"] = price
    assert shown == prices.DEFAULT.models
