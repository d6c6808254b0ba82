"""Model files from the Hugging Face Hub or its cache: configuration, tokenizer, weights, nothing else.

`HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_HOME` and `HF_TOKEN` mean what they mean to every Hub tool.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embatch.engine import folder as folders
from embatch.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


def fetch(
    repository: str,
    revision: str | None,
    files: Sequence[str] = (),
    *,
    exports: bool = True,
    on_bytes: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Return the folder of a snapshot, downloading what the cache lacks; a complete cache is not renewed.

    Args:
        repository: `org/name`.
        revision: commit, tag or branch; `None` for the newest, which the cache then keeps.
        files: exactly these files; none given means what a sentence-transformers model consists of, with
            its ONNX export only where there are no safetensors.
        exports: whether such an export does; without it a model that has no safetensors, or wants code of
            its own to be run, is refused before its weights are fetched.
        on_bytes: told of a download: bytes so far, and in all as far as that is known.

    Raises:
        NotFound: no such repository or revision, or the Hub cannot be reached and the cache lacks files.
        InvalidArgument: no such name can be, a variable names a proxy or certificates that cannot be, or
            the model is refused.
    """
    # Not at the top: it takes a third of a second, and a folder on disk does not need it.
    from httpx2 import HTTPError  # noqa: PLC0415
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    from embatch import network  # noqa: PLC0415

    def snapshot(patterns: Sequence[str], *, local: bool) -> Path:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=local,
                tqdm_class=_counting(on_bytes) if on_bytes is not None else None,
            )
        )

    def complete(folder: Path) -> bool:
        if files:
            return all((folder / file).is_file() for file in files)
        weights = (folder / name for name in (*_SAFETENSORS, *(_ONNX if exports else ())))
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
        about = HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT)
        if not exports and not files:
            _check_weights(repository, [file.rfilename for file in about.siblings or ()])
            folders.refuse_code(snapshot(_DESCRIPTION, local=False))
        folder = snapshot(files or (*_DESCRIPTION, *_SAFETENSORS), local=False)
        if exports and not files and not complete(folder):
            folder = snapshot((*_DESCRIPTION, *_ONNX), local=False)
    except HFValidationError as error:
        raise InvalidArgument("a Hub name looks like org/name", field="model") from error
    except (HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OSError, *network.MALFORMED) as error:
        # A variable of the environment that is wrong is an error of its own.
        hint = network.hub().hint
        raise NotFound(f"the Hub gave no files of {repository}{hint} ({type(error).__name__})") from error
    return folder


def _check_weights(repository: str, listed: Sequence[str]) -> None:
    """Refuse a repository without safetensors by the names of its files. Raises InvalidArgument."""
    if any(fnmatch(name, pattern) for name in listed for pattern in _SAFETENSORS):
        return
    raise InvalidArgument(
        f"{repository} has no model.safetensors on the Hub, and nothing else is taken from there: name a "
        "revision that has it, or convert its weights and name the folder",
        field="model",
    )


def _counting(on_bytes: Callable[[int, int | None], None]) -> type[Any]:
    """Return what the Hub's library takes for a progress bar: it draws nothing and tells of bytes."""
    from huggingface_hub.utils.tqdm import tqdm  # noqa: PLC0415  (as above)

    class Counting(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.of_bytes = options.get("unit") == "B"
            super().__init__(*args, **(options | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            """Count on, from whichever thread a file arrives in."""
            self.n += n or 0
            if self.of_bytes:
                on_bytes(int(self.n), int(self.total) if self.total else None)
            return None

    return Counting
