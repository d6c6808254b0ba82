"""Make the reference vectors that every engine is compared with.

    python3 run.py test-torch --version                                       # makes .venv-torch
    .venv-torch/bin/python tests/engine/references/make.py                    # vectors.npy from texts.jsonl
    .venv-torch/bin/python tests/engine/references/make.py --texts            # both anew

`texts.jsonl` holds one `{"text": ...}` a line: passages of the standard library of CPython 3.11.7 in all
lengths, and texts that go wrong easily. `vectors.npy` holds float32 (texts, 384): all-MiniLM-L6-v2 by
sentence-transformers on a CPU in float32, one text a call, so that no padding takes part. The file hashes the
vectors belong to are those of `PINNED` in `embatch.engine.models`, and are checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TEXTS, VECTORS = HERE / "texts.jsonl", HERE / "vectors.npy"
PASSAGES, SENTENCES, LONG = 480, 60, 40

ODD = (
    "a",
    "?",
    "Hi",
    "OK.",
    "42",
    "3.14159",
    "yes or no",
    "What is an embedding?",
    "The cat sat on the mat.",
    "the cat sat on the mat",
    "THE CAT SAT ON THE MAT!",
    "  surrounded by spaces  ",
    "tabs\tand\nnew\r\nlines\n\n\nin one text",
    "no\u00a0break\u2003em\u3000ideographic\u200bzero width\ufeffmark",
    "control\x00char\x07acters\x1b[31m\x7f",
    "line\u2028separator and paragraph\u2029separator",
    "soft\u00adhyphen and non\u2011breaking hyphen \u2013 \u2014 \u2026",
    "\u201cCurly quotes\u201d and \u2018apostrophes\u2019, \u00abguillemets\u00bb",
    "Caf\u00e9 na\u00efve r\u00e9sum\u00e9 \u00c5ngstr\u00f6m",
    "Cafe\u0301 nai\u0308ve re\u0301sume\u0301 A\u030angstro\u0308m",
    "Stra\u00dfe, STRASSE, \u0130stanbul, \u0131\u015f\u0131k",
    "Z\u0351\u036b\u0343\u036aa\u0302\u0349l\u0333\u0355g\u0358\u0352o\u0321\u034f!",
    "\ufb01ne \ufb02ow o\ufb03ce, x\u00b2 + y\u00b3 = \u00bd, \u2167 \u2460",
    "\uff26\uff35\uff2c\uff2c\uff37\uff29\uff24\uff34\uff28 text",
    "\U0001d4d1\U0001d4f8\U0001d4f5\U0001d4ed script letters",
    "\U0001f600",
    "\U0001f600\U0001f680\U0001f389 three emoji and words",
    (
        "family \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 flag \U0001f1e9\U0001f1ea "
        "thumb \U0001f44d\U0001f3fd heart \u2764\ufe0f"
    ),
    "\u4eca\u65e5\u306f\u3044\u3044\u5929\u6c17\u3067\u3059\u306d\u3002",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u041a\u0430\u043a \u0434\u0435\u043b\u0430?",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\U00013080\U00012000\U0001f8ff unknown signs",
    "\ue000 private use \U0010fffd",
    "\u202eright to left override\u202c back",
    "[CLS] the tokens of the model [SEP] written [MASK] out [PAD] [UNK]",
    "##ing ##ed subword ##marks",
    "don't can't won't o'clock rock'n'roll",
    "snake_case camelCase kebab-case SCREAMING_CASE",
    "https://example.com/path/to?query=1&other=two#fragment",
    "someone@example.com, +1 (555) 010-9999, 2026-11-23T12:34:56Z",
    '{"key": ["value", 1, 2.5, null], "nested": {"yes": true}}',
    "<p class='x'>markup &amp; entities</p><!-- comment -->",
    "SELECT name FROM users WHERE id = 1; DROP TABLE users; --",
    "for i in range(10):\n    print(f'{i:>3} {i ** 2}')",
    "$1,234.56 \u20ac99 \u00a5100 50% \u00b15 \u2264 7 \u2248 \u221e",
    "\u2211_{i=1}^{n} x_i \u2208 \u211d \u2200\u03b5>0 \u2203\u03b4>0",
    "word " * 3 + "word",
    "....................",
    "!!!???!!!",
    "-" * 80,
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 99,
    "x" * 101,  # WordPiece gives words above 100 characters up as unknown
    "ab" * 2000,
    "\U0001f600" * 300,
    "1 2 3 4 5 6 7 8 9 " * 60,
    "long " * 700,
    "\u6f22" * 400,
)


def compose() -> list[str]:
    """Return the texts: the odd ones, sentences, passages, and runs of passages above 256 tokens."""
    sys.path.insert(0, str(HERE.parents[2] / "examples"))
    from corpus import passages

    found = [one.text for one in passages(PASSAGES + SENTENCES + 4 * LONG)]
    sentences = [text.partition(". ")[0] for text in found[PASSAGES : PASSAGES + SENTENCES]]
    parts = found[PASSAGES + SENTENCES :]
    long = ["\n\n".join(parts[i : i + 4]) + " " + found[i] for i in range(0, len(parts), 4)]
    return list(dict.fromkeys((*ODD, *sentences, *found[:PASSAGES], *long)))


def embed(texts: list[str]) -> np.ndarray:
    """Return the vectors, float32 (texts, 384), from the pinned files of the installed package."""
    import torch
    from sentence_transformers import SentenceTransformer

    from embatch.engine.models import DEFAULT_MODEL, PINNED, serve_model, verify

    folder = Path(serve_model(DEFAULT_MODEL, engine="torch").spec.model)
    verify(folder, PINNED[DEFAULT_MODEL])
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    return np.asarray(model.encode(texts, batch_size=1), np.float32)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Make the reference vectors.")
    parser.add_argument("--texts", action="store_true", help="make texts.jsonl anew as well")
    if parser.parse_args().texts:
        TEXTS.write_text("".join(json.dumps({"text": text}) + "\n" for text in compose()))
    texts = [json.loads(line)["text"] for line in TEXTS.read_text().splitlines()]
    np.save(VECTORS, embed(texts))
    print(f"{len(texts)} texts")


if __name__ == "__main__":
    main()
