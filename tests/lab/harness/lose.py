"""Runs on a node as root: wipes a piece of a running workload's memory, as if a page had been lost in the move.

Arguments: workload, its working directory, its PID, its parameters as JSON. Which piece is found by its content, which
the workload's own functions make from the seed. Prints how many copies of it there were.
"""

from __future__ import annotations

import json
import sys
import zlib
from typing import Any

LENGTH = 64  # bytes
BLOCK = 1 << 24


def content(workload: str, params: dict[str, Any]) -> bytes:
    """What lies somewhere in the workload's data."""
    seed = zlib.crc32(workload.encode())
    if workload == "matmul":
        import matmul_standalone

        return bytes(matmul_standalone.factor_rows(seed, params["matrix_size"])[1, 8:].tobytes())
    if workload == "dataproc":
        import dataproc_standalone

        return dataproc_standalone.column(seed, 1, params["num_rows"])[1000:].tobytes()
    if workload == "memory":
        import memory_standalone

        return memory_standalone.content(workload, 0, 0)
    import ml_training_standalone

    ml_training_standalone.set_environment(1)
    import torch
    import training

    settings = training.Settings(params["model_size"], params["batch_size"], dataset_size=params["dataset_size"])
    if params.get("epochs"):  # its last weights, by training again
        run = training.Run(settings)
        while run.done < params["epochs"] * run.data.batches:
            run.step()
        return bytes(run.learner.network[0].weight.detach().numpy().tobytes())
    with torch.no_grad():
        inputs = next(training.Data.made(training.Data(settings)))[1]
    return bytes(inputs[500].numpy().tobytes())


def wipe(pid: int, piece: bytes) -> int:
    """Write zeros over every copy of a piece in the memory of a process; returns how many there were."""
    found = 0
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps, open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            if not rights.startswith("rw") or "[v" in line:  # vvar and vsyscall are the kernel's
                continue
            start, end = (int(text, 16) for text in span.split("-"))
            for address in range(start, end, BLOCK):
                memory.seek(address)
                block = memory.read(min(BLOCK, end - address))
                at = block.find(piece)
                while at >= 0:
                    memory.seek(address + at)
                    memory.write(bytes(len(piece)))
                    found += 1
                    at = block.find(piece, at + 1)
    return found


if __name__ == "__main__":
    name, folder, number, parameters = sys.argv[1:]
    sys.path.insert(0, folder)
    print(wipe(int(number), content(name, json.loads(parameters))[:LENGTH]))
