"""How `embed` checks what a hosted service gives: its flags, what it may cost, and what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embatch.cli.app import check_range
from embatch.cli.display import report
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embatch.client.client import Client
    from embatch.runs.alignment.sampling import Budget


def budget(service: Client, verify: str | None, calls: int | None, rows: int | None) -> Budget:
    """Return how a run is checked, and say what that may cost.

    Args:
        service: the target.
        verify: the flag's value, `None` where it was not given.
        calls: the same of `--verify-calls`.
        rows: of the input; `None`: not known.

    Raises:
        InvalidArgument: a flag has no such value, or the target has a certificate instead.
    """
    from embatch.client.base import target_of  # noqa: PLC0415  (the private service starts before)
    from embatch.runs.alignment.sampling import Budget, Verify  # noqa: PLC0415  (as above)

    if verify is not None and verify not in set(Verify):
        raise InvalidArgument(f"--verify is one of {', '.join(Verify)}", field="--verify")
    check_range("--verify-calls", calls, 0)
    wanted = Budget(Verify(verify or Verify.FULL), calls)
    if target_of(service).provider.capabilities.reference_path:
        for flag, given in (("--verify", verify), ("--verify-calls", calls)):
            if given is not None:
                raise InvalidArgument(
                    f"{flag} is for hosted targets: an embatch service certifies every block itself",
                    field=flag,
                )
        return wanted
    if wanted.verify is Verify.NONE:
        report("check: none; nothing will say whether vectors belong to their texts")
    else:
        most = wanted.of_run(rows) if rows is not None else wanted.of_run(1 << 60)
        way = "all rows by each other, and " if wanted.verify is Verify.FULL else ""
        texts = f"{most:,} text" if most == 1 else f"{most:,} texts"
        report(f"check: {way}at most {texts} embedded again at the price of single calls (--verify)")
    return wanted


def report_alignment(found: Mapping[str, Any], cpu_seconds: float) -> None:
    """Print what was found of all vectors."""
    report(
        f"check: {found['verdict']}; {found['surveyed_rows']:,} of {found['rows']:,} texts judged by each "
        f"other, {found['calls']:,} embedded again, {cpu_seconds:,.1f} s of processor time here"
    )
    report(f"  {found['power']}; {found['not_found']}")
    if found["verdict"] != "sound":
        report(f"  {_MEANS[found['verdict']]}")


_MEANS = {
    "damaged": "vectors came at wrong texts: --retry-failed embeds these rows again",
    "in doubt": "rows look wrong and nothing was compared: --verify-calls allows more, after --restart",
    "not comparable": "asked again, the service gives a text another vector: no order can be judged",
    "not checked": "no vector was compared with anything",
}
