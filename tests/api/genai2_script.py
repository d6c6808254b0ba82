"""What google-genai 2.x does against a service, as a script for its own environment: prints what it found."""

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

from google import genai

warnings.simplefilter("ignore")
url, model = sys.argv[1:]
client = genai.Client(api_key="any", http_options={"base_url": url})


def finished(job):
    """Poll a job to its end."""
    deadline = time.monotonic() + 60
    while not job.done and time.monotonic() < deadline:
        job = client.batches.get(name=job.name)
    return job


found = {"version": genai.__version__}
vectors = client.models.embed_content(model=model, contents=["a", "b"], config={"output_dimensionality": 8})
found["embed"] = [len(one.values) for one in vectors.embeddings]
inline = finished(
    client.batches.create_embeddings(
        model=model, src={"inlined_requests": {"contents": ["a", "", "c"]}}, config={"display_name": "inline"}
    )
)
found["inline"] = [one.error is None for one in inline.dest.inlined_embed_content_responses]
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "in.jsonl"
    lines = [{"key": str(at), "request": {"content": {"parts": [{"text": f"t{at}"}]}}} for at in range(3)]
    path.write_text("\n".join(map(json.dumps, lines)))
    file = client.files.upload(file=str(path), config={"mime_type": "application/jsonl"})
found["file"] = file.size_bytes
batch = finished(client.batches.create_embeddings(model=model, src={"file_name": file.name}))
content = client.files.download(file=batch.dest.file_name)
found["keys"] = [json.loads(line)["key"] for line in content.splitlines()]
client.files.delete(name=file.name)
long = client.batches.create_embeddings(
    model=model, src={"inlined_requests": {"contents": [f"{at} " + "word " * 300 for at in range(1500)]}}
)
client.batches.cancel(name=long.name)
found["cancelled"] = str(client.batches.get(name=long.name).state)
found["listed"] = {inline.name, batch.name, long.name} <= {one.name for one in client.batches.list()}
client.batches.delete(name=long.name)
found["left"] = long.name in {one.name for one in client.batches.list()}
print(json.dumps(found))
