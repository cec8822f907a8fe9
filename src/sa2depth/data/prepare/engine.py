"""Carry out a plan in parallel; it can be resumed, and each file is either absent or complete."""

import contextlib
import errno
import os
import secrets
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from sa2depth.atomic import atomic_path
from sa2depth.data.prepare.archives import DAMAGED, damaged
from sa2depth.data.prepare.members import Reader
from sa2depth.data.prepare.plan import Plan, State, Step
from sa2depth.errors import DataError
from sa2depth.threads import usable_cores

Tick = Callable[[Step], None]

_PIECE = 1 << 20
_SMALLEST_SHARE = 32


@dataclass
class Outcome:
    """The result of carrying out a plan.

    Attributes:
        written: number of files made, extracted or copied.
        linked: number of links made.
        verified: number of files whose contents were compared and are right.
        repaired: number of files whose contents were wrong and were written again.
        failures: one message for each file that could not be read from its source.
    """

    written: int = 0
    linked: int = 0
    verified: int = 0
    repaired: int = 0
    failures: list[str] = field(default_factory=list)


def execute(
    plan: Plan, *, workers: int | None = None, verify: bool = False, tick: Tick | None = None
) -> Outcome:
    """Carry out a plan. It may be killed at any moment: a new plan continues the work.

    Args:
        plan: the steps.
        workers: threads; None: one for each usable core, at most 8.
        verify: also compare the contents of files that exist already: by CRC-32 with zip archives, byte by byte
            with other sources. Files that differ are written again. Links are not read.
        tick: called after each file, from any thread.

    Raises:
        DataError: the disk is full or may not be written, links are not possible, or another run uses the tree.
            A damaged member does not stop the run: it is named in ``Outcome.failures``.
    """
    plan.require_space()
    steps = work(plan, verify=verify)
    threads = workers or min(8, usable_cores())
    outcome = Outcome()
    if not steps and not plan.leftovers:
        return outcome
    with _writable(plan.root), _only_run(plan.root):
        for leftover in plan.leftovers:
            leftover.unlink(missing_ok=True)
        _run(_Worker(outcome, tick), _shares(steps, threads), threads)
    return outcome


def work(plan: Plan, *, verify: bool = False) -> list[Step]:
    """The steps that `execute` carries out."""
    return [step for step in plan.steps if step.state is not State.WHOLE or (verify and not step.link)]


def _run(worker: "_Worker", shares: Sequence[Sequence[Step]], threads: int) -> None:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
    futures = [pool.submit(worker, share) for share in shares]
    try:
        for future in as_completed(futures):
            future.result()
    finally:  # after an error or Ctrl-C, finish the files being written and skip the rest
        worker.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _shares(steps: Sequence[Step], threads: int) -> list[list[Step]]:
    """Divide steps among the workers: one source per share, in its order, so that each opens an archive once."""
    shares = []
    for _, group in groupby(steps, key=lambda step: id(step.source)):
        part = list(group)
        size = len(part) if part[0].source.sequential else max(_SMALLEST_SHARE, -(-len(part) // threads))
        shares += [part[start : start + size] for start in range(0, len(part), size)]
    return shares


class _Worker:
    """The work of one thread on its share; all threads use the same object."""

    def __init__(self, outcome: Outcome, tick: Tick | None) -> None:
        self.outcome = outcome
        self.tick = tick
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, share: Sequence[Step]) -> None:
        source = share[0].source
        with contextlib.ExitStack() as stack:
            try:
                reader = stack.enter_context(source.open())
            except DAMAGED as error:  # it could be read when the plan was made
                raise damaged(source.path, error) from error
            for step in share:
                if self.stop.is_set():
                    return
                self._one(reader, step)

    def _one(self, reader: Reader, step: Step) -> None:
        try:
            done = _do(reader, step)
        except DataError as error:
            with self._lock:
                self.outcome.failures.append(str(error))
            return
        with self._lock:
            setattr(self.outcome, done, getattr(self.outcome, done) + 1)
        if self.tick:
            self.tick(step)


def _do(reader: Reader, step: Step) -> str:
    """Carry out a step; return the counter of `Outcome` that it belongs to."""
    if step.link:
        _link(step)
        return "linked"
    if step.state is State.WHOLE:
        if _equal(reader, step):
            return "verified"
        _write(reader, step)
        return "repaired"
    _write(reader, step)
    return "written"


def _write(reader: Reader, step: Step) -> None:
    with atomic_path(step.target) as temporary, temporary.open("wb") as file:
        for piece in _content(reader, step):
            file.write(piece)


def _content(reader: Reader, step: Step) -> Iterator[bytes]:
    """The bytes of a member.

    Raises:
        DataError: they cannot be read, or their number differs from what the source states.
    """
    member, count = step.member, 0
    try:
        with reader.open(member) as stream:
            while piece := stream.read(_PIECE):
                count += len(piece)
                yield piece
    except DAMAGED as error:
        raise damaged(step.source.path, error, member.name) from error
    if member.mark is None and count != member.size:
        short = EOFError(f"{count:,} of {member.size:,} bytes")
        raise damaged(step.source.path, short, member.name)


def _equal(reader: Reader, step: Step) -> bool:
    """True if the target has the contents of the member."""
    member = step.member
    with step.target.open("rb") as file:
        if member.crc is not None:
            return _crc(iter(lambda: file.read(_PIECE), b"")) == member.crc
        same = all(file.read(len(piece)) == piece for piece in _content(reader, step))
        return same and not file.read(1)


def _crc(pieces: Iterator[bytes]) -> int:
    value = 0
    for piece in pieces:
        value = zlib.crc32(piece, value)
    return value


def _link(step: Step) -> None:
    """Make a symbolic link in one move, also in place of an existing file or link."""
    target, goal = step.target, step.member.handle
    target.parent.mkdir(parents=True, exist_ok=True)
    # `atomic_path` cannot do this: it would change the permissions of the file that the link leads to. The name has
    # the same form, so that a later run cleans it up.
    temporary = target.with_name(f".{target.stem[:40]}-{secrets.token_hex(4)}{target.suffix}")
    try:
        temporary.symlink_to(goal)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoLinksError(
            f"{target}: this file system does not allow symbolic links ({error.strerror}): use --copy"
        ) from error
    try:
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


class NoLinksError(OSError):
    """The file system of the tree cannot hold links."""


@contextlib.contextmanager
def _writable(root: Path) -> Iterator[None]:
    """Turn errors of writing into advice.

    Raises:
        DataError: writing failed; the message gives the reason.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except NoLinksError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "the disk is full. Free some space and run the same command again: it continues"
        else:
            advice = f"cannot be written ({error.strerror or error})"
        raise DataError(f"{error.filename or root}: {advice}") from error


@contextlib.contextmanager
def _only_run(root: Path) -> Iterator[None]:
    """Keep other runs out of the tree: one would take the other's temporary files for leftovers.

    The lock ends with the process, however that ends. There is no lock if the system or file system lacks them.

    Raises:
        DataError: another run holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{root}: another run is preparing this tree: wait for it to end") from error
        except OSError:
            pass
        yield
    finally:
        os.close(handle)
