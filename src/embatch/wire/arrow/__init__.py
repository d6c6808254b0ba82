"""Our Arrow streams: requests on their way in, results on their way out."""

from __future__ import annotations

from typing import Final

MEDIA_TYPE: Final = "application/vnd.apache.arrow.stream"
