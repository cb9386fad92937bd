"""Is what ffmpeg wrote whole: every frame decodable, no gap in the timestamps, each frame the one that belongs there?

Needs the programs ffprobe and ffmpeg.
"""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

METHOD = "ffprobe decodes every frame and finds no gap; every encoded frame compared with a second encoding"
WRAP = 1 << 33  # MPEG-TS timestamps have 33 bits
SEGMENT_FORM = ["-flags:v", "+global_header", "-f", "mpegts"]  # as the segment muxer wants it
FILE_FORM = ["-movflags", "+frag_keyframe+empty_moov+default_base_moof", "-flush_packets", "1", "-f", "mp4"]
PERIOD = 13  # frames that are drawn, once; all others are cut from them
PLACES = (61, 59)  # columns and rows, two pixels apart, that a frame begins at: none is like another for 46787 frames
QUIET = ["-hide_banner", "-v", "error"]


@dataclass(frozen=True)
class Picture:
    """What is encoded: `width` and `height` in pixels, `fps` frames a second, `group` frames between key frames."""

    width: int
    height: int
    fps: int
    group: int

    def source(self, first: int = 0, frames: int = 0) -> str:
        """Return the pictures from number `first` on, all or `frames` of them, as libavfilter writes it.

        testsrc2 can only begin with its own first picture, which would make a proof take ever longer. So it draws a
        few, larger than wanted, and the number of a frame says from which of them it is cut, and where.
        """
        columns, rows = PLACES
        drawn = f"testsrc2=size={self.width + 2 * columns}x{self.height + 2 * rows}:rate={self.fps},format=yuv420p"
        again = f"loop=loop=-1:size={PERIOD}"
        if frames:
            begin = first % PERIOD
            again += f",trim=start_frame={begin}:end_frame={begin + frames},setpts=PTS-STARTPTS"
        place = f"x='2*mod(n+{first},{columns})':y='2*mod(n+{first},{rows})'"
        return f"{drawn},{again},crop={self.width}:{self.height}:{place}"


@dataclass
class Decoded:
    """Frames of one piece as ffprobe found them."""

    stamps: list[int] = field(default_factory=list)
    time_base: Fraction = Fraction(1)
    size: tuple[int, int] = (0, 0)
    errors: str = ""
    sums: list[str] = field(default_factory=list)  # checksums of the encoded frames


def parse(text: str, errors: str) -> Decoded:
    """Read ffprobe's csv: lines ``packet,SUM`` and ``frame,PTS``, one ``stream,WIDTH,HEIGHT,BASE``."""
    found = Decoded(errors=errors.strip())
    for line in text.splitlines():
        parts = line.split(",")
        if parts[0] == "frame":
            try:
                found.stamps.append(int(parts[1]))
            except ValueError:
                found.errors += f" a frame without a timestamp ({line})"
        elif parts[0] == "packet":
            found.sums.append(parts[1])
        elif parts[0] == "stream":
            found.size = (int(parts[1]), int(parts[2]))
            found.time_base = Fraction(parts[3])
    return found


def decode(url: str) -> Decoded:
    """Have ffprobe decode every frame of `url`."""
    shown = ["-show_entries", "packet=data_hash:frame=pts:stream=width,height,time_base", "-of", "csv"]
    shown += ["-show_data_hash", "CRC32"]
    command = ["ffprobe", *QUIET, "-err_detect", "explode", "-select_streams", "v", *shown, url]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    errors = done.stderr if done.returncode == 0 else f"ffprobe ended with {done.returncode}: {done.stderr}"
    return parse(done.stdout, errors)


def gaps(stamps: Sequence[int], step: Fraction) -> list[int]:
    """Return the places in `stamps` after which the next one is not one frame (`step` ticks) later."""
    steps = ((after - before) % WRAP for before, after in zip(stamps, stamps[1:]))
    return [place for place, found in enumerate(steps) if abs(found - step) >= 1]


def complete_bytes(path: str) -> int:
    """Return how many bytes of a fragmented MP4 are whole: up to the end of the last box that is complete."""
    size = os.path.getsize(path)
    end = whole = 0
    with open(path, "rb") as stream:
        while end + 8 <= size:
            stream.seek(end)
            length, kind = struct.unpack(">I4s", stream.read(8))
            if length == 1 and end + 16 <= size:
                (length,) = struct.unpack(">Q", stream.read(8))
            end += length
            if length < 8 or end > size:
                break
            if kind != b"moof":  # its frames come in the box after it
                whole = end
    return whole


def encoding(picture: Picture) -> list[str]:
    """Return the encoder's options. With a constant quantizer and a fixed number of threads x264 makes the same bytes
    of the same pictures on every CPU, and no group of frames depends on the ones before it.
    """
    group = str(picture.group)
    return ["-c:v", "libx264", "-preset", "ultrafast", "-qp", "28", "-threads", "4", "-pix_fmt", "yuv420p",
            "-g", group, "-keyint_min", group, "-sc_threshold", "0"]  # fmt: skip


def reference(picture: Picture, first: int, frames: int, form: Sequence[str]) -> tuple[list[str], str]:
    """Encode `frames` pictures from number `first` on, a key frame, once more; return their checksums and complaints.

    It begins up to two groups earlier, at an even one: x264 numbers its key frames 0, 1, 0, 1, and tells its name in
    the first frame that it ever makes.
    """
    begin = max(0, (first // picture.group - 1) // 2 * 2 * picture.group)
    source = picture.source(begin, first + frames - begin)
    encode = ["ffmpeg", "-nostdin", *QUIET, "-f", "lavfi", "-i", source, *encoding(picture), *form, "pipe:1"]
    probe = ["ffprobe", *QUIET, "-show_data_hash", "CRC32", "-show_entries", "packet=data_hash", "-of", "csv", "-"]
    with subprocess.Popen(encode, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as encoder:
        done = subprocess.run(probe, stdin=encoder.stdout, capture_output=True, text=True, check=False)
    sums = [line.split(",")[1] for line in done.stdout.splitlines() if line.startswith("packet,")]
    return sums[first - begin :], done.stderr.strip()


def compare(picture: Picture, pieces: Iterable[Decoded], first: int, form: Sequence[str]) -> dict[str, Any]:
    """Compare every byte of the encoded frames in `pieces`, from number `first` on, with a second encoding."""
    found = [checksum for piece in pieces for checksum in piece.sums]
    expected, complaints = reference(picture, first, len(found), form) if found else ([], "")
    differ = [first + place for place, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]]
    wrong = [f"frame {number} is not what belongs there" for number in differ[:3]]
    if len(found) != len(expected) or not found:
        wrong.append(f"{len(found)} frames found, {len(expected)} encoded again {complaints[:200]}")
    return {"compared": len(found), "different": len(differ), "wrong": wrong}


def judge(picture: Picture, pieces: Iterable[Decoded], groups: int = 0) -> tuple[int, list[str]]:
    """Return the number of frames in `pieces` and what is wrong; the first `groups` have one group of frames each."""
    wrong: list[str] = []
    frames = 0
    last: int | None = None
    for number, piece in enumerate(pieces):
        if piece.errors:
            wrong.append(f"piece {number}: {piece.errors[:200]}")
        if piece.size != (picture.width, picture.height):
            wrong.append(f"piece {number}: its size is {piece.size[0]}x{piece.size[1]}")
        if number < groups and len(piece.stamps) != picture.group:
            wrong.append(f"piece {number}: {len(piece.stamps)} frames where {picture.group} belong")
        step = 1 / (picture.fps * piece.time_base)
        stamps = piece.stamps if last is None else [last, *piece.stamps]
        wrong += [f"piece {number}: gap at its frame {place}" for place in gaps(stamps, step)]
        frames += len(piece.stamps)
        last = stamps[-1] if stamps else last
    return frames, wrong


def finished_segments(folder: str, ended: bool) -> list[Path]:
    """Return the segments that ffmpeg has finished: all but the newest while it runs."""
    found = sorted(Path(folder).glob("segment_*.ts"))
    return found if ended else found[:-1]


class Segments:
    """The segments of a live stream. One that was proven and did not change is not decoded again."""

    def __init__(self, picture: Picture, folder: str) -> None:
        """Look at the segments of `picture` in `folder`."""
        self.picture = picture
        self.folder = folder
        self._proven: dict[str, tuple[str, Decoded]] = {}

    def prove(self, ended: bool) -> dict[str, Any]:
        """Check all finished segments, also the last one where ffmpeg has ended."""
        paths = finished_segments(self.folder, ended)
        numbers = [int(path.stem.rpartition("_")[2]) for path in paths]
        seen = {path.name: self._look(path) for path in paths}
        # where ffmpeg has ended, the last one is as long as it had become
        frames, wrong = judge(self.picture, (piece for _digest, piece in seen.values()), len(paths) - ended)
        if numbers != list(range(numbers[0], numbers[0] + len(numbers)) if numbers else []):
            wrong.append("a segment is missing")
        first = (numbers[0] if numbers else 0) * self.picture.group
        known = 0
        while known < len(paths) - 1 and self._proven.get(paths[known].name) == seen[paths[known].name]:
            known += 1
        details = {"segments": len(paths), "proven_before": known, "frames": frames, "first_frame": first}
        pieces = [piece for _digest, piece in list(seen.values())[known:]]
        compared = compare(self.picture, pieces, first + known * self.picture.group, SEGMENT_FORM)
        details.update(compared, wrong=wrong + compared["wrong"])
        if not details["wrong"]:
            self._proven = seen
        return details

    def _look(self, path: Path) -> tuple[str, Decoded]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        known, piece = self._proven.get(path.name, ("", Decoded()))
        return digest, piece if known == digest else decode(str(path))


def prove_file(picture: Picture, path: str) -> dict[str, Any]:
    """Check what is whole of a fragmented MP4 that may still grow."""
    size = complete_bytes(path)
    url = f"subfile,,start,0,end,{size},,:{path}"
    piece = decode(url)
    frames, wrong = judge(picture, [piece])
    compared = compare(picture, [piece], 0, FILE_FORM)
    details = {"bytes": size, "frames": frames, "first_frame": 0, **compared}
    return {**details, "wrong": wrong + compared["wrong"]}
