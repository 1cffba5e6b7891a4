"""A plan as text: what a device holds and does, what is exchanged, and how long the compiler thinks it takes."""

from __future__ import annotations

from collections.abc import Sequence

from parivox.hparams import HParams
from parivox.plan import Attempt, Plan, Request
from parivox.stages import has_judge, stage_of

HELD = {
    "parameters": "weights",
    "optimizer": "memory of the optimizer",
    "fixed": "weights that are not trained",
    "rows": "rows of the batch",
    "gradients": "within the temporaries",
}
"""Part of `Plan.held` -> what it is."""


def describe(request: Request, plan: Plan) -> str:
    """A plan in some 20 lines."""
    lines = [_heading(request, plan), *_settings(request), "", *_memory(request, plan)]
    if plan.fits:
        lines += ["", *_work(plan), "", *_time(request, plan)]
        lines += _faults(plan)
    return "\n".join(lines)


def describe_attempts(request: Request, tried: Sequence[Attempt]) -> str:
    """What was tried to make a program fit."""
    if not tried:
        return "nothing was tried to make it fit; take more chips, or --tries"
    lines = ["tried, one change upon the other:"]
    for one in tried:
        limit = one.plan.limit or request.topology.memory
        needed = one.plan.needed if one.plan.needed is not None else one.plan.memory["peak"]
        verdict = "fits" if one.plan.fits else "does not fit"
        lines.append(f"  {one.change}: needs {size(needed)} of {size(limit or 0)}, {verdict}")
    if tried[-1].plan.fits:
        lines += ["", describe(tried[-1].request, tried[-1].plan)]
    else:
        lines.append("  more chips, or a smaller batch, may do; see --tries")
    return "\n".join(lines)


def step_seconds(request: Request, plan: Plan) -> float | None:
    """The compiler's estimate of a step in seconds; None where it has none.

    Where the clock is known these are the cycles of the scheduled instructions, which know how often a loop runs.
    """
    chip = request.topology.chip
    if chip is not None and chip.clock and plan.cycles:
        return plan.cycles / chip.clock
    return plan.seconds


def audio_seconds(request: Request) -> float:
    """Seconds of sound that a step works on, on all devices together."""
    if request.task == "train":
        return request.config().train_batch_size * request.hp.training_seconds
    return request.rows * request.samples / request.hp.wav_rate


def size(count: int) -> str:
    """Bytes as GiB, MiB or KiB."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 2**10:,.1f} KiB"


def _heading(request: Request, plan: Plan) -> str:
    topology, words = request.topology, request.task
    if words == "train":
        words = f"train {stage_of(request.hp)}"
    devices = f"{topology.devices} devices" if topology.devices > 1 else "1 device"
    if plan.devices < topology.devices:
        devices += ", of which the command uses one"
    told = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    took = f"compiled in {plan.compile_seconds:.0f} s by {told}"
    return f"{words} on {topology.name} ({devices}), {took}; nothing was run"


def _settings(request: Request) -> list[str]:
    if request.task != "train":
        lines = [
            f"batch        {request.rows} chunks of {request.samples / request.hp.wav_rate:.2f} s in a call",
            f"precision    {request.precision}",
        ]
        if request.task == "enhance":
            lines.append(f"flow         {request.nfe} evaluations, {request.solver}")
        return lines
    config = request.config()
    network = "" if config.precision == "fp32" else f", network in {config.precision}"
    lines = [
        f"batch        {config.train_batch_size} records = {config.micro_batch_size} in a pass x"
        f" {config.accumulation_steps} passes x {config.world_size} devices; {audio_seconds(request):g} s of sound",
        f"precision    {request.precision}{network}",
        f"ZeRO         stage {config.zero_stage}",
    ]
    if config.checkpoint_activations:
        lines.append("activations  of each block computed again in the backward pass")
    if has_judge(request.hp):
        lines.append("program      that of updates with the discriminator")
    return lines


def _memory(request: Request, plan: Plan) -> list[str]:
    available = plan.limit or request.topology.memory
    of = "" if available is None else f" of {size(available)}"
    lines = ["memory of each device"]
    for part, about in HELD.items():
        if plan.held.get(part):
            lines.append(f"    {part:<12}{size(plan.held[part]):>14}  {about}")
    if not plan.fits:
        return [*lines, f"    {'needed':<12}{size(plan.needed or 0):>14}{of}: DOES NOT FIT"]
    padded = plan.memory["arguments"] - sum(plan.held.values()) + plan.held.get("gradients", 0)
    lines += [
        f"    {'padding':<12}{size(max(padded, 0)):>14}  what layouts add to the arguments",
        f"    {'temporaries':<12}{size(plan.memory['temporaries']):>14}  activations, gradients and what is between",
        f"    {'code':<12}{size(plan.memory['code']):>14}",
    ]
    peak = plan.memory["peak"]
    share = "" if available is None else f"{of}, {peak / available:.0%}: fits"
    return [*lines, f"    {'peak':<12}{size(peak):>14}{share}"]


def _work(plan: Plan) -> list[str]:
    lines = [
        "work of each device in a step" + (" (what is in a loop counted once)" if plan.loops else ""),
        f"    {plan.flops / 1e12:,.4g} TFLOP, {plan.accessed / 1e9:,.4g} GB read and written",
    ]
    if plan.loops:
        times = ", ".join("?" if one is None else str(one) for one in plan.loops)
        lines.append(f"    loops that run {times} times")
    lines.append("exchanged in a step, bytes of the whole arrays" + ("" if plan.collectives else ": nothing"))
    for kind, (count, total) in plan.collectives.items():
        lines.append(f"    {kind:<20}{count:>6} x {size(total):>14} together")
    return lines


def _time(request: Request, plan: Plan) -> list[str]:
    took = step_seconds(request, plan)
    if took is None:
        return ["time         the compiler has no estimate for these devices"]
    lines = [f"time         {took * 1e3:,.4g} ms a step, an ESTIMATE of the compiler's, never measured"]
    chip = request.topology.chip
    if chip is not None and plan.cycles and chip.clock:
        lines[0] += f" ({plan.cycles:,} cycles at {chip.clock / 1e9:.2f} GHz)"
        if plan.seconds:
            lines.append(f"             its cost model says {plan.seconds * 1e3:,.4g} ms, loops counted once")
    speed = audio_seconds(request) / took
    lines.append(f"             {speed:,.4g} s of sound a second")
    if request.task == "train":
        lines.append(_hours(request.hp, took, request.topology.chips))
    return lines


def _hours(hp: HParams, took: float, chips: int) -> str:
    hours = hp.max_steps * took / 3600
    return f"             {hp.max_steps:,} steps: {hours:,.4g} h, {hours * chips:,.4g} chip-hours"


def _faults(plan: Plan) -> list[str]:
    lines = []
    if plan.float64:
        lines.append(f"float64      in {len(plan.float64)} instructions, such as {plan.float64[0][:60]}")
    if plan.host:
        lines.append(f"host         waited for in {len(plan.host)} instructions: {plan.host[0][:60]}")
    return ["", *lines] if lines else []
