"""The run: a generator of one record a cycle. A cycle is one student update and the fake score's updates.

What is kept is always the state after the last finished cycle: cancel, failure and kill discard the open one.
Every random number is named by (seed, cycle, ...), so going on from there repeats an uninterrupted run, bit
for bit but for a GPU's kernels that add up in no fixed order.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..collection.lora_weights import LoraWeights
from .checkpoint import CheckpointError, copied, load_optimizer_state, load_state, optimizer_state, save_state
from .config import Distillation
from .data import Batch, Lessons, Sample, micro_batches
from .distiller import FAKE, STUDENT, Distiller, Draws, Term
from .errors import Cancelled, DivergedError
from .gains import Gains
from .lora import LoraAdapter
from .memory import peak_memory
from .optimizer import make_optimizer
from .record import Record
from .resuming import check_settings
from .ways import Way, Ways
from .workers import ALONE, Workers

MAX_SKIPPED = 3
"""So many cycles in a row with a loss that is not finite end the run."""

EDIT = "edit"
HOLD_FALL = 0.2
"""Share of all cycles over which the schedule "hold" falls."""


class NotFiniteError(Exception):
    """Losses or gradients were NaN or infinite; the arguments name them."""


class Trainer:
    """Trains the student (and the fake score) of a distiller.

    Args:
        distiller: its roles hold the adapter "student", and "fake" where the run needs one, and are attached.
        cancelled: asked at every micro-step; True discards the open cycle and raises Cancelled.
        workers: the processes that train together; each has a trainer like this one.
        gains: of effects that the student knows already (:mod:`.gains`).

    Raises:
        ValueError: no sample has a teacher image, and warm cycles, or all cycles, learn from these.
    """

    def __init__(
        self,
        distiller: Distiller,
        lessons: Lessons,
        config: Distillation,
        cancelled: Callable[[], bool] = lambda: False,
        workers: Workers = ALONE,
        gains: Mapping[str, float] | None = None,
    ) -> None:
        seeded = any(sample.target is not None for samples in lessons.effects.values() for sample in samples)
        if not seeded and (config.warm_cycles or (config.matching_cycles and not config.objective.bs_weight)):
            raise ValueError(
                "no sample has a teacher image: make some, or set warm_cycles = 0 and objective.bs_weight > 0"
            )
        self.distiller, self.lessons, self.config, self.cancelled = distiller, lessons, config, cancelled
        self._named = lessons.names()
        self.workers, self._wants_to_stop = workers, False
        roles = (STUDENT, FAKE) if config.needs_fake else (STUDENT,)
        self.trained = {role: distiller.roles.adapters[role] for role in roles}
        self.student = self.trained[STUDENT]
        self.average = copied(self.student.state_dict()) if config.ema else None
        self.optimizers = {
            role: make_optimizer(adapter, config.lr if role == STUDENT else config.fake_lr, config)
            for role, adapter in self.trained.items()
        }
        self.ways, self.gains = Ways(lessons, config), Gains.of_run(config, gains or {})
        self.cycle = self.skipped = self._in_a_row = 0
        self._kept = self._state()
        self._spare: dict[str, Any] | None = None

    # -- the run ---------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Record]:
        """One record for each cycle until `config.cycles`.

        Raises Cancelled, DivergedError, or whatever the model raised; the trainer is then as after the last
        cycle.
        """
        while self.cycle < self.config.cycles:
            record = Record(self.cycle)
            try:
                self._cycle(record)
            except NotFiniteError as error:
                self._restore(self._kept)
                if self._in_a_row + 1 >= MAX_SKIPPED:
                    raise DivergedError(
                        f"{', '.join(error.args)} not finite in {MAX_SKIPPED} cycles in a row, up to cycle "
                        f"{self.cycle}; the last good state is kept. Lower lr and fake_lr and go on, or "
                        "raise objective.floor and start anew"
                    ) from None
                record = Record(self.cycle, lr=record.lr, not_finite=error.args)
                self.skipped += 1
                self._in_a_row += 1
            except BaseException:
                self._restore(self._kept)
                raise
            else:
                self._in_a_row = 0
            self.cycle += 1
            if self.cycle == self.config.start_cycles:
                self._begin_matching()
            self._kept, self._spare = self._state(self._spare), self._kept
            record.memory = peak_memory(next(self.student.parameters()).device)
            yield record

    def _begin_matching(self) -> None:
        if self.config.matching_cycles:  # else the run may be asked for more imitation
            self.ways.restore({})
        if FAKE in self.trained and self.config.objective.fake_base == "base":
            self.trained[FAKE].load_state_dict(self.student.state_dict())

    def _cycle(self, record: Record) -> None:
        objective = self.config.objective
        starting = self.cycle < self.config.start_cycles
        record.lr = self._set_lr()
        batches: list[Batch] = []
        rolled: list[torch.Tensor] = []
        start = time.perf_counter()
        if starting and self.cycle >= self.config.warm_cycles:
            self._imitate(record)
        else:
            batches = self._batches(0)
            terms = self._warm_terms(batches) if starting else self._terms(batches, rolled)
            self._update(STUDENT, terms, record)
        self._follow()
        record.seconds["student"] = time.perf_counter() - start
        if starting or not objective.matches:
            return
        start = time.perf_counter()
        for number in range(self.config.fake_ratio):
            self._update(FAKE, self._fake_terms(number, batches, rolled), record)
        record.seconds["fake"] = time.perf_counter() - start

    def _imitate(self, record: Record) -> None:
        """One update of the student, and one step of the ways on which it imitates."""
        ways = self.ways.visited(self.cycle)
        reached: dict[int, torch.Tensor] = {}
        self._update(STUDENT, self._imitation_terms(ways, reached), record)
        self.gains.learn(record.edits)
        moved = {number: ways[number].onward(x0.cpu(), self.cycle) for number, x0 in reached.items()}
        for part in self.workers.gather(moved):  # each process has to know what any of them may have to save
            moved |= part
        self.ways.leave(self.cycle, ways, moved)

    # -- terms -----------------------------------------------------------------------------------------------

    def _warm_terms(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Term, float]]:
        """Of the first cycles, on the teachers' images."""
        draws = Draws(self.config.seed, self.cycle, "student")
        for batch in batches:
            if batch.seeded():
                times = torch.zeros(len(batch))
                yield batch, self.distiller.image_anchored(batch, batch.seeded(), draws, times), 1.0

    def _imitation_terms(
        self, ways: Sequence[Way], reached: dict[int, torch.Tensor]
    ) -> Iterator[tuple[Batch, Term, float]]:
        """Of cycles after these, where `ways` are; the x0 that each leads on to is put into `reached`."""
        batches = self._shared([way.sample for way in ways], range(len(ways)))
        for i, batch in enumerate(batches):
            for following in batches[i + 1 : i + 2]:
                self.distiller.bank.prefetch(following.teachers())  # read while this one is computed
            for own in (False, True):
                here = [ways[number] for number in batch.numbers if ways[number].own == own]
                if here:
                    x = torch.stack([way.x for way in here]).to(batch.source)
                    sigma = torch.tensor([way.sigma for way in here], device=x.device)
                    positions = [batch.numbers.index(way.number) for way in here]
                    gains = [self.gains.of(way.sample.effect, way.sigma, self.cycle) for way in here]
                    term, x0s = self.distiller.imitation(batch, positions, x, sigma, own, gains)
                    reached |= zip([way.number for way in here], x0s)
                    yield batch, term, 1.0

    def _terms(
        self, batches: Sequence[Batch], rolled: list[torch.Tensor]
    ) -> Iterator[tuple[Batch, Term, float]]:
        """The student's terms; the samples of its rollouts are appended to `rolled`, one for each batch."""
        objective, draws = self.config.objective, Draws(self.config.seed, self.cycle, "student")
        weights = {"bs": objective.bs_weight, "ts": objective.ts_weight, "fm": objective.fm_weight}
        for batch in batches:
            if objective.matches:
                self.distiller.bank.prefetch(batch.teachers())  # read while the student rolls out
            for term in self.distiller.student_terms(batch, draws):
                if term.samples is not None:
                    rolled.append(term.samples)
                yield batch, term, weights[term.name]

    def _fake_terms(
        self, number: int, batches: Sequence[Batch], rolled: Sequence[torch.Tensor]
    ) -> Iterator[tuple[Batch, Term, float]]:
        """On the student update's samples, or on samples of their own."""
        draws = Draws(self.config.seed, self.cycle, f"fake {number}")
        # not whether there are any here: a process may have no part of the student's update
        shared = self.config.share_rollouts and self.config.objective.bs_weight > 0
        for i, batch in enumerate(batches if shared else self._batches(1 + number)):
            if shared:
                x0 = rolled[i]
            else:
                with torch.no_grad():
                    x0 = self.distiller.sample(batch, draws)
                self._ask()
            yield batch, self.distiller.fake_term(batch, x0, draws), 1.0

    def _batches(self, update: int) -> list[Batch]:
        """This process' micro-batches of update 0, the student's, or 1 + k, the fake score's k-th on fresh
        samples."""
        config = self.config
        numbers = range(update * config.batch, (update + 1) * config.batch)
        return self._shared(self.lessons.draw(config.seed, self.cycle, numbers, config.p_effect), numbers)

    def _shared(self, samples: Sequence[Sample], numbers: Sequence[int]) -> list[Batch]:
        """This process' micro-batches of a whole batch."""
        size = self.config.micro_batch_of(self.workers.count)
        parts = micro_batches([sample.source for sample in samples], size)
        device = next(self.student.parameters()).device
        return [
            Batch.of([samples[i] for i in part], [numbers[i] for i in part]).to(device)
            for part in self.workers.share(parts)
        ]

    # -- updates ---------------------------------------------------------------------------------------------

    def _update(self, role: str, terms: Iterator[tuple[Batch, Term, float]], record: Record) -> None:
        """Accumulate the gradients of weighted terms, clip, and step the role's optimizer.

        The paper's mean runs over the whole batch, samples without the term too.
        """
        optimizer, adapter = self.optimizers[role], self.distiller.roles.adapters[role]
        optimizer.zero_grad(set_to_none=True)
        done: list[tuple[str, str]] = []  # term and effect of each loss
        losses: list[torch.Tensor] = []
        for batch, term, weight in terms:
            self._ask()
            self.workers.before_backward()
            with self.distiller.use(term.role, batch):
                torch.autograd.backward(weight * term.losses.sum() / self.config.batch)
            done += [(term.name, batch.effects[i] or "general") for i in term.positions]
            losses.append(term.losses.detach())
            if term.edits is not None and (term.name == "on_policy" or not self.config.on_policy):
                positions, shares = term.edits
                done += [(EDIT, batch.effects[i] or "general") for i in positions]
                losses.append(shares)
        if self.workers.count > 1:
            for parameter in adapter.parameters():
                if parameter.grad is None:  # no sample of this process had the term
                    parameter.grad = torch.zeros_like(parameter)
            self.workers.add_up([p.grad for p in adapter.parameters() if p.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(adapter.parameters(), self.config.clip)
        # One wait for the device an update; a NaN until here has only spoilt gradients.
        *values, total = torch.cat([*losses, norm.reshape(1)]).tolist()
        parts = self.workers.gather((done, values, self._wants_to_stop))
        if any(wants_to_stop for _, _, wants_to_stop in parts):
            self._stop()
        done = [one for part in parts for one in part[0]]
        values = [one for part in parts for one in part[1]]
        wrong = [term for (term, _), value in zip(done, values, strict=True) if not math.isfinite(value)]
        if not math.isfinite(total):
            wrong.append(f"gradient of the {role}")
        if wrong:
            raise NotFiniteError(*dict.fromkeys(wrong))
        for (name, effect), value in zip(done, values, strict=True):
            kept = record.edits if name == EDIT else record.values.setdefault(name, {})
            kept.setdefault(effect, []).append(value)
        record.grad_norms[role] = max(total, record.grad_norms.get(role, 0.0))
        if done:  # else nobody has a gradient, which several processes would step on as 0
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _ask(self) -> None:
        """Alone, stop at once. Others would wait for this process: they are told with the next gradients."""
        self._wants_to_stop |= self.cancelled()
        if self._wants_to_stop and self.workers.count == 1:
            self._stop()

    def _stop(self) -> NoReturn:
        self._wants_to_stop = False
        raise Cancelled(f"cancelled in cycle {self.cycle}; the last finished cycle is kept")

    def _set_lr(self) -> float:
        """Set both learning rates for this cycle and return the student's."""
        c = self.config
        rise = min(1.0, (self.cycle + 1) / c.lr_warmup) if c.lr_warmup else 1.0
        progress = self.cycle / c.cycles
        fall = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "hold": min(1.0, (1 - progress) / HOLD_FALL),
        }
        factor = rise * fall[c.lr_schedule]
        rates = {STUDENT: c.lr, FAKE: c.fake_lr}
        for role, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[role] * factor
        return c.lr * factor

    @torch.no_grad()
    def _follow(self) -> None:
        """Let the moving average follow the student."""
        if self.average is not None:
            # A young average must not remember the zeros it started from.
            decay = min(self.config.ema, (1 + self.cycle) / (10 + self.cycle))
            for name, value in self.student.state_dict().items():
                self.average[name].lerp_(value.cpu(), 1 - decay)

    def result(self) -> LoraWeights:
        """The student to ship: its moving average where one is kept."""
        if self.average is None:
            return self.student.weights()
        adapter = LoraAdapter(self.student.shapes, self.student.rank, self.student.alpha)
        adapter.load_state_dict(self.average)
        return adapter.weights()

    # -- state -----------------------------------------------------------------------------------------------

    def _state(self, over: dict[str, Any] | None = None) -> dict[str, Any]:
        """A copy of everything that changes, in the memory of an earlier one."""
        state = {
            "cycle": self.cycle,
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "config": dataclasses.asdict(self.config),
            "lessons": self._named,
            **{role: adapter.state_dict() for role, adapter in self.trained.items()},
            "optimizers": {role: optimizer_state(optimizer) for role, optimizer in self.optimizers.items()},
            "gains": self.gains.effects,
        }
        if self.average is not None:
            state["average"] = self.average
        kept: dict[str, Any] = copied(state, over)
        kept["ways"] = self.ways.state()  # not copied: its tensors are replaced, never changed
        return kept

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.cycle, self.skipped, self._in_a_row = state["cycle"], state["skipped"], state["in_a_row"]
        for role, optimizer in self.optimizers.items():
            optimizer.zero_grad(set_to_none=True)
            if role == FAKE and role not in state and self.cycle <= self.config.start_cycles:
                continue  # until now the run needed none
            self.trained[role].load_state_dict(state[role])
            optimizer.state.clear()  # the device may have no room for both
            load_optimizer_state(optimizer, copied(state["optimizers"][role]))
        if self.average is not None:
            self.average = copied(state["average"])
        self.ways.restore(state.get("ways", {}))  # older ones have none
        self.gains.effects = dict(state.get("gains", {}))

    def save(self, path: Path) -> None:
        """Write the state after the last finished cycle, atomically.

        Raises CollectionError if the disk is full; the previous file survives.
        """
        save_state(path, self._kept)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same run; only what :mod:`.resuming` lists may have changed.

        Raises CheckpointError for a damaged file, or naming the first difference for one of another
        configuration, other lessons or another model. The trainer is then as before.
        """
        state = load_state(path)
        ours, start = self._kept, self.config.start_cycles
        check_settings(path, state, ours)
        dropped = FAKE in state and FAKE not in self.trained and self.config.objective.matches
        if dropped and state["cycle"] > start:
            raise CheckpointError(
                f"{path}: some of its {state['cycle']} cycles match distributions, and this run would drop "
                f"the fake score; let cycles be more than {start}, or delete the state to start again"
            )
        try:
            self._restore(state)
        except (KeyError, ValueError, RuntimeError) as error:
            self._restore(ours)
            raise CheckpointError(f"{path}: does not fit this model ({error}); start again") from error
        if 0 < self.cycle == start:  # the start may have been cut short only now
            self._begin_matching()
        self._kept = self._state()
