"""Asks all nodes for their facts, has them meet, and brings home what was found; judges nothing."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from scaletrain.cluster.doctor.agents import Agents
from scaletrain.cluster.doctor.facts import Evidence, Facts, Node, Pair, Ranks, Storage, Unreached
from scaletrain.cluster.doctor.nodes import Place

_FACTS_SECONDS = 30.0
_TRIAL_SECONDS = 20.0
_RANKS_SECONDS = 45.0
_ROUNDS_SECONDS = 10.0
_BUILD_SECONDS = 900.0
_FREE_PORTS = 3  # beside the master port on the first node: collectives take such as the system gives

T = TypeVar("T")
Found = dict[str, dict[str, Any]]  # node -> fields of Node


@dataclass(frozen=True)
class Plan:
    """What to look at. `job`: recipe, overrides and deepspeed_config, for each node to read; `run_folder` and `job` are
    empty without a recipe."""

    job: Mapping[str, Any] | None
    run_folder: str
    master_port: int
    build: bool


def examine(places: Sequence[Place], plan: Plan) -> Evidence:
    """Every node of `places`; what one does not answer is missing from it, and told as its fault."""
    found: Found = {place.name: {} for place in places}
    agents = Agents(places)
    try:
        _note(found, "clock", agents.clocks())
        _ask_facts(agents, plan, found)
        meeting_port = _try_ports(agents, plan.master_port, found)
        if plan.run_folder:
            _try_run_folder(agents, plan.run_folder, found)
        pairs, left_out = _try_ranks(agents, meeting_port, found)
        if plan.build:
            _build(agents, found)
        silent = {name: (silence.question, silence.why) for name, silence in agents.silences().items()}
        _note(found, "fault", silent)
    finally:
        agents.close()
    return Evidence(tuple(Node(name, **fields) for name, fields in found.items()), pairs, left_out)


def _note(found: Found, field: str, answers: Mapping[str, Any]) -> None:
    for name, answer in answers.items():
        found[name][field] = answer


def _ask_facts(agents: Agents, plan: Plan, found: Found) -> None:
    names = agents.names
    master = names[0] if len(names) > 1 else None
    for name, answer in agents.ask("facts", _FACTS_SECONDS, job=plan.job, master=master).items():
        try:
            found[name]["facts"] = TypeAdapter(Facts).validate_python(answer)
        except ValidationError:
            found[name]["fault"] = ("facts", "it answers in the words of another version of scaletrain")


def _try_ports(agents: Agents, master_port: int, found: Found) -> int | None:
    """Each node listens, and each connects to all others. Gives a port of the first node that all could reach."""
    names = agents.names
    wanted = {name: {"ports": [0] if n else [master_port, *[0] * _FREE_PORTS]} for n, name in enumerate(names)}
    opened, refused = {}, {}
    for name, (ports, faults) in agents.ask("listen", _TRIAL_SECONDS, wanted).items():
        opened[name] = ports
        refused[name] = {int(port): why for port, why in faults.items()}
    _note(found, "refused_ports", refused)
    targets = {
        name: {"targets": [(other, port) for other in opened if other != name for port in opened[other]]}
        for name in names
    }
    answers = agents.ask("connect", _TRIAL_SECONDS, targets)
    unreached = {name: _parse(tuple[Unreached, ...], answer) for name, answer in answers.items()}
    _note(found, "unreached", unreached)
    agents.ask("close", _TRIAL_SECONDS)
    blocked = {(miss.node, miss.port) for misses in unreached.values() for miss in misses}
    first = opened.get(names[0], []) if names else []
    return next((port for port in first if (names[0], port) not in blocked), None)


def _try_run_folder(agents: Agents, folder: str, found: Found) -> None:
    """The first node leaves a file that the others look for; then all write and read at once, as in a save."""
    names, where = agents.names, {"path": folder, "nonce": secrets.token_hex(8)}
    marked = agents.ask("mark", _TRIAL_SECONDS, {name: {} for name in names[:1]}, **where)
    if not any(marked.values()):
        _note(found, "sees_run_folder", agents.ask("look", _TRIAL_SECONDS, {name: {} for name in names[1:]}, **where))
    stored = agents.ask("store", _TRIAL_SECONDS, **where)
    _note(found, "storage", {name: _parse(Storage, answer) for name, answer in stored.items()})
    agents.ask("clear", _TRIAL_SECONDS)


def _try_ranks(agents: Agents, port: int | None, found: Found) -> tuple[tuple[Pair, ...], int]:
    """A rank for each GPU, or one a node, where there is more than one in all. Pairs of nodes are timed, on a single
    node pairs of its GPUs."""
    names = [name for name in agents.names if "facts" in found[name]]
    ranks: dict[str, list[int]] = {}
    for name in names:
        first = sum(map(len, ranks.values()))
        ranks[name] = list(range(first, first + _ranks_on(found[name]["facts"])))
    size = sum(map(len, ranks.values()))
    if size < 2 or port is None:
        return (), 0
    seats = [own[0] for own in ranks.values()] if len(names) > 1 else ranks[names[0]]
    answers = agents.ask(
        "ranks", _RANKS_SECONDS + 5,
        {name: {"ranks": own, "node": node} for node, (name, own) in enumerate(ranks.items())},
        size=size, nodes=len(names), seats=seats, seconds=_RANKS_SECONDS, rounds_seconds=_ROUNDS_SECONDS,
        master_address=names[0] if len(names) > 1 else "127.0.0.1", master_port=port,
    )  # fmt: skip
    _note(found, "ranks", {name: _parse(Ranks, answer["ranks"]) for name, answer in answers.items()})
    seat_names = {rank: name if len(names) > 1 else f"GPU {rank}" for name, own in ranks.items() for rank in own}
    pairs = [
        Pair(seat_names[one], seat_names[other], rate)
        for answer in answers.values()
        for one, other, rate in answer["pairs"]
    ]
    return tuple(pairs), max((answer["rounds_left_out"] for answer in answers.values()), default=0)


def _ranks_on(facts: Facts) -> int:
    return max(1, len(facts.devices.gpus)) if "cuda" in facts.versions else 1


def _build(agents: Agents, found: Found) -> None:
    jobs = [fields["facts"].job for fields in found.values() if "facts" in fields]
    if ops := sorted({op for job in jobs if job is not None for op, built in job.ops.items() if not built}):
        _note(found, "builds", agents.ask("build", _BUILD_SECONDS + 10, ops=ops, seconds=_BUILD_SECONDS))


def _parse(kind: type[T], answer: Any) -> T:
    """An answer of a node whose facts are in our own version's words."""
    return TypeAdapter(kind).validate_python(answer)
