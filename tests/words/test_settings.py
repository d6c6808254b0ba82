"""The table of settings and its environment."""

from __future__ import annotations

import pytest

from embatch.errors import InvalidArgument
from embatch.settings import Settings


def test_the_environment_overrides_by_name() -> None:
    """A variable of ours changes its setting, keeps its type, and leaves the others."""
    settings = Settings.read({"EMBATCH_BATCH_EXPIRY": "3600", "EMBATCH_TEXT_BYTES": "10", "OTHER": "x"})
    assert settings.batch_expiry == 3600.0
    assert settings.text_bytes == 10
    assert settings.retention == Settings().retention


@pytest.mark.parametrize("value", ["", "soon", "-1", "nan", "1e3x"])
def test_a_senseless_value_names_the_variable(value: str) -> None:
    """Not a number, negative and NaN are refused with the variable's name and unit."""
    with pytest.raises(InvalidArgument, match="EMBATCH_BATCH_EXPIRY must be a number of seconds") as caught:
        Settings.read({"EMBATCH_BATCH_EXPIRY": value})
    assert caught.value.field == "EMBATCH_BATCH_EXPIRY"
