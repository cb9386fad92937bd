"""The training itself: data, network and optimizer made from a seed, and steps that can be done again to the bit.

On a CPU torch gives the same bits again for the same number of threads, which stays as it is while the process lives.
"""

from __future__ import annotations

import copy
import math
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import steps
import torch

# inputs, hidden layers, outputs, samples
MODELS: dict[str, tuple[int, list[int], int, int]] = {
    "small": (256, [512, 256, 128], 10, 10000),
    "medium": (512, [1024, 512, 256, 128], 100, 50000),
    "large": (1024, [2048, 1024, 512, 256, 128], 1000, 100000),
}
CHUNK = 1024  # samples that are made from the seed at once
KEEP_EVERY = 5.0  # seconds between two copies of the network: what a proof has to do again, about
AFTER_MOVE = 50  # steps that are done again after a move even if it takes longer than AGAIN_SECONDS
AGAIN_SECONDS = 30.0
WEIGHTS, ORDER, TEACHER = 1 << 40, 1 << 41, 1 << 42  # apart from the chunks' numbers


def gpu_available() -> bool:
    """Return whether torch can use a GPU here."""
    return bool(torch.cuda.is_available())


def chance(seed: int, number: int) -> torch.Generator:
    """Return a source of random numbers; on the CPU, so that it gives the same everywhere."""
    return torch.Generator().manual_seed((seed << 20) ^ number)


def checksum(tensors: Iterable[torch.Tensor], start: int = 0) -> int:
    """Return a checksum of all bytes."""
    for tensor in tensors:
        start = zlib.crc32(tensor.detach().cpu().contiguous().numpy(), start)
    return start


@dataclass(frozen=True)
class Settings:
    """What decides every loss: the parameters of the workload, and the seed."""

    model_size: str = "medium"
    batch_size: int = 64
    learning_rate: float = 0.001
    dataset_size: int = 0
    device: str = "cpu"
    seed: str = "ml_training"

    @property
    def number(self) -> int:
        """The seed as a number."""
        return zlib.crc32(self.seed.encode())

    @property
    def samples(self) -> int:
        """Samples of the data set."""
        return self.dataset_size or MODELS[self.model_size][3]


class Data:
    """Samples, each with the class that a random linear teacher gives it."""

    def __init__(self, settings: Settings) -> None:
        """Make all samples."""
        self.settings = settings
        self.inputs = torch.empty(settings.samples, MODELS[settings.model_size][0], device=settings.device)
        self.classes = torch.empty(settings.samples, dtype=torch.int64, device=settings.device)
        self.batches = math.ceil(settings.samples / settings.batch_size)
        self.epoch = -1
        self.order = torch.empty(0)
        for first, inputs, classes in self.made():
            self.inputs[first : first + CHUNK] = inputs
            self.classes[first : first + CHUNK] = classes

    def made(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield every CHUNK samples as the seed has them: number of the first, samples, classes."""
        seed, samples = self.settings.number, self.settings.samples
        width, _hidden, classes, _samples = MODELS[self.settings.model_size]
        teacher = torch.randn(width, classes, generator=chance(seed, TEACHER))
        for first in range(0, samples, CHUNK):
            inputs = torch.randn(min(CHUNK, samples - first), width, generator=chance(seed, first))
            yield first, inputs, (inputs @ teacher).argmax(1)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the samples and classes of a step."""
        epoch, number = divmod(step, self.batches)
        if epoch != self.epoch:
            order = torch.randperm(self.settings.samples, generator=chance(self.settings.number, ORDER + epoch))
            self.order, self.epoch = order.to(self.settings.device), epoch
        size = self.settings.batch_size
        chosen = self.order[number * size : (number + 1) * size]
        return self.inputs[chosen], self.classes[chosen]

    def again(self) -> Data:
        """Return the same samples, not copied, for another run over them with an order of its own."""
        other = copy.copy(self)
        other.epoch = -1
        return other

    def wrong(self, beat: Callable[[], None]) -> list[int]:
        """Return the first number of every CHUNK samples that are not what the seed says."""
        found = []
        for first, inputs, classes in self.made():
            there = self.inputs[first : first + CHUNK].cpu(), self.classes[first : first + CHUNK].cpu()
            if not torch.equal(there[0], inputs) or not torch.equal(there[1], classes):
                found.append(first)
            beat()
        return found


class Learner:
    """Network and optimizer."""

    def __init__(self, settings: Settings, data: Data) -> None:
        """Make the network with its first weights."""
        width, hidden, classes, _samples = MODELS[settings.model_size]
        sizes = [width, *hidden, classes]
        torch.manual_seed(settings.number ^ WEIGHTS)
        layers: list[torch.nn.Module] = []
        for inputs, outputs in zip(sizes, sizes[1:]):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        self.data = data
        self.network = torch.nn.Sequential(*layers[:-1]).to(settings.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)
        self.loss = torch.nn.CrossEntropyLoss()

    def train(self, step: int) -> float:
        """Do one step and return its loss."""
        inputs, classes = self.data.batch(step)
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.loss(self.network(inputs), classes)
        loss.backward()
        self.optimizer.step()
        return float(loss.item())

    def state(self) -> list[torch.Tensor]:
        """Return everything that the next step depends on, not copied."""
        found = [weights.detach() for weights in self.network.parameters()]
        for weights in self.network.parameters():
            of_optimizer = self.optimizer.state.get(weights, {})
            found += [of_optimizer[name] for name in sorted(of_optimizer)]
        return found

    def load(self, kept: Copy) -> None:
        """Take over what a copy holds."""
        if kept.step:  # the optimizer makes its part in its first step
            self.train(0)
        with torch.no_grad():
            for there, value in zip(self.state(), kept.tensors):
                there.copy_(value)


class Copy:
    """The network and the optimizer as they were after `step` steps."""

    def __init__(self, step: int, learner: Learner) -> None:
        """Copy them, and note what they were like before they were copied."""
        self.step = step
        self.checksum = checksum(learner.state())
        self.tensors = [tensor.clone() for tensor in learner.state()]

    def intact(self) -> bool:
        """Return whether it is what was copied."""
        return checksum(self.tensors) == self.checksum


class Again:
    """What came of doing steps again from a copy on."""

    def __init__(self, kept: Copy, run: Run, at_least: int, beat: Callable[[], None]) -> None:
        """Do steps from `kept` to now, or to `at_least` where that takes longer than AGAIN_SECONDS."""
        started = time.monotonic()
        learner = Learner(run.settings, run.data.again())
        learner.load(kept)
        self.first, self.wrong, step = kept.step, [], kept.step
        while step < run.done and (step < at_least or time.monotonic() - started < AGAIN_SECONDS):
            # bits are compared: a loss that is no number equals itself
            if array("d", [learner.train(step)]).tobytes() != run.losses[step : step + 1].tobytes():
                self.wrong.append(step)
            step += 1
            beat()
        self.last = step
        self.up_to_now = step == run.done
        self.same_state = not self.up_to_now or checksum(learner.state()) == checksum(run.learner.state())

    def right(self) -> bool:
        """Return whether everything was the same."""
        return not self.wrong and self.same_state

    def details(self) -> dict[str, Any]:
        """Say what was done again and what differed."""
        return {"from": self.first, "to": self.last, "wrong": self.wrong[:10], "same_state": self.same_state}


class Run:
    """The training that is moved."""

    def __init__(self, settings: Settings) -> None:
        """Make everything from the seed."""
        torch.use_deterministic_algorithms(True)
        self.settings = settings
        self.data = Data(settings)
        self.learner = Learner(settings, self.data)
        self.losses = array("d")
        self.losses_checksum = 0
        self.moves = steps.Moves()
        self.moved_at: int | None = None
        self.newest = Copy(0, self.learner)
        self.first_checksum = self.newest.checksum
        self.before_move: Copy | None = None
        self._kept = time.monotonic()

    @property
    def done(self) -> int:
        """How many steps have been done."""
        return len(self.losses)

    def description(self) -> str:
        """Say what is trained on what."""
        weights = sum(part.numel() for part in self.learner.network.parameters())
        return (
            f"{self.settings.model_size}: {weights} weights, {self.settings.samples} samples, "
            f"{self.settings.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )

    def step(self) -> None:
        """Train with one batch. The copy that a proof begins at must not be younger than the last move."""
        fresh = None
        if time.monotonic() - self._kept > KEEP_EVERY:
            fresh = Copy(self.done, self.learner)
        self.losses.append(self.learner.train(self.done))
        self.losses_checksum = zlib.crc32(self.losses[-1:].tobytes(), self.losses_checksum)
        if not self.look_for_move() and fresh is not None:
            self.newest, self._kept = fresh, time.monotonic()

    def look_for_move(self) -> bool:
        """Return whether there was a move, and keep what a proof of it begins at."""
        moved = self.moves.happened()
        if moved:
            self.before_move, self.moved_at = self.newest, self.done
        return moved

    def line(self) -> str:
        """Say how far it is; two runs that say the same have had the same losses."""
        epoch = (self.done - 1) // self.data.batches + 1
        return f"step {self.done}, epoch {epoch}: loss {self.losses[-1]:.6f}, all losses {self.losses_checksum:08x}"

    def prove(self, beat: Callable[[], None]) -> steps.Proof:
        """Check data, copies and losses, and do steps again: those around the last move, and the newest."""
        started = time.monotonic()
        self.look_for_move()
        wrong_samples = self.data.wrong(beat)
        whole = {
            "first_weights": checksum(Learner(self.settings, self.data.again()).state()) == self.first_checksum,
            "copies": all(kept.intact() for kept in (self.newest, self.before_move) if kept is not None),
            "losses": zlib.crc32(self.losses.tobytes()) == self.losses_checksum,
        }
        again = []
        if self.before_move is not None:
            again.append(Again(self.before_move, self, (self.moved_at or 0) + AFTER_MOVE, beat))
        if not again or not again[0].up_to_now:
            again.append(Again(self.newest, self, self.done, beat))
        details = {
            "steps": self.done,
            "losses_checksum": f"{self.losses_checksum:08x}",
            "moved_at": self.moved_at,
            "done_again": [part.details() for part in again],
            "whole": whole,
            "wrong_samples_from": wrong_samples[:10],
            "device": self.settings.device,
            "threads": torch.get_num_threads(),
            "seconds": round(time.monotonic() - started, 3),
        }
        verified = not wrong_samples and all(whole.values()) and all(part.right() for part in again)
        method = "every sample against its seed; steps since before the move done again, each loss the same to the bit"
        return steps.Proof(verified, method, details)
