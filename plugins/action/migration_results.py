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
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import result_writing, results

ARGUMENTS: dict[str, dict[str, Any]] = {
    "params": {"type": "dict", "required": True},
    "metrics": {"type": "dict", "required": True},
    "status": {"type": "str", "required": True, "choices": list(results.SUFFIXES)},
    "files": {"type": "dict", "default": {}},
}


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
            written = result_writing.write(params, metrics, given["status"], given["files"])
            if not result_writing.ours():
                Display().display(written["summary"])  # our own callback shows it last
            return {**result, **written}
        except OSError as error:
            raise AnsibleActionFail(f"The results could not be written below {params['results_dir']}: {error}. "
                                    "Give another folder with -e results_dir=.") from error
