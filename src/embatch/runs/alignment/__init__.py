"""Whether each returned vector belongs to its text: a check of all rows without a call, then a few calls.

A model's vectors can be guessed, badly, from what a text looks like. A map that learns to guess from the
very rows of a batch (`ridge`, `fit`) tells a vector that stands at another's text, most surely where two
were exchanged; the rows that it points at, and a few random ones, are embedded again (`sampling`,
`comparison`), and these alone decide. What it can and cannot find, with figures: docs/alignment.md.
"""
