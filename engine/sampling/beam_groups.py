"""Beam searches on one engine: each running prefix is a request of its own, a fork of the one it grew from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.config import EngineConfig
from engine.sampling.beam_search import Beams, Extension
from engine.scheduling.request import Request, RequestKey, RequestKind
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.stopping import stopping_ids
from engine.steps.step_output import BeamsFound, StepOutput
from wire.errors import ErrorCode, SpliceError
from wire.sampling import TokenLogprobs

_SLOT_SHIFT = 24
"""A member's key is its group's, with the number of its place above the attempt; all of it fits 32 bits."""


@dataclass(slots=True)
class _Group:
    """`members[i]` computes `beams.running[i]`."""

    key: RequestKey
    beams: Beams
    members: list[Request]
    options: dict[RequestKey, TokenLogprobs] = field(default_factory=dict)
    """Of the members that have caught up: they wait for the others."""


class BeamGroups:
    """Steps the members of each search together: when all have said which tokens may follow, the best prefixes go on.

    A member that has caught up is not computed, but keeps its blocks and may be preempted like any other; computed
    again it says the same. The scheduler knows nothing of groups but that a request with nothing to compute steps back
    when the line behind it is stuck.
    """

    def __init__(self, scheduler: Scheduler, config: EngineConfig) -> None:
        self._scheduler = scheduler
        self._config = config
        self._groups: dict[RequestKey, _Group] = {}
        self._group_of: dict[RequestKey, _Group] = {}
        self._found: list[BeamsFound] = []

    def __contains__(self, key: RequestKey) -> bool:
        """Whether `key` is that of a search."""
        return key in self._groups

    @property
    def has_news(self) -> bool:
        """A search ended outside a step."""
        return bool(self._found)

    def open(self, request: Request) -> None:
        """A request with `sampling.beam` was taken in by the scheduler: it is its own first prefix."""
        sampling, config = request.sampling, self._config
        assert sampling.beam is not None  # noqa: S101 - what makes it a search
        room = config.max_model_len - request.num_prompt_tokens
        beams = Beams(
            sampling.beam,
            max_tokens=min(sampling.max_tokens, room),
            min_tokens=sampling.min_tokens,
            ends=stopping_ids(sampling, config.eos_token_ids),
            num_top=sampling.logprobs,
            text=request.answer_text,
        )
        group = _Group(request.key, beams, [request])
        self._groups[request.key] = self._group_of[request.key] = group

    def num_options(self, request: Request) -> int:
        """How many of the likeliest tokens `offer` wants to see."""
        return self._group_of[request.key].beams.num_options

    def activate(self, key: RequestKey, figures: TokenLogprobs | None) -> None:
        """The KV of a reserved prompt is here, and `figures` name the likeliest first tokens, computed where it was.

        Raises SpliceError (invalid_request) if there are too few of them, or as `Scheduler.activate` does.
        """
        group = self._groups[key]
        wanted = min(group.beams.num_options, self._scheduler.vocab_size)
        given = figures.top_ids if figures is not None else ()
        if figures is None or len(given) < wanted:
            raise SpliceError(
                ErrorCode.INVALID_REQUEST,
                f"beam search {key} got {len(given)} first tokens to choose from, expected at least {wanted}",
            )
        [root] = group.members
        extensions = group.beams.extend([figures])
        if not extensions:
            self._finish(group)
            return
        self._scheduler.activate(key, [extensions[0].token])
        for extension in extensions[1:]:
            group.members.append(self._fork(group, root, root.tokens[: root.num_prompt_tokens], extension.token))

    def offer(self, caught_up: Sequence[tuple[Request, TokenLogprobs]]) -> list[tuple[Request, Exception]]:
        """These members caught up in one step; with each, the `num_options` likeliest tokens that may follow it.

        Returns a member of each search that cannot be extended, as where a tokenizer cannot spell its text, and why.
        """
        for request, figures in caught_up:
            self._group_of[request.key].options[request.key] = figures
        failed: list[tuple[Request, Exception]] = []
        for group in {id(group): group for group in (self._group_of[request.key] for request, _ in caught_up)}.values():
            if len(group.options) < len(group.members):
                continue
            try:
                extensions = group.beams.extend([group.options[member.key] for member in group.members])
            except Exception as error:  # the boundary of one search: the others go on
                failed.append((group.members[0], error))
            else:
                self._go_on(group, extensions)
        return failed

    def abort(self, key: RequestKey, *, draining: bool) -> None:
        """Ends a search and all its members."""
        group = self._groups.pop(key)
        for member in group.members:
            del self._group_of[member.key]
            self._scheduler.abort(member.key, draining=draining and member.kind is RequestKind.RESERVE)

    def fail(self, request: Request) -> RequestKey:
        """A member cannot be computed, which ends its search; returns the search's key."""
        group = self._group_of[request.key]
        self._scheduler.fail(request)
        group.members.remove(request)
        del self._group_of[request.key]
        self.abort(group.key, draining=False)
        return group.key

    def report(self, output: StepOutput) -> None:
        """Hands over what was found since the last call."""
        output.beams.extend(self._found)
        self._found.clear()

    def check(self) -> None:
        """Raises AssertionError where groups, members and the scheduler's requests disagree."""
        members = [member.key for group in self._groups.values() for member in group.members]
        if len(set(members)) != len(members) or set(members) != self._group_of.keys():
            raise AssertionError("the groups' members and their index disagree")
        if lost := [key for key in members if key not in self._scheduler.requests]:
            raise AssertionError(f"members {lost} are unknown to the scheduler")
        if uneven := [group.key for group in self._groups.values() if len(group.members) != len(group.beams.running)]:
            raise AssertionError(f"searches {uneven} have another number of members than of running prefixes")

    def _go_on(self, group: _Group, extensions: Sequence[Extension]) -> None:
        group.options.clear()
        if extensions:
            group.members = self._grow(group, extensions)
        else:
            self._finish(group)

    def _grow(self, group: _Group, extensions: Sequence[Extension]) -> list[Request]:
        """The first extension of a member is the member itself, others fork off; who has none ends, before all."""
        going_on = {extension.parent for extension in extensions}
        for index, member in enumerate(group.members):
            if index not in going_on:
                del self._group_of[member.key]
                self._scheduler.end(member)
        grown: set[int] = set()
        members: list[Request] = []
        for extension in extensions:
            member = group.members[extension.parent]
            if extension.parent in grown:
                members.append(self._fork(group, member, member.tokens[:-1], extension.token))
            else:
                grown.add(extension.parent)
                member.tokens.append(extension.token)
                members.append(member)
        return members

    def _fork(self, group: _Group, parent: Request, tokens: Sequence[int], token: int) -> Request:
        child = Request(
            key=self._free_key(group),
            tokens=[*tokens, token],
            num_prompt_tokens=parent.num_prompt_tokens,
            sampling=parent.sampling,
            root=parent.root,
            priority=parent.priority,
            num_scored_tokens=parent.num_scored_tokens,
            answer_text=parent.answer_text,
        )
        self._scheduler.fork(parent.key, child)
        self._group_of[child.key] = group
        return child

    def _free_key(self, group: _Group) -> RequestKey:
        request, attempt = group.key
        slot = 1
        while (key := (request, attempt | slot << _SLOT_SHIFT)) in self._group_of:
            slot += 1
        return key

    def _finish(self, group: _Group) -> None:
        cached = max(member.num_cached_tokens for member in group.members)
        self.abort(group.key, draining=False)
        self._found.append(BeamsFound(group.key, group.beams.answers, cached))
