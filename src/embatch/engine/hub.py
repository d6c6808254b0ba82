"""Model files from the Hugging Face Hub or its cache: configuration, tokenizer, weights, nothing else.

`HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_HOME` and `HF_TOKEN` mean what they mean to every Hub tool.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from embatch.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION: Final = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_*_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors",
)
_SAFETENSORS: Final = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_ONNX: Final = ("onnx/model.onnx", "onnx/model.onnx_data", "model.onnx", "model.onnx_data")

_TIMEOUT: Final = 10.0
"""Seconds the Hub has for a first answer."""


def fetch(repository: str, revision: str | None, files: Sequence[str] = ()) -> Path:
    """Return the folder of a snapshot, downloading what the cache lacks; a complete cache is not renewed.

    Args:
        repository: `org/name`.
        revision: commit, tag or branch; `None` for the newest, which the cache then keeps.
        files: exactly these files; none given means what a sentence-transformers model consists of, with
            its ONNX export only where there are no safetensors.

    Raises:
        NotFound: no such repository or revision, or the Hub cannot be reached and the cache lacks files.
        InvalidArgument: no such name can be, or a variable names a proxy or certificates that cannot be.
    """
    # Not at the top: it takes a third of a second, and a folder on disk does not need it.
    from httpx2 import HTTPError  # noqa: PLC0415
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    from embatch import network  # noqa: PLC0415

    def snapshot(patterns: Sequence[str], *, local: bool) -> Path:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(patterns), local_files_only=local
            )
        )

    def complete(folder: Path) -> bool:
        if files:
            return all((folder / file).is_file() for file in files)
        weights = (folder / name for name in (*_SAFETENSORS, *_ONNX))
        return all((folder / file).is_file() for file in ("config.json", "tokenizer.json")) and any(
            file.is_file() for file in weights
        )

    try:
        try:
            cached = snapshot(files or _DESCRIPTION, local=True)
            if complete(cached):
                return cached
        except LocalEntryNotFoundError:
            pass
        # One plain question first: without a way to the Hub, listing files would try for 23 seconds.
        HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT)
        folder = snapshot(files or (*_DESCRIPTION, *_SAFETENSORS), local=False)
        if not complete(folder) and not files:
            folder = snapshot((*_DESCRIPTION, *_ONNX), local=False)
    except HFValidationError as error:
        raise InvalidArgument("a Hub name looks like org/name", field="model") from error
    except (HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OSError, *network.MALFORMED) as error:
        # A variable of the environment that is wrong is an error of its own.
        hint = network.hub().hint
        raise NotFound(f"the Hub gave no files of {repository}{hint} ({type(error).__name__})") from error
    return folder
