"""Time our model beside the bare language model and the peers, on equal work and weights.

    python experiments/benchmark.py                                    # everything; over an hour
    python experiments/benchmark.py cases=[train_documents] rounds=3   # one case, sooner
    python experiments/benchmark.py contenders=[bare,ours] cases=[decode,greedy] count=false
    python experiments/benchmark.py curves=true                        # how costs grow

The peers are OpenFlamingo 2.0.1 and flamingo-pytorch 0.1.2, whose code is read from pinned wheels
of the package index (nothing is installed), and Idefics of transformers. All see the same tokens
and features in the same precision, in one process and in turns. OpenFlamingo has our weights: its
logits are compared with ours first, and nothing is timed unless they agree. What a peer cannot do,
or fails at, is named with the reason.

Writes runs/benchmarks/<name>/: cases/<case>.json, table.md, speed.png; with curves=true curves.json
and curves.png. A case that is there is kept; overwrite=true times it again.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from flamingo.backbones import language as lm
from flamingo.backbones.precision import available_device, resolve_dtype
from flamingo.benchmarking.cases import Case, SizesConfig, Works
from flamingo.benchmarking.contender import Who
from flamingo.benchmarking.curves import CurvesConfig, draw_curves, measure_curves
from flamingo.benchmarking.plot import plot
from flamingo.benchmarking.results import CaseResult, finished
from flamingo.benchmarking.roofline import Machine, measure
from flamingo.benchmarking.runner import Counting, compile_parts, run_case
from flamingo.benchmarking.table import heading, section, table
from flamingo.benchmarking.timing import Effort
from flamingo.benchmarking.work import FeatureShape
from flamingo.benchmarking.world import World, build_world
from flamingo.choices import Precision
from flamingo.command_line import entry_point
from flamingo.config import LanguageConfig
from flamingo.files import write_atomically
from flamingo.model.processor import prepare_tokenizer
from flamingo.provenance import circumstances
from flamingo.structured import require


@dataclass(kw_only=True)
class BenchmarkConfig:
    """What is timed, and how often."""

    name: str = "speed"
    """Results are in runs/benchmarks/<name>."""
    cases: list[Case] = field(default_factory=lambda: list(Case))
    contenders: list[Who] = field(default_factory=lambda: list(Who))
    rounds: int = 7
    warmup: int = 1
    slow_seconds: float = 60.0
    """Calls that take longer take part in the first ``slow_rounds`` rounds alone."""
    slow_rounds: int = 2
    count: bool = True
    """FLOPs and bytes, by two more calls each."""
    memory: bool = True
    """The peak, by one more call each."""
    language_model: str = "smollm2-135m-instruct"
    """A hub name, a local folder, or the embedded model."""
    every: int = 4
    """Gated blocks stand before every n-th layer."""
    device: str | None = None
    """Default: the GPU if there is one."""
    precision: Precision = Precision.bf16
    """Of all weights and features."""
    threads: int | None = None
    """Default: torch's own number."""
    compile: bool = False
    """torch.compile of everyone's layers, each by itself."""
    overwrite: bool = False
    root: str = "runs/benchmarks"
    sizes: SizesConfig = field(default_factory=SizesConfig)
    curves: bool = False
    """Measure how costs grow, instead of the cases."""
    growth: CurvesConfig = field(default_factory=CurvesConfig)

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("warmup", 0), ("slow_rounds", 1), ("every", 1)):
            require(getattr(self, name) >= least, name, f">= {least}", getattr(self, name))
        require(bool(self.cases), "cases", "at least one", self.cases)
        names = [who.name for who in self.contenders]
        require(Who.ours in self.contenders, "contenders", "ours among them", names)

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.name

    @property
    def effort(self) -> Effort:
        return Effort(self.rounds, self.warmup, self.slow_seconds, self.slow_rounds)


@dataclass(frozen=True)
class Ready:
    """All that measuring needs."""

    world: World
    works: Works
    machine: Machine
    circumstances: dict[str, Any]


def main(config: BenchmarkConfig) -> None:
    """Measure what is missing; write and print the table.

    Raises ``ValueError`` for results of other settings under this name, and where a contender with
    our weights does not agree with ours.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = torch.device(config.device) if config.device else available_device()
    if device.index is not None and device.type == "cuda":  # else the current one is meant
        torch.cuda.set_device(device)  # whose stream events are recorded in
    settings = used_settings(config, device)
    if config.curves:
        ready = prepare(config, device)
        measured = measure_curves(ready.world, ready.works, config.growth, config.effort)
        draw_curves(measured, settings, config.folder)
        print(f"{config.folder / 'curves.json'}, curves.png")
        return
    kept = {}
    if not config.overwrite:
        kept = {
            case: finished(config.folder, case, settings, config.contenders)
            for case in config.cases
        }
    missing = [case for case in config.cases if kept.get(case) is None]
    if len(missing) < len(config.cases):
        print(f"{len(config.cases) - len(missing)} cases are there already and are kept")
    if missing:
        ready = prepare(config, device)
        for case in missing:
            tqdm.write(section(run(config, ready, case, settings)) + "\n")
    write(config, settings, device)


def used_settings(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    """What decides over the numbers of a case, for its file."""
    names = ("language_model", "every", "compile")
    return {name: getattr(config, name) for name in names} | {
        "precision": config.precision.name,
        "device": str(device),
        "machine": machine_name(device),
        "threads": torch.get_num_threads(),
        "sizes": asdict(config.sizes),
    }


def prepare(config: BenchmarkConfig, device: torch.device) -> Ready:
    """Build the contenders, compare them, and measure the machine."""
    language = LanguageConfig(name=config.language_model)
    model = lm.load_language_model(language, torch.float32)
    tokenizer = prepare_tokenizer(lm.load_tokenizer(language), lm.vocabulary_size(model))
    dtype, sizes = resolve_dtype(config.precision, device), config.sizes
    world = build_world(
        model,
        tokenizer,
        config.contenders,
        every=config.every,
        shape=FeatureShape(sizes.patches, sizes.vision_dim),
        images=max(sizes.document_images, sizes.short_images),
        device=device,
        dtype=dtype,
    )
    for who, difference in world.agreement.items():
        print(f"{who.value}: logits as ours, to {difference:.1e} of their spread")
    for who, reason in world.absent.items():
        print(f"{who.value}: absent: {reason}")
    if config.compile:
        compile_parts(world)
    works = Works(sizes, world.tokens, device, dtype, tokenizer)
    told = circumstances() | {
        "agreement": {who.name: value for who, value in world.agreement.items()},
        "notes": {who.name: contender.note for who, contender in world.contenders.items()},
    }
    return Ready(world, works, measure(device, dtype), told)


def run(config: BenchmarkConfig, ready: Ready, case: Case, settings: dict[str, Any]) -> CaseResult:
    """One case, with a bar of its calls, written to its file."""
    calls = (config.rounds + config.warmup) * len(ready.world.contenders)
    with tqdm(total=calls, desc=case.name, unit="call", leave=False) as bar:

        def tell(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        result = run_case(
            ready.world,
            ready.works,
            case,
            config.effort,
            Counting(config.count, config.memory),
            ready.machine,
            settings,
            tell,
        )
    result.circumstances = ready.circumstances
    result.write(config.folder)
    return result


def write(config: BenchmarkConfig, settings: dict[str, Any], device: torch.device) -> None:
    """table.md and speed.png of all cases that were done with these settings."""
    results = []
    for case in Case:
        try:
            result = finished(config.folder, case, settings)
        except ValueError:  # of an earlier run with others; not asked for now
            continue
        if result is not None:
            results.append(result)
    text = table(results, heading(results, where(config, device)))
    write_atomically(config.folder / "table.md", text)
    plot(results, config.folder / "speed.png")
    print(f"{config.folder / 'table.md'}, speed.png")


def where(config: BenchmarkConfig, device: torch.device) -> str:
    """Machine and sizes in words."""
    name = machine_name(device)
    if device.type != "cuda":
        threads = torch.get_num_threads()
        name += f", {threads} thread{'s' * (threads > 1)}"
    sizes = config.sizes
    return (
        f"{config.language_model}, blocks before every {config.every}th layer, "
        f"{resolve_dtype(config.precision, device)}, features of {sizes.patches} x "
        f"{sizes.vision_dim}, prompts of {sizes.shot_tokens} tokens a shot; {name}, torch "
        f"{torch.__version__}"
    )


def machine_name(device: torch.device) -> str:
    """Which GPU or CPU ``device`` is, so that numbers of two kinds are not put side by side."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = cpu_model()
    return f"{platform.machine()} CPU" + (f" ({model})" if model else "")


def cpu_model(information: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as Linux tells it; "" where nothing does."""
    lines = information.read_text().splitlines() if information.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")


if __name__ == "__main__":
    entry_point(main, BenchmarkConfig, "benchmark_speed", verbatim=["language_model", "root"])
