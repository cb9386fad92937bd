"""Filling lazy memory in the daemon's place: a real process behind a real userfaultfd, which does not sit still."""

from __future__ import annotations

import errno
import os
import select
import threading
import time

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import replay, uffd
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazymap import Range
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.uffd import PAGE
from tests.unit.prey import COUNT, PID, Memory, Prey, Run, page, whole


def test_all_of_it_with_what_the_daemon_had_done(prey: Prey) -> None:
    there = b"".join(page(index + 1) for index in range(100))
    assert uffd.Uffd(prey.fd).copy(prey.at(30), there[30 * PAGE :], 0, 70 * PAGE) == (70 * PAGE, 0)
    store = Memory(prey)
    run = Run(prey, store)
    filled = run()
    assert (filled.pages_copied, filled.pages_there, filled.pages_gone) == (COUNT - 70, 70, 0)
    assert run.filler.left() == 0 and run.lines == ["uffd: taken over"]
    assert sorted(store.dropped) == list(range(COUNT)), "nobody will ask for them again"
    run.close()
    assert prey("look", prey.start, COUNT) == whole()


def test_what_is_wanted_soon_is_there_before_anything_runs(prey: Prey) -> None:
    store = Memory(prey)
    run = Run(prey, store, skip=5)
    ranges = [(PID, prey.at(40), prey.at(150)), (PID, prey.at(200), prey.at(201)), (PID, 0, PAGE), (999, 0, PAGE)]
    run.filler.fill_soon(ranges)
    assert prey("look", prey.at(40), 110) == whole(40, 150) and prey("look", prey.at(200), 1) == [201]
    assert sum(pages for _first, pages in store.reads) == 111
    filled = run()
    assert (filled.pages_copied, filled.pages_there) == (COUNT - 5, 0)
    run.close()
    assert prey("look", prey.at(5), COUNT - 5) == whole(5)


def test_a_thread_that_waits_comes_first(prey: Prey) -> None:
    store = Memory(prey, n2=lambda: prey.begin("look", prey.at(COUNT - 1), 1))
    run = Run(prey, store)
    run()
    assert store.reads[2] == (COUNT - 1, 1)
    assert prey.answer() == [COUNT], "answered while the userfaultfd is open still"
    run.close()


def test_what_is_not_lazy_is_zero(prey: Prey) -> None:
    run = Run(prey, Memory(prey, n1=lambda: prey.begin("look", prey.at(3), 1)), skip=5)
    filled = run()
    assert prey.answer() == [0] and filled.pages_zero == 1
    assert prey("look", prey.at(5), 2) == [6, 7]
    run.close()


@pytest.mark.parametrize("index", [3, 300], ids=["not lazy", "lazy"])
def test_a_fault_that_the_daemon_had_read(prey: Prey, index: int) -> None:
    prey.ask("look", prey.at(index), 1)
    prey.event_pending()
    assert uffd.Uffd(prey.fd).events() == [uffd.Fault(prey.at(index))]

    def again() -> None:
        select.select([prey.fd, prey.sock.fileno()], [], [], 10.0)

    run = Run(prey, Memory(prey, n5=again), skip=5)
    run()
    assert prey.answer() == [index + 1 if index >= 5 else 0]
    run.close()


def test_moved_while_it_is_filled(prey: Prey) -> None:
    run = Run(prey, Memory(prey, n1=lambda: prey.begin("move", prey.at(100), 300 * PAGE)))
    filled = run()
    to = prey.answer()
    assert filled.pages_copied == COUNT and filled.pages_gone == 0
    assert prey("look", to, 300) == whole(100, 400) and prey("look", prey.start, 100) == whole(0, 100)
    assert prey("look", prey.at(400), COUNT - 400) == whole(400)
    run.close()


def test_given_up_while_it_is_filled(prey: Prey) -> None:
    """MADV_DONTNEED: zeros from then on. The area stays whole, so that mremap(2) can move it, which it cannot after
    criu has taken the part out of the userfaultfd."""
    moved: list[int] = []

    def move() -> None:
        assert prey.answer() == 0
        prey.begin("move", prey.start, COUNT * PAGE)

    def look() -> None:
        moved.append(prey.answer())
        prey.begin("look", moved[0] + 10 * PAGE, 1)

    store = Memory(prey, n2=lambda: prey.begin("madvise", prey.at(10), 200 * PAGE, 4), n4=move, n6=look)
    run = Run(prey, store)
    filled = run()
    assert prey.answer() == [0] and filled.pages_zero == 1
    # The first chunk lay there in part when it was given up: 54 pages of it were filled and have gone again.
    assert filled.pages_copied == COUNT - 200 + 54
    run.close()
    assert prey("look", moved[0], COUNT) == whole(0, 10) + [0] * 200 + whole(210)


def test_unmapped_while_it_is_filled(prey: Prey) -> None:
    run = Run(prey, Memory(prey, n2=lambda: prey.begin("munmap", prey.at(200), 100 * PAGE)))
    filled = run()
    assert prey.answer() == 0
    assert (filled.pages_copied, filled.pages_gone) == (COUNT - 100, 0)
    run.close()
    assert prey("look", prey.at(300), COUNT - 300) == whole(300)


def test_areas_that_no_event_tells_of(prey: Prey) -> None:
    """mprotect(2) makes borders, and UFFDIO_COPY does nothing that reaches over one."""
    for index in (3, 70, 71, 100):
        assert prey("mprotect", prey.at(index), 5 * PAGE, 1) == 0
    filled = Run(prey, Memory(prey))()
    assert (filled.pages_copied, filled.pages_gone) == (COUNT, 0)
    assert prey("look", prey.start, COUNT) == whole()


def test_pages_that_no_area_has(prey: Prey) -> None:
    """What a log without the unmapping leaves: they are passed over."""
    prey.ask("munmap", prey.at(60), 10 * PAGE)
    prey.event_pending()
    assert uffd.Uffd(prey.fd).events() == [uffd.Unmap(prey.at(60), prey.at(70))]
    assert prey.answer() == 0
    filled = Run(prey, Memory(prey))()
    assert (filled.pages_copied, filled.pages_gone) == (COUNT - 10, 10)


def test_forked_while_it_is_filled(prey: Prey) -> None:
    """The child has what its parent had then, and its own missing pages; both are filled."""
    store = Memory(prey, n3=lambda: prey.begin("fork"))
    run = Run(prey, store)
    filled = run()
    child = prey.forked()
    assert filled.forks == 1 and list(run.forked.items()) == list(run.filler.fds.items())[1:]
    assert filled.pages_copied == COUNT + COUNT - 128 and filled.pages_there == 0
    assert store.dropped == list(range(128)), "what is wanted twice is not given back"
    assert prey("look", prey.start, COUNT) == whole() == child("look", prey.start, COUNT)
    run.close()


def test_ended_while_it_is_filled(prey: Prey) -> None:
    def end() -> None:
        prey.process.kill()
        prey.process.wait()

    filled = Run(prey, Memory(prey, n2=end))()
    assert (filled.pages_copied, filled.pages_gone) == (64, COUNT - 64)


def test_taken_over_from_a_filler(prey: Prey) -> None:
    """Its journal is all that the next one has to know, forks included."""

    def lost() -> None:
        raise OSError(errno.EIO, "the store is gone")

    store = Memory(
        prey,
        n1=lambda: prey.begin("move", prey.at(100), 300 * PAGE),
        n3=lambda: prey.begin("madvise", prey.at(50), 40 * PAGE, 4),
        n5=lambda: prey.begin("fork"),
        n8=lost,
    )
    first = Run(prey, store)
    with pytest.raises(OSError, match="the store is gone"):
        first()
    to = prey.answer()
    assert prey.answer() == 0
    child = prey.forked()
    log = "".join(line + "\n" for line in first.lines)
    second = Run(prey, Memory(prey), log, fds=first.filler.fds)
    assert second.filler.left() >= first.filler.left() > 0
    second()
    for far in (prey, child):
        assert far("look", to, 300) == whole(100, 400)
        assert far("look", prey.at(0), 50) == whole(0, 50) and far("look", prey.at(90), 10) == whole(90, 100)
    second.close()
    for far in (prey, child):
        assert far("look", prey.at(50), 40) == [0] * 40


def test_the_same_filler_goes_on_after_an_error(prey: Prey) -> None:
    def lost() -> None:
        raise OSError(errno.EIO, "the store is gone")

    run = Run(prey, Memory(prey, n4=lost))
    with pytest.raises(OSError, match="gone"):
        run()
    assert run().pages_copied == COUNT
    run.close()


def test_pages_that_have_yet_to_come(prey: Prey) -> None:
    """Nothing blocks: what a thread waits for is asked for, once, and filled as soon as it is here."""

    class Remote(Memory):
        def __init__(self) -> None:
            super().__init__(prey)
            self.arrivals, self.bell = os.pipe()
            os.set_blocking(self.arrivals, False)
            self.here: set[int] = set(range(10))
            self.asked: list[int] = []

        def there(self, pid: int, vaddr: int, pages: int, urgent: bool = False) -> int:
            first = (vaddr - prey.start) // PAGE
            found = next((count for count in range(pages) if first + count not in self.here), pages)
            if urgent and not found:
                self.asked.append(first)
            return found

        def come(self, *pages: int) -> None:
            self.here.update(pages)
            os.write(self.bell, b"x")

    store = Remote()
    run = Run(prey, store)
    thread = threading.Thread(target=run)
    prey.ask("look", prey.at(300), 1)
    thread.start()
    while not store.asked:
        time.sleep(0.001)
    store.come(20)
    assert prey.answer_within(0.1) is None
    store.come(300)
    assert prey.answer() == [301]
    assert prey("look", prey.at(20), 1) == [21]
    assert prey("move", prey.at(100), PAGE)
    store.come(*range(COUNT))
    thread.join(10)
    assert not thread.is_alive() and store.asked == [300] and store.reads[0] == (0, 10)
    assert sorted(store.dropped) == list(range(COUNT))
    run.close()


def test_what_an_earlier_guard_had_filled_and_given_back(prey: Prey) -> None:
    store = Memory(prey)
    store.dropped = list(range(40, 140))
    uffd.Uffd(prey.fd).copy(prey.at(40), b"".join(page(index + 1) for index in range(40, 140)), 0, 100 * PAGE)
    filled = Run(prey, store)()
    assert (filled.pages_copied, filled.pages_there) == (COUNT - 100, 0)
    assert prey("look", prey.start, COUNT) == whole()


@pytest.mark.parametrize(("seed", "threads"), [(1, 1), (2, 1), (3, 4), (4, 4)])
def test_a_process_that_does_not_sit_still(prey: Prey, seed: int, threads: int) -> None:
    """It moves, drops, writes, protects and forks its memory at random, and knows what every page has to hold."""

    class Slow(Memory):
        def there(self, pid: int, vaddr: int, pages: int, urgent: bool = False) -> int:
            if pages > 1:
                select.select([prey.fd], [], [], 0.003)
            return 1

    prey.ask("wild", seed, 200 // threads, threads)
    run = Run(prey, Slow(prey))
    run()
    assert len(run.lines) > 1, "it was filled before anything happened"
    assert run.filler.complete(), run.filler.counts()
    run.close()
    assert prey.answer() == 200


def test_replay_follows_the_log_of_criu() -> None:
    """Lengths of REMAP and uffd_copy are decimal, all else is hexadecimal (criu/uffd.c)."""
    base, text = 0x7F0000000000, ""
    for line in [
        "Received PID: 12, uffd: 7",
        "12-7: Found 1 pages to be handled by UFFD",
        "Received PID: 13, uffd: 8",
        f"12-7: REMAP: {base + 4 * PAGE:x} -> {base + 100 * PAGE:x} ({2 * PAGE})",
        f"12-7: uffd_copy: 0x{base + 2 * PAGE:x}/{PAGE}",
        "12-7: FORK: child with ufd=9",
        f"12-9: REMOVE: {base + 8 * PAGE:x}({PAGE:x})",
        f"12-7: UNMAP: {base:x}({2 * PAGE:x})",
        "13-8: EXIT",
        "13--8: UFFD transferred pages: (3/9)",
        "12-7: FORK: child with ufd=8",
        "12-9: EXIT",
    ]:
        text += f"(00.012345) uffd: {line}\n"
    wiped = Range(base + 20 * PAGE, base + 21 * PAGE, wiped=True)
    found = replay.Replay(text, lambda _pid: [Range(base, base + 10 * PAGE), wiped])

    def pages(key: str) -> list[tuple[int, ...]]:
        return [tuple((value - base) // PAGE for value in piece) for piece in found.pieces[key].pieces]

    assert pages("12-7") == [(3, 4, 3), (6, 10, 6), (20, 21, 20), (100, 102, 4)]
    assert pages("12-8") == [(3, 4, 3), (6, 10, 6), (100, 102, 4)], "MADV_WIPEONFORK: nothing of it for the child"
    assert sorted(found.pieces) == ["12-7", "12-8"]


@pytest.mark.parametrize(
    ("after", "left"),
    [
        ("", [1, 2, 3]),  # killed before it had filled them, maybe
        ("uffd: 12-7: copy: mcopy_rc:-17, errno:17\n", [1, 2, 3]),
        (f"uffd: 12-7: copy: mcopy_rc:{PAGE}, errno:11\n", [2, 3]),
        ("Error (criu/uffd.c:853): uffd: 12-7: copy: mcopy_rc:-12: Cannot allocate memory\n", [1, 2, 3]),
        ("page-server: half a li", [1, 2, 3]),
        ("page-server: anything else\n", [3]),
        (f"uffd: 12-7: uffd_copy: 0x{3 * PAGE:x}/{PAGE}\n", [3]),
        ("uffd: taken over\n", [1, 2, 3]),
    ],
)
def test_replay_knows_what_the_daemon_has_filled(after: str, left: list[int]) -> None:
    text = f"(00.1) uffd: Received PID: 12, uffd: 7\n(00.2) uffd: 12-7: uffd_copy: 0x{PAGE:x}/{2 * PAGE}\n{after}"
    pieces = replay.Replay(text, lambda _pid: [Range(PAGE, 4 * PAGE)]).pieces["12-7"].pieces
    assert [index for index in range(10) if pieces.find(index * PAGE) is not None] == left


def test_replay_needs_the_log_from_its_beginning() -> None:
    with pytest.raises(ValueError, match="12-7: EXIT"):
        replay.Replay("(00.1) uffd: 12-7: EXIT\n", lambda _pid: [])


def test_half_a_line_is_no_line() -> None:
    text = f"(00.1) uffd: Received PID: 12, uffd: 7\n(00.2) uffd: 12-7: UNMAP: {PAGE:x}({PAGE:x}"
    assert list(replay.Replay(text, lambda _pid: [Range(PAGE, 2 * PAGE)]).pieces["12-7"].pieces) == [
        (PAGE, 2 * PAGE, PAGE)
    ]


def test_descriptors_of_a_process(prey: Prey) -> None:
    numbers = uffd.listed(os.getpid())
    assert prey.fd in numbers
    copy = uffd.duplicate(os.getpid(), prey.fd)
    assert copy in uffd.listed(os.getpid()) and not os.get_inheritable(copy)
    os.close(copy)
    assert prey("mprotect", prey.start, PAGE, 3) == 0, "it has closed its own by now"
    assert uffd.listed(prey.process.pid) == [] and uffd.listed(2**22) == []


def test_what_the_daemon_had_announced_last_is_brought_again_by_every_successor() -> None:
    """It is logged before it is done. Two guards that took over, one after the other, must not take it for done."""
    announced = "uffd: Received PID: 7, uffd: 8\nuffd: 7-8: uffd_copy: 0x10000/8192\n"
    announced += "uffd: 7-8: uffd_copy: 0x12000/4096\n"
    taken = f"\n{replay.TAKEN_OVER}\n"
    for successors in (0, 1, 2):
        found = replay.Replay(announced + successors * taken, lambda _pid: [Range(0x10000, 0x20000)])
        assert [(piece.start, piece.end) for piece in found.pieces["7-8"].pieces] == [(0x12000, 0x20000)]
