"""A plan in lines for a person."""

from collections.abc import Iterator, Sequence

from scaletrain.model.count import flops_per_token, short_count
from scaletrain.planner.communication import sent_bytes
from scaletrain.planner.fit import CPU_MARGIN, FRAGMENTATION, GPU_RESERVE, HOST_RESERVE, PROCESS_BYTES, Variant
from scaletrain.planner.memory import Memory, memory_of
from scaletrain.planner.plan import Plan, parts_of
from scaletrain.planner.search import Found


def describe(plan: Plan) -> Iterator[str]:
    """All but the verdict."""
    work, cluster, memory = plan.work, plan.cluster, plan.memory
    arch, hardware = work.arch, cluster.hardware
    yield (
        f"model   {arch.family}: {arch.num_layers} layers, {arch.hidden_size:,} wide, {arch.vocab_size:,} tokens, "
        f"{short_count(work.parameters)} parameters; {work.precision}{', FP8 products' if work.fp8 else ''}, "
        f"ZeRO {work.zero.stage}{_offload(plan)}, "
        f"checkpointing {work.checkpointing}"
    )
    yield (
        f"on      {cluster.nodes} x {cluster.devices_per_node} x {hardware.name} ({hardware.source}), micro-batch "
        f"{work.micro_batch} x {work.accumulation}"
    )
    peak = memory.peak
    yield f"memory  a rank, at most at the {peak.name}: {size(memory.peak_bytes)}"
    yield f"        {', '.join(f'{name} {size(part)}' for name, part in parts_of(memory).items())}"
    yield f"        {_margins(plan)}: {size(plan.room.need(memory))} of {size(plan.room.bytes)}"
    moments = {moment.name: moment for moment in memory.moments}
    whole = {name: moment.whole if memory.is_one else moment.device for name, moment in moments.items()}
    yield f"        at the start {size(whole['start'])}, loading {size(whole['load'])}, saving {size(whole['save'])}"
    if not memory.is_one:
        held = {name: size(moment.host * cluster.devices_per_node) for name, moment in moments.items()}
        yield (
            f"host    a node, at most at the {memory.host_peak.name}: {size(_host_of_node(plan, memory))}; at the "
            f"start {held['start']}, loading {held['load']}, saving {held['save']}{_of_host(plan)}"
        )
    yield (
        f"disk    {plan.keep_last + plan.kept:,} checkpoints and one being written: {size(plan.disk_bytes)}; "
        f"a rank sends {size(int(sent_bytes(work)))} a step"
    )
    yield from _speed(plan)


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"


def _speed(plan: Plan) -> Iterator[str]:
    time, cost, cluster, work = plan.time, plan.cost, plan.cluster, plan.work
    peak = cluster.hardware.rates[work.precision] * cluster.ranks
    mfu = time.tokens_per_second * flops_per_token(work.arch, work.context) / peak
    yield (
        f"step    {time.seconds:.3g} s: forward {time.forward:.3g}, backward {time.backward:.3g}, update "
        f"{time.update:.3g}, waits for the network {time.exposed:.3g}{_more('host work', time.host)}"
        f"{_more('the rest', time.rest)}; passes at {plan.compute_share:.0%} of the dense peak ({plan.share_source})"
    )
    yield f"rate    {time.tokens_per_second:,.0f} tokens/s, MFU {mfu:.0%}"
    money = "" if cost.money is None else f", {cost.money:,.0f} at {plan.price:g} an hour"
    took = f"{_hours(cost.hours)} hours, {_hours(cost.device_hours)} device-hours{money}"
    yield f"run     {plan.steps:,} steps: {took if cost.goodput else 'no end: faults come before the next checkpoint'}"
    yield (
        f"save    {_cadence(plan)}: {cost.goodput:.1%} of the time is work kept; each "
        f"{_minutes(plan, cost.best_interval)} loses least, {cost.best_goodput:.1%}; a fault each "
        f"{cost.run_mtbf / 3600:,.0f} hours"
    )


def _cadence(plan: Plan) -> str:
    return "at the end alone" if plan.save_steps is None else f"each {_minutes(plan, plan.cost.interval)}"


def _minutes(plan: Plan, seconds: float) -> str:
    steps = max(1, round(seconds / plan.time.seconds))
    return f"{steps:,} steps ({seconds / 60:,.1f} minutes)"


def short(plan: Plan) -> str:
    """All of it in one line."""
    need, room = size(plan.room.need(plan.memory)), size(plan.room.bytes)
    return (
        f"{need} of {room} a rank, {plan.time.tokens_per_second:,.0f} tokens/s, {_hours(plan.cost.hours)} hours on "
        f"{plan.cluster.ranks:,} x {plan.cluster.hardware.name} ({plan.share_source} speed)"
    )


def verdict(plan: Plan, remedy: Variant | None) -> str:
    """One line. `remedy`: where it does not fit, what does."""
    spare, host = plan.room.spare(plan.memory), plan.room.host_spare(plan.memory)
    if plan.fits:
        return f"fits    with {size(spare)} a rank to spare"
    if remedy is None:
        change = "no micro-batch, checkpointing, ZeRO stage or offload makes it fit: use more devices or larger ones"
    else:
        change = f"{' '.join(remedy.overrides)} makes it fit{_with_host(plan, remedy)}"
    of_node = size(max(0, -host) * plan.cluster.devices_per_node)
    missing = f"{size(-spare)} a rank" if spare < 0 else f"{of_node} of host memory a node"
    return f"too big by {missing}: {change}"


def table(found: Sequence[Found], plan: Plan) -> Iterator[str]:
    """The best of a search."""
    host = "" if plan.room.is_cpu else f" {'a node, host':>12}"
    yield f"{'tokens/s':>12} {'step s':>8} {'of ' + size(plan.room.bytes):>12}{host}  overrides"
    for one in found:
        need = size(plan.room.need(one.memory))
        held = "" if plan.room.is_cpu else f" {size(_host_of_node(plan, one.memory)):>12}"
        yield (
            f"{one.time.tokens_per_second:>12,.0f} {one.time.seconds:>8.3g} {need:>12}{held}  "
            f"{' '.join(one.variant.overrides)}"
        )


def size(count: int) -> str:
    scale, unit = next((s, u) for s, u in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1, "B")) if count >= s or s == 1)
    return f"{count / scale:.3g} {unit}" if count < 1e15 else f"{count / scale:,.0f} {unit}"


def _more(name: str, seconds: float) -> str:
    return f", {name} {seconds:.3g}" if seconds else ""


def _offload(plan: Plan) -> str:
    zero = plan.work.zero
    away = [name for name, is_away in (("optimizer", zero.offloads_optimizer), ("weights", zero.offloads_parameters))
            if is_away]  # fmt: skip
    return f" with {' and '.join(away)} in host memory" if away else ""


def _host_of_node(plan: Plan, memory: Memory) -> int:
    return memory.host_peak.host * plan.cluster.devices_per_node


def _with_host(plan: Plan, remedy: Variant) -> str:
    """Of a change that moves state there."""
    zero = remedy.work.zero
    if plan.room.is_cpu or not (zero.offloads_optimizer or zero.offloads_parameters):
        return ""
    return f", with {size(_host_of_node(plan, memory_of(remedy.work)))} of host memory a node"


def _of_host(plan: Plan) -> str:
    if plan.room.host is None:
        return ""
    ranks = plan.cluster.devices_per_node
    return f"; {size(HOST_RESERVE)} of each process (assumed); of {size(plan.room.host * ranks)}"


def _margins(plan: Plan) -> str:
    if plan.room.is_cpu:
        return f"with {CPU_MARGIN:.0%} margin and {size(PROCESS_BYTES)} of the process (assumed)"
    return f"with {FRAGMENTATION:.0%} fragmentation and {size(GPU_RESERVE)} of the driver (assumed)"
