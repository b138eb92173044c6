"""The optimizer whose step also joins the algorithm's collectives; `wagma.real.wrapper.distribute` makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, overload

import torch

from wagma.core.effects import Value
from wagma.errors import CollectiveTimeout, InputError, PeerFailed, WagmaError
from wagma.real.algorithms import has_syncs
from wagma.real.driver import RankDriver
from wagma.real.exits import is_orderly
from wagma.real.gossip.exchange import Gossip
from wagma.real.kernel import Engine
from wagma.real.seeing.monitor import Monitor
from wagma.real.seeing.recorder import Notes, Recorder
from wagma.real.wrapper.extras import Extras
from wagma.real.wrapper.intact import Intact
from wagma.real.wrapper.loss_scale import found_overflow, unscale
from wagma.real.wrapper.mean import Meetings
from wagma.seeing import Summary

if TYPE_CHECKING:
    from wagma.real.checkpoints.parts import Agreed


@dataclass(slots=True)
class Parts:
    """What a distributed optimizer puts together on one rank."""

    driver: RankDriver
    value: Value  # what its algorithm averages
    intact: Intact
    extras: Extras
    engine: Engine | None  # of the algorithm's collectives
    gossip: Gossip | None  # its letters to single ranks
    meetings: Meetings | None  # None: a rank alone, or one that never communicates
    monitor: Monitor
    check_finite: bool
    #: A context manager in which the model is the mean of all ranks'; its argument: whether this rank has closed.
    consolidate: Callable[[bool], AbstractContextManager[None]]
    #: Told when this rank has closed: model and optimizer may be distributed again.
    release: Callable[[], None]
    agreed: Agreed  # for checkpoints

    def close(self) -> None:
        """Serve the other ranks until all have closed."""
        self.driver.carrier.settle(self.driver.rank, self.agreed.timeout_s)
        if self.meetings is not None:
            self.meetings.begin_close()  # or a rank that waits there for this one would keep it waiting in the engine
        if self.gossip is not None:  # first: a rank that has both may have to go on with both, and closes neither before
            self.gossip.close()
        if self.engine is not None:
            self.engine.close()
        if self.meetings is not None:
            self.meetings.close()

    @property
    def left_waiting(self) -> BaseException | None:
        """The limit that was reached in a meeting, in which this rank still stands."""
        failure = None if self.meetings is None else self.meetings.failure
        return failure if isinstance(failure, CollectiveTimeout) else None

    def abort(self, message: str) -> None:
        """Tell the other ranks, and wait for nobody."""
        for one in (self.engine, self.gossip, self.meetings):
            if one is not None:
                one.abort(message)


class DistributedOptimizer(torch.optim.Optimizer):
    """A torch optimizer and its rank's side of an algorithm; made by `distribute`.

    It shares param_groups and state with the optimizer it wraps, so that learning-rate schedulers and state_dict see one
    optimizer. Hooks run once: those registered here around the whole step, those of the wrapped optimizer (and torch's global ones) around
    its update. A `torch.amp.GradScaler` may be given this optimizer: where it finds an overflow, the rank joins without an update.

    Use it as a context manager, or call `close`: the other ranks are served until all have closed.
    """

    #: GradScaler.step then calls `step` in any case, and leaves unscaling and leaving out the update to it.
    _step_supports_amp_scaling = True

    def __init__(self, optimizer: torch.optim.Optimizer, parts: Parts) -> None:
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.optimizer = optimizer
        self._parts = parts
        self._error: BaseException | None = None
        self._consolidated = False
        self._closed = False
        self._ended_at: int | None = None  # how many iterations this rank had ended when it closed
        self._share()
        # Whoever loads a state into the wrapped optimizer gives it new lists.
        self._following = optimizer.register_load_state_dict_post_hook(lambda _: self._share())

    @property
    def iteration(self) -> int:
        """The iteration that the next `step` ends, from 0."""
        return self._parts.driver.iteration

    @property
    def synced(self) -> bool:
        """Whether all ranks hold one model now, as they do after a sync and before the first step; then it can be saved."""
        driver = self._parts.driver
        common = has_syncs(self._parts.agreed.algorithm)
        return common and (driver.iteration == driver.schedule.begin or driver.schedule.is_sync(driver.iteration - 1))

    @property
    def failed(self) -> bool:
        """Whether a step has failed, or the run ended with an error."""
        return self._error is not None

    @property
    def is_consolidated(self) -> bool:
        """Whether the model is the mean of all ranks' now."""
        return self._consolidated

    @property
    def is_closed(self) -> bool:
        """Whether this rank has said that it has no further iteration."""
        return self._closed

    @property
    def trained(self) -> Iterable[int]:
        """The ids of the parameters that travel."""
        return self._parts.intact.trained

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """The gradient is there: update, and join the collectives of this iteration. Returns what `closure` returned.

        Raises CollectiveTimeout if a wait reaches its limit, PeerFailed if another rank failed (and again at each later
        call), ModelChanged if a parameter was replaced, frozen or unfrozen since `distribute`, NotFinite (`check_finite`),
        InputError for sparse gradients where gradients are averaged.
        """
        self._check_open()
        args: tuple[Any, ...] = (self,) if closure is None else (self, closure)
        kwargs: dict[str, Any] = {}
        for before in self._optimizer_step_pre_hooks.values():
            changed = before(self, args, kwargs)
            if changed is not None:
                args, kwargs = changed
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self._parts.monitor.log_unless_logged(loss)
        overflow = found_overflow(self)
        if not overflow:
            unscale(self, self.param_groups)
        self._advance(skip=overflow)
        for after in self._optimizer_step_post_hooks.values():
            after(self, args, kwargs)
        return loss

    def skip(self) -> None:
        """In place of `step`: this rank's gradient is not used in this iteration, but it joins the others.

        A rank that left out a step would be an iteration behind the others from then on. Where gradients are averaged, this rank
        contributes zeros and takes the others' mean, so that models stay the same. Raises as `step` does.
        """
        self._advance(skip=True)

    def _advance(self, skip: bool) -> None:
        self._check_open()
        parts = self._parts
        parts.intact.check()
        if parts.value is Value.GRADIENT:
            if skip:
                self.optimizer.zero_grad()
                skip = False
            parts.intact.check_dense()
            if parts.check_finite:
                parts.intact.check_finite(gradients=True)
        # Of schedulers: they would warn of a rank whose first step updates nothing.
        self._opt_called = self.optimizer._opt_called = True  # type: ignore[attr-defined]
        iteration = self.iteration
        try:
            parts.driver.advance(skip)
            parts.extras.after(iteration)
        except BaseException as error:  # nobody can go on from the middle of an iteration, or of a sync
            self._error = error
            raise
        parts.monitor.iterated(iteration)

    def _check_open(self) -> None:
        """Raise InputError, or what ended an earlier step, unless an iteration can end now."""
        if self._error is not None:
            raise self._error
        if self._consolidated:
            raise InputError("step: called inside consolidated(), whose model is not this rank's own; call it after")
        if self._closed or self._ended_at is not None:
            raise InputError("step: called after close, which says that this rank has no further iteration; wrap anew to go on")

    @contextmanager
    def consolidated(self) -> Iterator[None]:
        """`with optimizer.consolidated():` the model is the mean of all ranks' models and buffers, the same bits on each.

        Afterwards it is this rank's own again, bit by bit, whatever happened inside. Collective: every rank that has not closed must
        call it, and none may be in a step that waits for another one; or all after they have closed. Ranks that have closed, or ended
        before the last sync, are left out: what they had learnt is in the others' models. Raises CollectiveTimeout if a rank does not
        come, PeerFailed, InputError inside itself or if the ranks never communicate.
        """
        if self._consolidated:
            raise InputError("consolidated(): called inside itself")
        if self._error is not None:
            raise self._error
        with self._parts.consolidate(self._closed):
            self._consolidated = True
            try:
                yield
            finally:
                self._consolidated = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the wrapped optimizer does it. Raises InputError unless its parameters were trained ones of the model at `distribute`."""
        if "optimizer" in self.__dict__:
            given = param_group["params"]
            if not isinstance(given, set):  # which torch refuses, since its order may be another one on each rank
                given = [given] if isinstance(given, torch.Tensor) else list(given)
            for place, one in enumerate(given):
                tensor = one[1] if isinstance(one, tuple) else one
                if id(tensor) not in self._parts.intact.trained:
                    raise InputError(
                        f"add_param_group: parameter {place} of the group, of shape {tuple(tensor.shape)}, was not one of the model's "
                        "trained parameters at distribute: unfreeze before it, or wrap anew"
                    )
            self.optimizer.add_param_group({**param_group, "params": given})
        else:  # torch's own constructor, with what the wrapped optimizer has checked; its own method would import torch's compiler
            self.param_groups.append(param_group)

    def log(self, loss: Any = None, samples: float | None = None) -> None:
        """Tell what only the program knows of the iteration under way, for the progress line and TensorBoard; before its `step`.

        loss: a number, or a tensor of one element, which is read about once a second only. What is shown is the mean over iterations and
        ranks. samples: how many this rank's batch has (or tokens, or steps in an environment); shown is the sum over ranks, per second.
        Raises InputError for anything else.
        """
        self._parts.monitor.log(loss, samples)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the wrapped optimizer does it."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """That of the wrapped optimizer, of which a program without wagma can make use; with both optimizers' hooks."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = self.optimizer.state_dict()
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the wrapped optimizer, which this one shares its state with. Local: every rank loads its own."""
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        self.optimizer.load_state_dict(state_dict)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def close(self) -> None:
        """This rank has no further iteration: serve the others until all have closed. Safe to call twice.

        Raises CollectiveTimeout if nothing happens any more before all ranks have closed; or again, if the program has caught that of an
        earlier call: then the others, who raise PeerFailed, are not waited for.
        """
        if self._closed:  # model and optimizer may belong to another one by now
            return
        try:
            self.serve()
        except WagmaError:
            self._abandon_if_closed()
            raise
        self._detach()
        self._parts.monitor.finish(self._ended_at or 0)

    def serve(self) -> None:
        """The part of `close` that waits: serve the others until all have closed. For `wagma.together`, on any one thread."""
        if self._consolidated:
            raise InputError("close: called inside consolidated(); call it after")
        if self._closed:
            return
        if self._ended_at is None:
            self._ended_at = self.iteration  # a rank that gossips goes on for the others' sake
        try:
            # A rank that came to its limit still stands in that collective: nothing there can be closed any more.
            caught = self._error if isinstance(self._error, CollectiveTimeout) else self._parts.left_waiting
            if caught is not None:
                raise caught
            self._parts.close()
            self._parts.driver.ended()
        except WagmaError as error:
            if error is caught or isinstance(error, PeerFailed):  # which one part only may have heard of
                self._parts.abort(f"{type(error).__name__}: {error}")
                self._error = self._error or error
                self._detach()
            raise

    def _abandon_if_closed(self) -> None:
        if self._closed:  # else only a limit was reached, and the program may close once more
            self._parts.monitor.abandon()

    def _detach(self) -> None:
        if self._closed:
            return
        self._parts.driver.carrier.release()
        self._following.remove()
        self._closed = True
        self._parts.release()

    @property
    def transport(self) -> str:
        """How the models of its collectives travel, in words: "shared memory", "CUDA IPC on NVIDIA H200", ...

        "": they do not, for want of collectives or of other ranks.
        """
        return "" if self._parts.engine is None else self._parts.engine.transport

    @property
    def recorder(self) -> Recorder:
        """What notes this rank's iterations."""
        return self._parts.monitor.recorder

    @property
    def summary(self) -> Summary | None:
        """On rank 0, after `close`, if progress, tensorboard or trace was asked for: the run in figures, stragglers named; else None."""
        return self._parts.monitor.summary

    def notes(self) -> Notes:
        """What this rank recorded, after `close`; for `wagma.real.seeing.recorder.assemble`."""
        return self.recorder.notes(None if self._parts.engine is None else self._parts.engine.take_records())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if is_orderly(error):
            self.close()
            return
        self._parts.monitor.abandon()
        self._parts.abort(f"{type(error).__name__}: {error}")
        self._error = self._error or error
        self._detach()

    def __getstate__(self) -> NoReturn:
        raise InputError("a distributed optimizer cannot be copied or pickled; its state_dict() can")

    def _share(self) -> None:
        self.param_groups = self.optimizer.param_groups
        self.state = self.optimizer.state


# torch would wrap `step` in its own calls of hooks, global ones included, which the wrapped optimizer's step runs already.
DistributedOptimizer.step.hooked = True  # type: ignore[attr-defined]
