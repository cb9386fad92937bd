"""What of the workloads jupyter and video needs neither a kernel nor ffmpeg."""

from __future__ import annotations

import struct
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import jupyter_cells
import jupyter_standalone
import pytest
import video_proof
import video_standalone
from jupyter_cells import MIX, OPENING, SLOTS, Notebook
from video_proof import Decoded, Picture

PICTURE = Picture(64, 48, 30, 60)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    """A notebook whose cells nobody computes."""
    monkeypatch.setattr(jupyter_cells, "model_of", lambda _cell, total=0: {"total": total + 1})
    return Notebook("seed", 4096)


def test_cells_are_the_same_for_a_seed(notebook: Notebook) -> None:
    again = Notebook("seed", 4096)
    other = Notebook("other", 4096)
    cells = [notebook.next_cell() for _ in range(50)]
    assert cells == [again.next_cell() for _ in range(50)]
    assert cells != [other.next_cell() for _ in range(50)]


def test_mix_is_the_tabled_one(notebook: Notebook) -> None:
    kinds = Counter(notebook.next_cell().kind for _ in range(4000))
    assert sum(MIX.values()) == 100
    assert all(abs(kinds[kind] / 40 - share) < 3 for kind, share in MIX.items())


def test_opening_has_every_kind_that_a_kernel_gets(notebook: Notebook) -> None:
    opening = [notebook.next_cell() for _ in OPENING]
    assert {cell.kind for cell in opening} == set(MIX) - {"markdown"}
    assert all(cell.source for cell in opening)


def test_names_are_used_again_and_markdown_has_no_source(notebook: Notebook) -> None:
    cells = [notebook.next_cell() for _ in range(2000)]
    names = Counter(cell.kind for cell in notebook.live.values())
    assert names == SLOTS
    assert all((cell.source == "") == (cell.kind == "markdown") for cell in cells)
    assert notebook.total == notebook.counts["computation"]


def test_model_is_what_a_session_computes() -> None:
    pytest.importorskip("numpy")
    notebook = Notebook("seed", 4096)
    session: dict[str, Any] = {}
    exec(jupyter_cells.FIRST, session)  # noqa: S102  our own text
    for cell in [notebook.next_cell() for _ in range(40)]:
        exec(cell.work, session)  # noqa: S102
    expected = dict(notebook.expected())
    assert expected == {name: session["checksum"](session[name]) for name in notebook.live}
    assert session["total"] == notebook.total
    session["data_0"][0, 0] += 1
    assert expected["data_0"] != session["checksum"](session["data_0"])


WHOLE = {"variables": 4, "wrong_variables": 0, "errors": [], "total": True, "history": True, "executed": 5,
         "executed_by_kernel": 5, "pictures": 1, "pictures_expected": 1}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"variables": 0}, {"wrong_variables": 1}, {"errors": ["tick"]}, {"total": False}, {"history": False},
     {"executed_by_kernel": 4}, {"pictures": 0}],
)  # fmt: skip
def test_jupyter_proof_fails_for_each_loss(change: dict[str, Any]) -> None:
    assert jupyter_standalone.is_whole(WHOLE)
    assert not jupyter_standalone.is_whole({**WHOLE, **change})


@pytest.mark.parametrize(
    ("text", "size"), [("1920x1080", (1920, 1080)), ("4K", (3840, 2160)), ("720p", (1280, 720)), ("64x64", (64, 64))]
)
def test_resolution(text: str, size: tuple[int, int]) -> None:
    assert video_standalone.size_of(text) == size


@pytest.mark.parametrize("text", ["", "1280", "1281x720", "32x32", "99999x100", "8k"])
def test_resolution_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match="resolution"):
        video_standalone.size_of(text)


def test_command_of_each_mode() -> None:
    live = video_standalone.command("ffmpeg", PICTURE, "/d", None)
    assert live[-1] == "/d/segment_%06d.ts" and "-t" not in live
    cut = "crop=64:48:x='2*mod(n+0,61)':y='2*mod(n+0,59)'"
    assert f"testsrc2=size=186x166:rate=30,format=yuv420p,loop=loop=-1:size=13,{cut}" in live
    file = video_standalone.command("ffmpeg", PICTURE, "/d", 300)
    assert file[-1] == "/d/recording.mp4" and file[file.index("-t") + 1] == "300"
    assert "-t" not in video_standalone.command("ffmpeg", PICTURE, "/d", 0)


def test_pictures_from_any_number_on_cost_the_same() -> None:
    late = PICTURE.source(1_000_020, 60)
    assert f"trim=start_frame={1_000_020 % 13}:end_frame={1_000_020 % 13 + 60}," in late
    assert "x='2*mod(n+1000020,61)':y='2*mod(n+1000020,59)'" in late


def piece(first: int, frames: int = 60, errors: str = "", size: tuple[int, int] = (64, 48)) -> Decoded:
    return Decoded([(126000 + 3000 * (first + n)) % video_proof.WRAP for n in range(frames)], Fraction(1, 90000), size,
                   errors)  # fmt: skip


def test_whole_pieces() -> None:
    assert video_proof.judge(PICTURE, [piece(0), piece(60), piece(120, 7)], 2) == (127, [])


def test_timestamps_may_wrap() -> None:
    first = video_proof.WRAP // 3000 - 100
    assert video_proof.judge(PICTURE, [piece(first), piece(first + 60)], 2) == (120, [])


@pytest.mark.parametrize(
    ("pieces", "word"),
    [
        ([piece(0), piece(61)], "gap"),
        ([piece(0), piece(59)], "gap"),
        ([piece(0), piece(60, 59)], "belong"),
        ([piece(0, errors="error while decoding MB 3 2")], "decoding"),
        ([piece(0, size=(64, 64))], "size"),
    ],
)
def test_damaged_pieces(pieces: list[Decoded], word: str) -> None:
    _frames, wrong = video_proof.judge(PICTURE, pieces, len(pieces))
    assert len(wrong) == 1 and word in wrong[0]


def test_uneven_rates_are_no_gap() -> None:
    stamps = [round(n * Fraction(90000, 7)) for n in range(50)]
    assert video_proof.gaps(stamps, Fraction(90000, 7)) == []


def test_ffprobe_is_read() -> None:
    text = "packet,CRC32:a\nframe,126000\npacket,CRC32:b\nframe,129000,\nstream,64,48,1/90000\n\n"
    found = video_proof.parse(text, " \n")
    assert found == Decoded([126000, 129000], Fraction(1, 90000), (64, 48), "", ["CRC32:a", "CRC32:b"])
    assert "without a timestamp" in video_proof.parse("frame,N/A\n", "").errors


def test_bytes_of_an_mp4_that_still_grows(tmp_path: Path) -> None:
    def box(kind: bytes, length: int) -> bytes:
        return struct.pack(">I4s", length + 8, kind) + bytes(length)

    path = tmp_path / "recording.mp4"
    head, moof, mdat = box(b"ftyp", 8) + box(b"moov", 40), box(b"moof", 30), box(b"mdat", 100)
    large = struct.pack(">I4sQ", 1, b"mdat", 116) + bytes(100)
    for content, whole in (
        (head + moof + mdat, len(head + moof + mdat)),
        (head + moof, len(head)),
        (head + moof + mdat + moof + mdat[:-1], len(head + moof + mdat)),
        (head + moof + large, len(head + moof + large)),
        (head + mdat[:5], len(head)),
        (b"", 0),
    ):
        path.write_bytes(content)
        assert video_proof.complete_bytes(str(path)) == whole


def test_newest_segment_counts_when_ffmpeg_has_ended(tmp_path: Path) -> None:
    for number in (11, 9, 10):
        (tmp_path / f"segment_{number:06d}.ts").touch()
    names = [path.name for path in video_proof.finished_segments(str(tmp_path), False)]
    assert names == ["segment_000009.ts", "segment_000010.ts"]
    assert len(video_proof.finished_segments(str(tmp_path), True)) == 3


def test_a_frame_that_differs_from_its_second_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_proof, "reference", lambda *_words: (["a", "b", "c"], ""))
    found = video_proof.compare(PICTURE, [Decoded(sums=["a"]), Decoded(sums=["x", "c"])], 60, [])
    assert found == {"compared": 3, "different": 1, "wrong": ["frame 61 is not what belongs there"]}
    assert video_proof.compare(PICTURE, [Decoded(sums=list("abc"))], 60, [])["wrong"] == []
    assert len(video_proof.compare(PICTURE, [Decoded(sums=list("ab"))], 60, [])["wrong"]) == 1
    assert len(video_proof.compare(PICTURE, [], 60, [])["wrong"]) == 1
