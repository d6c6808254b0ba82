"""What holds for every test. Being here, it puts its folder on the import path too: tests share `serving`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair. Nothing is kept from one run to the next: what fails prints
# the line that repeats it. Where CI is set Hypothesis takes the same examples each time, for a change is judged
# there, and that must not hang on luck; everywhere else they are new ones.
settings.register_profile(
    "embatch",
    parent=settings(),
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("embatch")
