"""A program that trains a neural network on synthetic data, and can prove that its losses are those of its seed.

Data, first weights and the order of the samples come from the seed, so the whole run does. For a proof the steps
around the last move and the newest ones are done again on a second network; each loss has to be the same to the bit.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import steps
from contract import Contract, argument_parser, say

CUDA_PLUGIN = ("/usr/lib/criu/cuda_plugin.so", "/usr/local/lib/criu/cuda_plugin.so")
NO_PLUGIN = (
    "There is a GPU here, but CRIU could not move what uses it: {} is missing. "
    "Remedy: install CRIU's CUDA plugin and NVIDIA's cuda-checkpoint on all nodes, or train with -e device=cpu."
)


def missing_for_cuda() -> str:
    """Return what CRIU would need to move a process that uses a GPU and does not find, "" for nothing."""
    if not any(Path(path).exists() for path in CUDA_PLUGIN):
        return CUDA_PLUGIN[0]
    return "" if shutil.which("cuda-checkpoint") else "cuda-checkpoint"


def choose_device(wanted: str, available: bool) -> str:
    """Return "cpu" or "cuda". `available`: whether torch has found a GPU.

    :raises ValueError: when there is no GPU, or one that CRIU could not deal with; the text says what to do
    """
    if wanted == "cpu" or (wanted == "auto" and not available):
        return "cpu"
    if not available:
        raise ValueError("device=cuda: torch finds no GPU here. Remedy: device=auto, or a torch that is built for it.")
    missing = missing_for_cuda()
    if missing:
        raise ValueError(NO_PLUGIN.format(missing))
    return "cuda"


def set_environment(threads: int) -> None:
    """Set what the libraries read when they are loaded. `threads`: 0 leaves their number to them."""
    # without it CUDA's libraries sum up in any order
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Threads that wait for one another by spinning do next to nothing where others use the processors too.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if threads:
        os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(threads)


def main() -> int:
    """Read the options, run, return the exit status."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--model_size", "--model-size", choices=("small", "medium", "large"), default="medium")
    parser.add_argument("--batch_size", "--batch-size", type=int, default=64, help="samples of a step")
    parser.add_argument("--epochs", type=int, default=0, help="passes over the data set, 0 for no limit")
    parser.add_argument("--learning_rate", "--learning-rate", type=float, default=0.001)
    parser.add_argument("--dataset_size", "--dataset-size", type=int, default=0, help="samples, 0 for the model's own")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train")
    parser.add_argument("--threads", type=int, default=1, help="threads, 0 for one a processor")
    parser.add_argument("--seed", default="ml_training", help="what everything is made from")
    options = parser.parse_args()
    if options.batch_size < 1 or options.dataset_size < 0 or options.threads < 0:
        parser.error("--batch_size has to be at least 1, --dataset_size and --threads at least 0")
    set_environment(options.threads)
    import training  # torch takes seconds to load: wrong options are refused first

    try:
        device = choose_device(options.device, training.gpu_available())
    except ValueError as error:
        say(str(error))
        return 1
    contract = Contract(options.working_dir, options.heartbeat_interval)
    settings = training.Settings(
        options.model_size, options.batch_size, options.learning_rate, options.dataset_size, device, options.seed
    )
    run = training.Run(settings)
    say(run.description())
    steps.run(contract, run, options.epochs * run.data.batches)
    return 0


if __name__ == "__main__":
    sys.exit(main())
