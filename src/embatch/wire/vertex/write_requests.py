"""What the client sends to Vertex: jobs, the lines of their input, and what is answered at once.

Two families of models take two forms of everything. Gemini's take a key with each line and give it back; the
older text models take bare instances, and give the instance itself back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from embatch import jsontext

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embatch.batch import Request

KEY: Final = "key"
INSTANCE: Final = "instance"
LINES: Final = "application/jsonl"


def is_legacy(model: str) -> bool:
    """Whether a model is one of the older text models: all whose name does not begin with `gemini`."""
    return not model.rpartition("/")[2].startswith("gemini")


def _config(request: Request, names: tuple[str, str, str]) -> dict[str, Any]:
    """Return task type, title and dimensions under these names: files spell them otherwise than calls do."""
    values = (request.task_type and request.task_type.value, request.title, request.output_dimensionality)
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def keyed_line(request: Request) -> bytes:
    """Return the line of a request to one of Gemini's models, its key in it, and its end."""
    config = _config(request, ("task_type", "title", "output_dimensionality"))
    body: dict[str, Any] = {"content": _content(request.text)}
    return _line({KEY: request.key, "request": {**body, "embed_content_config": config} if config else body})


def kept_line(request: Request) -> bytes:
    """Return a line of ours: an instance beside the key that it cannot carry."""
    return _line({KEY: request.key, INSTANCE: instance(request)})


def is_kept(line: bytes) -> bool:
    """Whether a line is one of `kept_line`, and no line that a job reads."""
    return INSTANCE in jsontext.loads(line)


def instance_line(kept: bytes) -> bytes:
    """Return the line of the instance in a kept one, and its end."""
    return _line(jsontext.loads(kept)[INSTANCE])


def instance(request: Request, *, dimensions: bool = True) -> dict[str, Any]:
    """Return a request as the older models take it; `dimensions`: where they stand in it."""
    config = _config(request, ("task_type", "title", "outputDimensionality"))
    if not dimensions:
        config.pop("outputDimensionality", None)
    return {"content": jsontext.encodable_or_none(request.text), **config}


def _line(said: Mapping[str, Any]) -> bytes:
    return jsontext.encode(said) + b"\n"


def job_body(display_name: str, model: str, source: str, target: str, labels: Mapping[str, str]) -> bytes:
    """Return the body that creates a job.

    Args:
        display_name: what people will know it by.
        model: its resource.
        source: `gs://…` of the lines.
        target: `gs://…` below which the results go.
        labels: what it is found by.
    """
    return jsontext.encode(
        {
            "displayName": display_name,
            "model": model,
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [source]}},
            "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": target}},
            "labels": dict(labels),
        }
    )


def embed_body(request: Request) -> bytes:
    """Return the body that embeds one text by one of Gemini's models."""
    return jsontext.encode(_embed(request))


def embed_many_body(requests: Sequence[Request]) -> bytes:
    """Return the body that embeds some at once."""
    return jsontext.encode({"requests": [_embed(one) for one in requests]})


def _embed(request: Request) -> dict[str, Any]:
    config = _config(request, ("taskType", "title", "outputDimensionality"))
    body: dict[str, Any] = {"content": _content(request.text)}
    return {**body, "embedContentConfig": config} if config else body


def predict_body(requests: Sequence[Request]) -> bytes:
    """Return the body that embeds some texts of equal dimensions by the older path."""
    said: dict[str, Any] = {"instances": [instance(one, dimensions=False) for one in requests]}
    if (dimensions := requests[0].output_dimensionality) is not None:
        said["parameters"] = {"outputDimensionality": dimensions}
    return jsontext.encode(said)


def count_body(model: str, texts: Sequence[str]) -> bytes:
    """Return the body that counts tokens."""
    if is_legacy(model):
        instances = [{"content": jsontext.encodable_or_none(text)} for text in texts]
        return jsontext.encode({"instances": instances})
    return jsontext.encode({"contents": [{"role": "user", **_content(text)} for text in texts]})


def _content(text: str | None) -> dict[str, Any]:
    return {"parts": [{"text": jsontext.encodable_or_none(text)}]}
