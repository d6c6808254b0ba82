"""What counts as strange, fixed beforehand: the levels of the free check, and where each of them comes from.

Levels were chosen on English documentation and English program messages, with vectors of all-MiniLM-L6-v2,
and measured on other kinds of text afterwards: `benchmarks/alignment.py`, docs/alignment.md. A misplaced
row's z has a mean of 0 and a deviation of 1 whatever the text, so levels of z hold for every model; what an
honest row reaches does not, and where it reaches little the check says that it sees little.
"""

from __future__ import annotations

from typing import Final

MEDIAN_LEAST: Final = 1.0
"""Half of all rows lie above this z where vectors are at their texts; all shuffled, the median is 0 to within
0.05. Honest batches of 1,000 rows and more had 2.4 and more (prototype: 2.5 at 300 rows, 4.9 at 3,000)."""
STRETCH_ROWS: Final = 20
STRETCH_LEAST: Final = 1.0
"""Least mean z of so many rows in a row: misplaced ones have 0 with a deviation of 0.22, so four and a half
of them lie between. The lowest of 127 honest batches of 300 rows was 1.82 (prototype)."""
LOW_Z: Final = 0.5
LOW_ROWS: Final = 4
LOW_SHARE: Final = 0.003
"""More rows than both below `LOW_Z` are too many: seven of ten misplaced rows lie there, and of 3,000 honest
ones 1.1 on average (prototype), most of them texts that have hardly a word."""
GAIN: Final = 3.0
"""Exchanges that gain more are looked at even where nothing else is to be: 100 of 100 exchanged pairs did in
the prototype, and 0.7 honest rows of 3,000."""
CANDIDATE_Z: Final = 3.0
CANDIDATES: Final = 4_000
"""Rows below that z, at most so many and the lowest of them, are tried in each other's place."""
DOUBTED_Z: Final = 3.0
"""Once a vector was found at a wrong text, every row of its block below this z is embedded again: 99.9 % of
misplaced rows lie there, and some per cent of the others."""
GUARD_MOST: Final = 0.5
"""Most that the median z of the shuffled control may be away from 0. It is 0 to within 0.1; what is further
away judges rows by something that they told it themselves."""
GUARD_ROWS: Final = 3_000
"""Rows of that control."""
COMPARABLE: Final = 0.99
"""Least cosine at which random rows embedded again must agree with the batch for anything to be compared."""
