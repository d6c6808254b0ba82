"""What holds for every test. Being here, it puts its folder on the import path too: tests share `serving`."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Generator

# How long an example takes is the machine's affair. Nothing is kept from one run to the next: what fails
# prints the line that repeats it. Where CI is set Hypothesis takes the same examples each time, for a change
# is judged there, and that must not hang on luck; everywhere else they are new ones.
settings.register_profile(
    "embatch",
    parent=settings(),
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("embatch")

_OF_THE_SHELL = {
    *("all_proxy", "http_proxy", "https_proxy", "no_proxy", "ssl_cert_dir", "ssl_cert_file"),
    *("clicolor", "clicolor_force", "columns", "force_color", "lines", "no_color", "tty_compatible"),
}
"""Variables, in either case, that send a client elsewhere or change how a table looks."""


_TESTS = Path(__file__).parent
_LONGEST = (
    *("engine/test_kernel.py", "cli/test_streams.py", "server/test_start_stop.py", "cli/test_batches.py"),
    *("cli/test_cli.py", "server/test_kill.py", "runs/test_run.py", "pool/test_blame.py"),
    *("client/test_local.py", "pool/test_local_pool.py", "examples/test_examples.py"),
    *("engine/test_endpoint_limits.py", "engine/test_endpoint_service.py", "api/test_gemini_face.py"),
    *("engine/test_amx_service.py", "server/test_leaving.py", "api/test_asked_model.py"),
    *("client/test_lingering.py", "cli/test_model_flags.py", "cli/test_left_behind.py"),
    *("runs/test_reading_growth.py", "client/test_any_model.py"),
    *("service/test_many_at_once.py", "benchmarks/test_corpus.py"),
)
"""Files that take the longest, the longest first: begun late, one of them would run on alone at the end."""
_temporary: list[Path] = []
"""A folder in the place of the user's data; one at most."""


def pytest_configure() -> None:
    """Begin alike wherever the tests are started: their servers are their own, and Ctrl-C is heard."""
    for name in [name for name in os.environ if name.lower() in _OF_THE_SHELL]:
        del os.environ[name]
    # Commands are started by the hundred: each would compile what it imports again, which doubles the time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # What names no folder must not work in the user's.
    _temporary.append(Path(tempfile.mkdtemp(prefix="embatch-nobodys-")))
    os.environ["EMBATCH_DATA"] = str(_temporary[0] / "embatch")
    os.environ["XDG_DATA_HOME"] = str(_temporary[0])
    # What the tests have embedded is little; niced it would stand still beside other load.
    os.environ.setdefault("EMBATCH_BULK_NICE", "0")
    # Time for what comes next at once, and no longer: a service that lingers for a minute outlives its test.
    os.environ["EMBATCH_LINGER_SECONDS"] = "2"
    # A shell without job control has SIGINT ignored by what it starts behind itself; our children would, too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # the same of `nohup`
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)  # what puts tests in a random order comes after it
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, where files are run side by side."""
    place = {_TESTS / name: at for at, name in enumerate(_LONGEST)}
    assert all(path.exists() for path in place), "a file of _LONGEST is gone"
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    while _temporary:
        shutil.rmtree(_temporary.pop(), ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None]:
    """Fail a test that works in the default data folder: what it leaves there, others find.

    A hosted provider's client has its journal there, wherever it is not told otherwise: that is forgotten.
    """
    yield
    default = _temporary[0] / "embatch"
    if [path.name for path in default.glob("*")] == ["journal"]:
        shutil.rmtree(default)
    if left := sorted(path.name for path in _temporary[0].iterdir()):
        for name in left:
            shutil.rmtree(_temporary[0] / name, ignore_errors=True)
        pytest.fail(f"it names no data folder and worked in the default one: {left}")
