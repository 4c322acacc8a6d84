"""What the commands show: progress bars on stderr, words on stdout, and Ctrl-C as a question to be asked."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .training.errors import Cancelled, DivergedError

if TYPE_CHECKING:
    from .training.host import Host
    from .training.run_config import Run
    from .training.workers import Workers

UNITS = {"cycles": "cycle", "tags": "prompt"}
"""What a phase counts; pictures otherwise."""


class Console:
    """Bars, words and Ctrl-C. A silent one only listens: of several processes one speaks."""

    def __init__(self, silent: bool = False) -> None:
        self._silent = silent
        self._bar: Any = None
        self._phase = ""
        self._cancelled = False

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the first Ctrl-C or request to end only makes `cancelled` true; a second Ctrl-C is a
        KeyboardInterrupt."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            self._cancelled = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            tqdm.write("Stopping; what is done will be saved. Ctrl-C again stops at once.", file=sys.stderr)

        previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def cancelled(self) -> bool:
        """Whether Ctrl-C was pressed while listening."""
        return self._cancelled

    def progress(self, phase: str, done: int, total: int) -> None:
        """Show that `done` of `total` things of a phase are done. A new phase gets a new bar."""
        if self._silent:
            return
        if self._bar is None or phase != self._phase or done < self._bar.n:
            self._close()
            # A log file gets a line now and then, a terminal a moving bar.
            every = 0.2 if sys.stderr.isatty() else 15
            unit = UNITS.get(phase, "picture")
            # what an earlier run has done took no time of this one
            bar = tqdm(total=total, desc=phase, unit=unit, mininterval=every, initial=done)
            self._phase, self._bar = phase, bar
        self._bar.update(done - self._bar.n)

    def losses(self, losses: Mapping[str, float]) -> None:
        """Show losses by term behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix({term: f"{loss:.3f}" for term, loss in losses.items()}, refresh=False)

    def say(self, text: str = "") -> None:
        """A line on stdout, below a finished bar."""
        if self._silent:
            return
        self._close()
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def distil(
    run: Run, host: Host, console: Console, resume: bool = False, workers: Workers | None = None
) -> dict[str, Any]:
    """A whole run with its bars; returns the report, in a process that does not lead an empty one.

    Raises what ended the run *after* the collection as trained so far has been written, and whatever
    `DistillationRun` raises.
    """
    from .training.checkpoint import CheckpointError
    from .training.extend import read_extended
    from .training.lora import linear_shapes
    from .training.run import DistillationRun
    from .training.workers import ALONE

    workers = workers or ALONE
    run, first = read_extended(run, linear_shapes(host.transformer))
    stopped: Cancelled | DivergedError | None = None
    with console.listening(), DistillationRun(run, host, console.cancelled, first, workers) as job:
        if resume:
            job.check_resumable()  # not after hours of teacher images
        job.prepare(console.progress)
        try:
            for record in job.train(resume, console.progress):
                console.losses(record.losses)
        except (Cancelled, DivergedError) as error:
            stopped = error
        except CheckpointError:  # what is there belongs to another run: nothing of it may be written over
            raise
        except Exception:
            if job.trainer.cycle > 0 and workers.leads:
                with suppress(Exception):  # what ended the run is what to be told
                    job.finish(thumbnails=False)
            raise
        if stopped is not None and job.trainer.cycle == 0:
            raise stopped  # nothing was learnt that a collection could hold
        report = job.finish() if workers.leads else {}
        workers.wait()
    if stopped is not None:
        raise stopped
    return report
