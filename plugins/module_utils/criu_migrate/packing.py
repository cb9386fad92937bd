"""A program for a node as one file: modules of this package, packed from wherever Ansible has put them."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import zipfile

_MAIN = "import sys\nfrom criu_migrate.{} import main\nsys.exit(main(sys.argv))\n"


@functools.cache
def build(names: tuple[str, ...], entry: str) -> bytes:
    """A zip that Python runs (PEP 441): modules by their names, and `entry`, the one whose main() is called.

    The same bytes for the same sources. Whoever calls this has imported the modules, so that they are on the node.
    """
    package = __name__.rsplit(".", 1)[0]
    sources = {"__main__.py": _MAIN.format(entry), "criu_migrate/__init__.py": ""}
    for name in names:
        sources[f"criu_migrate/{name}.py"] = inspect.getsource(importlib.import_module(f"{package}.{name}"))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in sorted(sources.items()):
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), text)
    return out.getvalue()
