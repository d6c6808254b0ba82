"""What embedding costs elsewhere: a dated table, which a file of the user's can replace, whole or in part."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import orjson

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping


BREAK_EVEN: Final = (100, 200)
"""Texts from which a batch is worth its setup, by the guide."""
WORTH: Final = 500
"""Texts from which the guide says batch in any case."""
SHOWN_MODEL: Final = "gemini-embedding-001"
"""Whose price is shown beside that of a local model."""
VARIABLE: Final = "EMBATCH_PRICES"
"""Names a file of prices where no flag does."""
UNITS: Final = ("tokens", "characters")


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in US dollars for a million of its units of text."""

    batch: float
    interactive: float
    per: str = "tokens"
    """The unit: `tokens`, or `characters`."""

    def of(self, tokens: float, characters: float) -> tuple[float, float]:
        """Return what texts cost as a batch, and interactively."""
        units = (tokens if self.per == "tokens" else characters) / 1e6
        return units * self.batch, units * self.interactive


_LEGACY: Final = Price(0.02, 0.025, "characters")
_SECOND: Final = Price(0.10, 0.20)
_MODELS: Final[Mapping[str, Price]] = MappingProxyType(
    {
        # ai.google.dev/gemini-api/docs/pricing and cloud.google.com/vertex-ai/generative-ai/pricing, read by
        # way of what others keep of them; where two differ, the dearer one.
        "gemini/gemini-embedding-001": Price(0.075, 0.15),
        "gemini/gemini-embedding-2": _SECOND,
        "gemini/gemini-embedding-2-preview": _SECOND,
        "vertex/gemini-embedding-001": Price(0.12, 0.15),
        "vertex/gemini-embedding-2": _SECOND,
        "vertex/gemini-embedding-2-preview": _SECOND,
        "vertex/text-embedding-004": _LEGACY,
        "vertex/text-embedding-005": _LEGACY,
        "vertex/text-multilingual-embedding-002": _LEGACY,
    }
)


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars. `date` says when the table was true."""

    date: str = "2026-11"
    cpu_hour: float = 0.0446
    """An hour of one virtual CPU: half of a c7i.large on demand (aws.amazon.com/ec2/pricing/on-demand)."""
    models: Mapping[str, Price] = field(default_factory=lambda: _MODELS)
    """By provider and model, as `vertex/gemini-embedding-001`."""

    def price(self, provider: str, model: str) -> Price | None:
        """Return what a model costs at a provider; `None` where the table does not say."""
        return self.models.get(f"{provider}/{model.rpartition('/')[2]}")


DEFAULT: Final = Prices()
_FIRST: Final = f"gemini/{SHOWN_MODEL}"
_SHORT: Final = {"gemini_batch": "batch", "gemini_interactive": "interactive"}
"""Names for the prices of the first model, from when it was the only one."""


def load(path: Path | None, environ: Mapping[str, str] | None = None) -> Prices:
    """Return the table, with what a JSON object in a file says in its place.

    Args:
        path: of the file; `None` takes the one that `VARIABLE` names.
        environ: where that is looked up.

    Raises:
        InvalidArgument: the file cannot be read, or names something else or a negative price.
    """
    variable = (environ or {}).get(VARIABLE)
    where = "--prices" if path is not None or not variable else VARIABLE
    path = Path(variable) if path is None and variable else path
    if path is None:
        return DEFAULT
    try:
        said = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}", field=where) from None
    known = {*(one.name for one in fields(Prices)), *_SHORT}
    if not isinstance(said, dict) or set(said) - known:
        raise InvalidArgument(f"{path}: a JSON object of {', '.join(sorted(known))} is wanted", field=where)
    models = dict(_MODELS)
    for name, value in said.items():
        if name == "models":
            models |= _read_models(path, where, value)
        elif name == "date":
            if not isinstance(value, str):
                raise InvalidArgument(f"{path}: date must be text", field=where)
        else:
            _check(path, where, name, value)
    for name, part in _SHORT.items():
        if name in said:
            models[_FIRST] = replace(models[_FIRST], **{part: said[name]})
    rest = {name: value for name, value in said.items() if name in ("date", "cpu_hour")}
    return Prices(models=MappingProxyType(models), **rest)


def _read_models(path: Path, where: str, said: Any) -> dict[str, Price]:
    """Return the prices of models. Raises InvalidArgument."""
    wanted = (
        f'{path}: models is a JSON object such as {{"vertex/gemini-embedding-001": {{"batch": 0.12, '
        '"interactive": 0.15, "per": "tokens"}}, in dollars for a million tokens or characters'
    )
    if not isinstance(said, dict):
        raise InvalidArgument(wanted, field=where)
    found = {}
    for name, price in said.items():
        if not isinstance(price, dict) or not {"batch", "interactive"} <= price.keys():
            raise InvalidArgument(wanted, field=where)
        if price.keys() - {"batch", "interactive", "per"} or price.get("per", UNITS[0]) not in UNITS:
            raise InvalidArgument(wanted, field=where)
        for part in ("batch", "interactive"):
            _check(path, where, f"{name}: {part}", price[part])
        found[name] = Price(**price)
    return found


def _check(path: Path, where: str, name: str, value: object) -> None:
    """Refuse what is no price. Raises InvalidArgument."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise InvalidArgument(f"{path}: {name} must be a number, 0 or more", field=where)
