"""Drives a real ffmpeg, its child, that encodes testsrc2 to H.264, and can prove that what was written is whole.

Needs the programs ffmpeg and ffprobe (Debian: ffmpeg).
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from contract import Contract, argument_parser, say
from video_proof import (
    FILE_FORM,
    METHOD,
    Picture,
    Segments,
    complete_bytes,
    encoding,
    finished_segments,
    prove_file,
)

NAMES = {"720p": (1280, 720), "1080p": (1920, 1080), "4k": (3840, 2160)}
GROUP_SECONDS = 2  # between key frames: a segment, or a fragment of the MP4
STOP_LIMIT = 20.0  # seconds in which ffmpeg has to finish its file
RECORDING = "recording.mp4"


class Refused(Exception):
    """The workload cannot run here; the text says why and what to do."""


class Ended(Exception):
    """Somebody asked the program to end by a signal."""


def size_of(text: str) -> tuple[int, int]:
    """Return width and height in pixels of ``1280x720`` or of a name as ``720p``.

    :raises ValueError: where it is neither, or nothing that can be encoded
    """
    named = NAMES.get(text.lower())
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if named is None and match is None:
        raise ValueError(f"resolution {text!r}: give WIDTHxHEIGHT, for instance 1280x720, or 720p, 1080p, 4K")
    width, height = named or (int(match[1]), int(match[2]))  # type: ignore[index]
    if width % 2 or height % 2 or not (64 <= width <= 7680 and 64 <= height <= 4320):
        raise ValueError(f"resolution {text!r}: even numbers from 64x64 to 7680x4320 can be encoded")
    return width, height


def command(program: str, picture: Picture, folder: str, seconds: int | None) -> list[str]:
    """Return the ffmpeg to run: segments where `seconds` is None, otherwise a recording of that length, 0 endless.

    The MP4 is fragmented. A plain one gets its index when it is closed, so that nothing could be checked, and all
    would be lost if the node died, before the recording is over; and a proof must not end what it looks at.
    """
    options = [program, "-nostdin", "-hide_banner", "-nostats", "-loglevel", "warning", "-y"]
    options += ["-progress", "pipe:1", "-stats_period", "0.01"]
    options += ["-re", "-f", "lavfi", "-i", picture.source()]
    options += encoding(picture)
    if seconds is None:
        options += ["-f", "segment", "-segment_time", str(GROUP_SECONDS), "-segment_format", "mpegts"]
        return [*options, f"{folder}/segment_%06d.ts"]
    limit = ["-t", str(seconds)] if seconds else []
    return [*options, *limit, *FILE_FORM, f"{folder}/{RECORDING}"]


class Encoder:
    """A running ffmpeg. A thread takes its progress all the time, also during a proof: the pipe must not fill up."""

    def __init__(self, contract: Contract, picture: Picture, seconds: int | None) -> None:
        """Start it; each further frame is a unit of service.

        :raises Refused: where ffmpeg is missing
        """
        program = shutil.which("ffmpeg")
        if program is None or shutil.which("ffprobe") is None:
            raise Refused("ffmpeg or ffprobe is not installed on this node; install the package ffmpeg")
        self.frames = 0
        self.complete = False  # it said so itself
        self._contract = contract
        line = command(program, picture, contract.working_dir, seconds)
        self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        for line in self.process.stdout or ():
            key, _, value = line.partition("=")
            if key == "frame" and int(value) > self.frames:
                self.frames = int(value)
                self._contract.beat()
            elif line.strip() == "progress=end":
                self.complete = True

    def ended(self) -> bool:
        """Return whether the recording has come to its end.

        :raises Refused: where ffmpeg died
        """
        status = self.process.poll()
        if status is None:
            return False
        self._thread.join()
        if status != 0 or not self.complete:
            raise Refused(f"ffmpeg ended with status {status}; its own words are in output.log")
        return True

    def stop(self) -> None:
        """Let ffmpeg finish its file and wait for it."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Studio:
    """An encoder and what it has written."""

    def __init__(self, contract: Contract, picture: Picture, options: Any) -> None:
        """Start the encoder in the mode that `options` ask for."""
        self.contract = contract
        self.picture = picture
        self.live: bool = options.video_mode == "live"
        self.keep: int = options.keep
        self.seconds: int = options.duration
        self.path = contract.path(RECORDING)
        self.segments = Segments(picture, contract.working_dir)
        self.encoder = Encoder(contract, picture, None if self.live else self.seconds)

    def begun(self) -> bool:
        """Return whether something is finished that a proof could look at."""
        if self.live:
            return bool(finished_segments(self.contract.working_dir, False))
        return Path(self.path).exists() and complete_bytes(self.path) > 65536

    def prune(self) -> None:
        """Remove the oldest segments where there are more than are kept: a live stream has no end, a disk has."""
        if self.live:
            for path in finished_segments(self.contract.working_dir, False)[: -self.keep]:
                path.unlink()

    def prove(self, token: str) -> None:
        """Check what is on disk and answer `token`."""
        started = time.monotonic()
        ended = self.encoder.ended()
        encoded = self.encoder.frames
        details = self.segments.prove(ended) if self.live else prove_file(self.picture, self.path)
        there = details["first_frame"] + details["frames"]
        # the open group is not finished, and the muxer writes one out when it has seen the next
        least = encoded if ended else encoded - 3 * self.picture.group
        if there < least:
            details["wrong"].append(f"{encoded} frames were encoded, {there} are there")
        if ended and self.seconds and not self.live and there != self.seconds * self.picture.fps:
            details["wrong"].append(f"a recording of {self.seconds} s has {there} frames")
        verified = not details["wrong"]
        details.update(encoded=encoded, ended=ended, ffmpeg_pid=self.encoder.process.pid,
                       wrong=details["wrong"][:10], seconds=round(time.monotonic() - started, 3))  # fmt: skip
        self.contract.answer(token, verified, METHOD, details)
        say(f"verified {verified}: {details}")


def serve(studio: Studio) -> None:
    """Look after the encoder until asked to end; a finished recording stays, and can be proven."""
    contract = studio.contract
    ready = False
    next_line = time.monotonic()
    while not contract.ended():
        ended = studio.encoder.ended()
        if not ready and (ended or studio.begun()):
            contract.ready()
            ready = True
        token = contract.requested_proof()
        if token is not None:
            studio.prove(token)
        if ended:
            contract.beat()  # what is left to do is to answer
        now = time.monotonic()
        if now >= next_line:
            next_line = now + 1.0
            studio.prune()
            say(f"frames {studio.encoder.frames}{', complete' if ended else ''}")
        time.sleep(0.005)


def run(options: Any) -> None:
    """Start ffmpeg, serve, and let it finish its file."""
    width, height = options.resolution
    picture = Picture(width, height, options.fps, options.fps * GROUP_SECONDS)
    contract = Contract(options.working_dir, options.heartbeat_interval)
    studio = Studio(contract, picture, options)
    say(f"ffmpeg {studio.encoder.process.pid}: {picture.source()}, {options.video_mode}")
    try:
        serve(studio)
        say("asked to end")
    finally:
        studio.encoder.stop()


def end_by_signal(*_signal: int | FrameType | None) -> None:
    """Turn a signal into an orderly end, so that no ffmpeg stays behind."""
    raise Ended


def main() -> int:
    """Read the options, run, return the exit status."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--resolution", default="1920x1080", help="WIDTHxHEIGHT, 720p, 1080p or 4K")
    parser.add_argument("--fps", type=int, default=30, help="frames a second")
    parser.add_argument("--duration", type=int, default=300, help="seconds of a file, 0: without end")
    parser.add_argument("--video_mode", "--video-mode", choices=("live", "file"), default="live", help="default live")
    parser.add_argument("--keep", type=int, default=30, help="live: segments of two seconds that are kept")
    options = parser.parse_args()
    try:
        options.resolution = size_of(options.resolution)
    except ValueError as error:
        parser.error(str(error))
    if options.fps < 1 or options.duration < 0 or options.keep < 2:
        parser.error("--fps has to be positive, --duration not negative, --keep at least 2")
    signal.signal(signal.SIGTERM, end_by_signal)
    try:
        run(options)
    except Refused as refusal:
        say(f"refused: {refusal}")
        return 1
    except Ended:
        say("ended by a signal or before it was ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
