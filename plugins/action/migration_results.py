"""Write the results of a run and return its summary."""

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_results
short_description: Write the results of a migration and return its summary
description:
  - Makes C(results/WORKLOAD_TIMESTAMP/) on the control node, private to the user, with C(metrics.json),
    C(summary.txt), C(report.html) and the files of both nodes. The name ends in C(_failed) or C(_exception) where it
    so ended, C(_failed) also where the process moved and its proof failed or did not come.
  - Metrics that do not fit C(schemas/metrics.schema.json) are written all the same; a warning says what is wrong.
  - Runs on the control node. Writes nothing in check mode.
options:
  params:
    description: The fact C(migration), as the action C(migration_parameters) returned it.
    type: dict
    required: true
  metrics:
    description: What C(metrics.json) will hold.
    type: dict
    required: true
  status:
    description: How the run ended.
    type: str
    choices: [migrated, rolled_back, failed, exception]
    required: true
  files:
    description: Text of further files by their path below the folder, like C(source/criu-dump.log).
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Write the results
  migration_results:
    params: "{{ migration }}"
    metrics: "{{ metrics }}"
    status: "{{ metrics.status }}"
    files:
      source/criu-dump.log: "{{ collected.logs['criu-dump.log'] }}"
"""

RETURN = r"""
results_dir:
  description: The folder that was made.
  returned: success
  type: str
summary:
  description: The console summary, several lines.
  returned: success
  type: str
schema_errors:
  description: Where the metrics do not fit the schema.
  returned: success
  type: list
"""

import json
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import report, results, summary

SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "metrics.schema.json"
ARGUMENTS: dict[str, dict[str, Any]] = {
    "params": {"type": "dict", "required": True},
    "metrics": {"type": "dict", "required": True},
    "status": {"type": "str", "required": True, "choices": list(results.SUFFIXES)},
    "files": {"type": "dict", "default": {}},
}


def schema_errors(metrics: dict[str, Any]) -> list[str]:
    """Return where the metrics do not fit the schema, in words."""
    try:
        import jsonschema
    except ImportError:
        return ["the metrics were not checked: the Python package jsonschema is missing on the control node"]
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(metrics)]


class ActionModule(ActionBase):
    """Files on the control node, without a connection."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write everything and return the summary."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(ARGUMENTS)
        params, metrics = given["params"], json.loads(json.dumps(given["metrics"]))
        if self._task.check_mode:
            return {**result, "changed": False, "skipped": True}
        try:
            return {**result, **self._write(params, metrics, given)}
        except OSError as error:
            raise AnsibleActionFail(f"The results could not be written below {params['results_dir']}: {error}. "
                                    "Give another folder with -e results_dir=.") from error

    def _write(
        self, params: dict[str, Any], metrics: dict[str, Any], given: dict[str, Any]
    ) -> dict[str, Any]:
        parent = Path(params["results_dir"])
        status = results.ending(metrics, given["status"])
        folder = results.make_folder(parent, params["results_name"], params["run_id"], status)
        text = summary.render(metrics, str(folder))
        refused = results.write_files(folder, given["files"])
        results.write_text(folder / "summary.txt", text + "\n")
        if params.get("save_metrics", True):
            results.write_text(folder / "metrics.json", results.as_json(metrics))
        errors = schema_errors(metrics)
        unshown = self._report(folder, metrics, given["files"])
        warnings = [f"metrics.json: {error}" for error in errors]
        warnings += [f"{name}: not written, the path leads out of the folder" for name in refused]
        warnings += [unshown] if unshown else []
        if not str(constants.config.get_config_value("DEFAULT_STDOUT_CALLBACK")).endswith("criu_migrate"):
            Display().display(text)  # our own callback shows it last
        written = {"results_dir": str(folder), "summary": text, "schema_errors": errors}
        return {"changed": True, "warnings": warnings, **written}

    @staticmethod
    def _report(folder: Path, metrics: dict[str, Any], files: dict[str, Any]) -> str:
        """Write report.html; return why it could not be written, or nothing.

        It shows what is in the other files already: whatever may be wrong with it, the results stand.
        """
        try:
            results.write_text(folder / report.NAME, report.html(metrics, files, str(folder)))
        except Exception as error:
            return f"{report.NAME} could not be written: {error!r}"
        return ""
