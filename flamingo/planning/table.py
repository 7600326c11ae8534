"""A plan as text."""

from __future__ import annotations

from collections.abc import Sequence

from flamingo.planning.flops import Flops
from flamingo.planning.plan import DAY, DevicePlan, Plan
from flamingo.planning.trial import Pair, Trial

GIB = 2**30
USABLE = 0.9
"""Of a device's memory; the rest is its context, fragmentation and workspace."""


def plan_text(plan: Plan) -> str:
    """The whole plan, a section each for parameters, operations, memory and time."""
    sections = (_parameters(plan), _operations(plan), _memory(plan), _time(plan))
    return "\n\n".join([f"Plan of {plan.config.name}", *sections])


def _rows(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _parameters(plan: Plan) -> str:
    rows = [["Parameters", "", ""]]
    for part, (count, trained) in plan.parameters.items():
        rows.append([part.replace("_", " "), f"{count:,}", "trained" if trained else "frozen"])
    for trains, word in ((True, "trained"), (False, "frozen")):
        total = sum(count for count, trained in plan.parameters.values() if trained is trains)
        rows.append(["together", f"{total:,}", word])
    return _rows(rows)


def _operations(plan: Plan) -> str:
    work = plan.work
    rows = [["FLOPs of a step", "forward", "backward", "recomputed", "a sequence", "a token"]]
    for part, flops in plan.flops.items():
        numbers = [flops.forward, flops.backward, flops.recomputed]
        rows.append([part, *map(quantity, [*numbers, flops.total / work.sequences])])
        rows[-1].append(quantity(flops.total / work.tokens))
    sums = sum(plan.flops.values(), Flops())
    numbers = [sums.forward, sums.backward, sums.recomputed]
    numbers += [plan.step_flops / n for n in (work.sequences, work.tokens)]
    rows.append(["together", *map(quantity, numbers)])
    cached = plan.config.data.cache_features
    lines = [
        f"  a step: {work.sequences:g} sequences, {work.tokens:,.0f} tokens "
        f"({work.padded_tokens:,.0f} with padding), {work.media:,.0f} media, {work.learned:,.0f} "
        "tokens learned",
        f"  ({work.origin})",
        f"  needed, without padding and recomputation: {quantity(plan.needed_flops)}, "
        f"{plan.needed_flops / plan.step_flops:.0%} of what is computed",
    ]
    if cached:
        lines.append("  images are encoded once, beforehand (data.cache_features), not in a step")
    return "\n".join([_rows(rows), *lines])


def _memory(plan: Plan) -> str:
    header = ["GiB on one device", *map(_layout_name, plan.memory)]
    rows = [header]
    for part in plan.memory[0].bytes:
        rows.append([part, *(f"{device.bytes[part] / GIB:.2f}" for device in plan.memory)])
    rows.append(["together", *(f"{device.total / GIB:.2f}" for device in plan.memory)])
    gib = plan.config.device_gib
    fits = [device.total / GIB <= USABLE * gib for device in plan.memory]
    rows.append([f"fits {gib:g} GiB", *("yes" if fit else "no" for fit in fits)])
    batches = dict.fromkeys(device.batch for device in plan.memory)
    told = []
    for batch in batches:  # the largest one of each layout
        names = ", ".join(_layout_name(device) for device in plan.memory if device.batch == batch)
        whose = f" ({names})" if len(batches) > 1 else ""
        told.append(
            f"  micro-batch{whose}: {batch.rows} rows of {batch.tokens} tokens, {batch.media} media"
        )
    told[-1] += f" ({_division(plan)}); activations are an estimate"
    return "\n".join(
        [
            _rows(rows),
            f"  configured: {_layout_name(plan.configured)} (training.sharding, "
            "training.gradient_checkpointing)",
            *told,
        ]
    )


def _division(plan: Plan) -> str:
    """What of the configuration decides the micro-batches."""
    training = plan.config.training
    names = ["packing"] if training.packing is not None else []
    names += ["micro_batches" if training.micro_batch_tokens is None else "micro_batch_tokens"]
    return ", ".join(f"training.{name}={getattr(training, name)}" for name in names)


def _layout_name(device: DevicePlan) -> str:
    layout = device.layout
    plain = "one" if layout.devices == 1 else "copies"
    name = "sharded" if layout.sharded else plain
    return name + (", checkpointed" if layout.checkpointing else "")


def _time(plan: Plan) -> str:
    config, step = plan.config, plan.seconds_per_step
    rate = plan.work.tokens / step
    peak = f"{config.device_tflops:g} TFLOP/s"
    return "\n".join(
        [
            "  Time",
            f"  {config.gpus} x {peak}, of which needed operations reach {config.mfu:.0%} (mfu)",
            f"  {step:.3g} s a step, {rate:,.0f} tokens and {plan.work.media / step:,.0f} media a "
            "second",
            f"  {plan.steps:,} steps, {plan.steps * plan.work.tokens:.3g} tokens: "
            f"{duration(plan.days * DAY)}",
        ]
    )


def trial_text(trial: Trial) -> str:
    """What a trial measured beside what was planned, and their ratio."""
    batch = trial.batch
    rows = [["Measured here", "planned", "measured", "measured/planned"]]
    for name, pair in trial.flops.items():
        rows.append([f"FLOPs, {name}", *map(quantity, (pair.planned, pair.measured)), _ratio(pair)])
    for name, pair in trial.bytes.items():
        cells = [f"{size / GIB:.4f}" for size in (pair.planned, pair.measured)]
        rows.append([f"GiB, {name}", *cells, _ratio(pair)])
    lines = [
        _rows(rows),
        f"  {trial.device} in {trial.dtype}: a micro-batch of {batch.rows} sequences of "
        f"{batch.tokens} tokens, {batch.media} media, {batch.learned} tokens learned",
        f"  {trial.seconds:.3g} s a step (the median of {trial.steps})",
    ]
    if trial.peak is not None:
        least = trial.needed / trial.peak
        lines[-1] += (
            f", {least:.3g} s at the peak of {trial.peak / 1e12:.3g} TFLOP/s: "
            f"mfu={least / trial.seconds:.2f}"
        )
    return "\n".join(lines)


def _ratio(pair: Pair) -> str:
    return f"{pair.measured / pair.planned:.3f}" if pair.planned else ""


def quantity(number: int | float) -> str:
    """Three digits and a power of a thousand: ``1.23 T``."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if number < 999.5:
            return f"{number:.3g} {unit}".rstrip()
        number /= 1000
    return f"{number:.3g} Z"


def duration(seconds: int | float) -> str:
    """In the unit that suits: days from two on, hours from two on, else minutes."""
    if seconds >= 2 * DAY:
        return f"{seconds / DAY:.1f} days"
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes"
