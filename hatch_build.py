"""What building embatch does beside copying Python: compile the kernel, where that is possible.

With a library the wheel is one for all Python versions on this platform; without it is the pure wheel, which
does the same with OpenVINO. `EMBATCH_KERNEL=off` leaves it out, `require` fails where it cannot be compiled.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNEL = "EMBATCH_KERNEL"
PLACE = "src/embatch/engine/amx"


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """The hook of wheels and of editable installations."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library; say so once where there is none."""
        wanted = os.environ.get(KERNEL, "auto")
        if wanted not in {"auto", "off", "require"}:
            raise ValueError(f"{KERNEL} must be auto, off or require")
        compile_ = SimpleNamespace(**runpy.run_path(str(Path(self.root, "kernel", "compile.py"))))
        library = Path(self.root, PLACE, compile_.LIBRARY)
        try:
            compile_.native(library, wanted=wanted != "off")
            tag = compile_.wheel_tag(library)
        except compile_.NotCompiled as problem:
            if wanted == "require":
                raise
            if version == "editable":  # what is imported is this folder
                library.unlink(missing_ok=True)
            self.app.display_warning(f"embatch is built without its own kernel, OpenVINO serves: {problem}")
            return
        build_data["artifacts"].append(f"{PLACE}/{compile_.LIBRARY}")
        if version != "editable":
            build_data["pure_python"] = False
            build_data["tag"] = tag
