"""The table of settings and its environment."""

from __future__ import annotations

import threading
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from embatch.engine.amx.library import ELSEWHERE, SWITCH
from embatch.errors import InvalidArgument
from embatch.settings import MOST, PREFIX, Settings, digest, installation, vector_settings


def test_the_environment_overrides_by_name() -> None:
    """A variable of ours changes its setting, keeps its type, and leaves the others."""
    settings = Settings.read({"EMBATCH_BATCH_EXPIRY": "3600", "EMBATCH_TEXT_BYTES": "10", "OTHER": "x"})
    assert settings.batch_expiry == 3600.0
    assert settings.text_bytes == 10
    assert settings.retention == Settings().retention


@pytest.mark.parametrize("value", ["", "soon", "-1", "nan", "1e3x", "inf", "1e11", "315360001"])
def test_a_senseless_value_names_the_variable(value: str) -> None:
    """Not a number, negative, NaN and what no date can hold are refused with the variable's name and unit."""
    with pytest.raises(InvalidArgument, match="EMBATCH_BATCH_EXPIRY must be a number of seconds") as caught:
        Settings.read({"EMBATCH_BATCH_EXPIRY": value})
    assert caught.value.field == "EMBATCH_BATCH_EXPIRY"


def test_the_largest_values_overflow_nothing() -> None:
    """Every setting has a largest value, and with all of them dates, waits and counts can be told."""
    environ = {PREFIX + one.name.upper(): str(MOST[one.metadata["unit"]]) for one in fields(Settings)}
    settings = Settings.read(environ)
    for one in fields(Settings):
        value = getattr(settings, one.name)
        assert value == MOST[one.metadata["unit"]]
        assert list(islice([1], int(value))) == [1]
        if one.metadata["unit"] == "seconds":
            now = datetime.now(UTC)
            assert now - timedelta(seconds=value) < now < now + timedelta(seconds=value)
            assert value < threading.TIMEOUT_MAX
        with pytest.raises(InvalidArgument, match=f"{PREFIX}{one.name.upper()} must be"):
            Settings.read({PREFIX + one.name.upper(): str(MOST[one.metadata["unit"]] + 1)})


def test_settings_that_vectors_depend_on() -> None:
    """Those of the packing and of the engines' own variables, by what counts, however it is spelled."""
    tokens = "EMBATCH_MICRO_BATCH_TOKENS"
    default = vector_settings({})
    assert default == {tokens: "4096", SWITCH: "auto", ELSEWHERE: ""}
    assert vector_settings({tokens: "04096", SWITCH: "", "EMBATCH_THREADS": "3"}) == default
    assert vector_settings({"EMBATCH_TEXT_BYTES": "many"}) == default
    with pytest.raises(InvalidArgument, match=tokens):
        vector_settings({tokens: "many"})


def test_a_digest_tells_settings_apart() -> None:
    """By names and values, and not by their order."""
    assert digest({"a": "1", "b": "2"}) == digest({"b": "2", "a": "1"})
    assert len({digest(one) for one in ({}, {"a": "1"}, {"a": "2"}, {"b": "1"})}) == 4
    assert installation() == installation()
