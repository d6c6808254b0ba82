"""What building embatch does beside copying Python: compile the kernel, where that is possible.

With a library the wheel is one for all Python versions on this platform; without it is the pure wheel, which
does the same with OpenVINO. `EMBATCH_KERNEL=off` leaves it out, `require` fails where it cannot be compiled.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from types import ModuleType

KERNEL = "EMBATCH_KERNEL"
PLACE = "src/embatch/engine/amx"


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """The hook of wheels and of editable installations."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library; say so once where there is none."""
        wanted = os.environ.get(KERNEL, "auto")
        if wanted not in {"auto", "off", "require"}:
            raise ValueError(f"{KERNEL} must be auto, off or require")
        compile_ = _compile(Path(self.root))
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


def _compile(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernel_compile", root / "kernel" / "compile.py")
    assert spec is not None  # noqa: S101 - of a file there always is one
    assert spec.loader is not None  # noqa: S101 - as above
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
