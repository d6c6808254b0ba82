"""From texts to token ids with a model's own `tokenizer.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from embatch.engine.protocol import Encoded
from embatch.engine.texts import cut
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embatch.engine.folder import ModelFolder
    from embatch.engine.protocol import TokenRow


class FolderTokenizer:
    """Encodes as the folder's own files say, in as many threads as there are cores.

    Raises:
        InvalidArgument: `tokenizer.json` cannot be read, or knows more tokens than the model.
    """

    def __init__(self, described: ModelFolder) -> None:
        file = described.path / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(file))
            # The file carries the padding and truncation of its training, which are not those of its use.
            tokenizer.no_padding()
            tokenizer.enable_truncation(
                described.max_tokens, direction="left" if described.cut_left else "right"
            )
            tokenizer.encode("It can be used?")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises plain Exception, and its panics are not even that
            raise InvalidArgument(
                f"{file} is no tokenizer that works for {described.max_tokens} tokens: get the model again",
                field="model",
            ) from error
        known = described.config.get("vocab_size")
        if isinstance(known, int) and _highest(tokenizer) >= known:
            # A token without a vector would be read from beyond the table, or count as zeros, silently.
            raise InvalidArgument(
                f"{file} knows more tokens than the model (vocab_size in config.json): get the model again",
                field="model",
            )
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if described.max_tokens <= special:  # the library would cut nothing off, or all there is
            raise InvalidArgument(
                f"the model takes {described.max_tokens} tokens, and {special} of them stand around every "
                "text: there is no room for it (max_tokens, or max_seq_length in the folder)",
                field="model",
            )
        self._tokenizer = tokenizer
        self._max_tokens, self._lower_case = described.max_tokens, described.lower_case

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the token ids of each text, int32, special tokens included, cut to the model's limit."""
        shortened = [cut(text, self._max_tokens) for text in texts]
        kept = [text.lower() if self._lower_case else text for text, _ in shortened]
        encodings = self._tokenizer.encode_batch_fast(kept)
        rows: list[TokenRow] = [np.array(encoding.ids, np.int32) for encoding in encodings]
        over = [
            cut_off or bool(encoding.overflowing)
            for encoding, (_, cut_off) in zip(encodings, shortened, strict=True)
        ]
        return Encoded(rows, np.array([len(row) for row in rows], np.int32), np.array(over, np.bool_))


def _highest(tokenizer: Tokenizer) -> int:
    """Return the highest number that a token has: some tokenizers leave numbers out."""
    template = tokenizer.encode("").ids  # whose numbers need not be those of the vocabulary
    return max((*tokenizer.get_vocab(with_added_tokens=True).values(), *template), default=-1)
