"""The results folder of one run, written on the control node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible import constants

from . import report, results, summary

SCHEMA = Path(__file__).resolve().parents[3] / "schemas" / "metrics.schema.json"


def schema_errors(metrics: dict[str, Any]) -> list[str]:
    """Return where the metrics do not fit the schema, in words."""
    try:
        import jsonschema
    except ImportError:
        return ["the metrics were not checked: the Python package jsonschema is missing on the control node"]
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(metrics)]


def write(params: dict[str, Any], metrics: dict[str, Any], status: str, files: dict[str, Any]) -> dict[str, Any]:
    """Write the folder of one run and return what the action returns.

    :raises OSError: it cannot be written
    """
    status = results.ending(metrics, status)
    folder = results.make_folder(Path(params["results_dir"]), params["results_name"], params["run_id"], status)
    text = summary.render(metrics, str(folder))
    refused = results.write_files(folder, files)
    results.write_text(folder / "summary.txt", text + "\n")
    if params.get("save_metrics", True):
        results.write_text(folder / "metrics.json", results.as_json(metrics))
    errors = schema_errors(metrics)
    unshown = _report(folder, metrics, files)
    warnings = [f"metrics.json: {error}" for error in errors]
    warnings += [f"{name}: not written, the path leads out of the folder" for name in refused]
    warnings += [unshown] if unshown else []
    written = {"results_dir": str(folder), "summary": text, "schema_errors": errors}
    return {"changed": True, "warnings": warnings, **written}


def _report(folder: Path, metrics: dict[str, Any], files: dict[str, Any]) -> str:
    """Write report.html; return why it could not be written, or nothing.

    It shows what is in the other files already: whatever may be wrong with it, the results stand.
    """
    try:
        results.write_text(folder / report.NAME, report.html(metrics, files, str(folder)))
    except Exception as error:
        return f"{report.NAME} could not be written: {error!r}"
    return ""


def ours() -> bool:
    """Whether this collection's callback shows the output."""
    return str(constants.config.get_config_value("DEFAULT_STDOUT_CALLBACK")).endswith("criu_migrate")
