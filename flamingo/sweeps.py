"""The jobs of a Hydra sweep, looked at before any of them starts.

Hydra composes a job when its turn comes. A mistake in the last one, or two that would write into
one folder, would be noticed after days; here all are composed and checked first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from flamingo.structured import build

Schema = TypeVar("Schema")


class JobFailed(Exception):
    """A job of a sweep ended with an error, which has been printed; the others go on."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep."""

    overrides: tuple[str, ...]
    """What of its overrides the sweep varies."""
    config: Any


def own_overrides() -> list[str]:
    """Those that this job was composed with; under submitit ``sys.argv`` does not tell them."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def is_sweep(overrides: Sequence[str]) -> bool:
    """Whether any of ``overrides`` has several values."""
    return any(
        o.is_sweep_override() for o in OverridesParser.create().parse_overrides([*overrides])
    )


def compose_jobs(
    overrides: Sequence[str], schema: type, config_name: str, conf: Path, unbuilt: Sequence[str]
) -> list[Job]:
    """Every job that Hydra's sweeper makes of ``overrides``, in its order.

    Raises ``ValueError``, with the job, for whatever is wrong with one of them.
    """
    jobs, before = [], HydraConfig.instance().cfg
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides([*overrides])
        varied = {o.get_key_element() for o in parsed if o.is_sweep_override()}
        for given in BasicSweeper.split_arguments(parsed, None)[0]:
            own = tuple(o for o in given if o.partition("=")[0] in varied)
            composed = hydra.compose(config_name, given, return_hydra_config=True)
            HydraConfig.instance().set_config(composed)  # for ${hydra:...}
            keys = [str(key) for key in composed if key not in ("hydra", *unbuilt)]
            try:
                config = build(OmegaConf.masked_copy(composed, keys), schema)
            except ValueError as error:
                raise ValueError(f"job {' '.join(own)}: {error}") from error
            finally:
                HydraConfig.instance().cfg = before
            jobs.append(Job(own, config))
    return jobs


def check_folders(jobs: Sequence[Job], folder: Callable[[Any], Path]) -> None:
    """Raise ``ValueError`` if two of ``jobs`` would write into one folder."""
    taken: dict[Path, Job] = {}
    for job in jobs:
        other = taken.setdefault(folder(job.config), job)
        if other is not job:
            keys = sorted({o.partition("=")[0] for o in (*job.overrides, *other.overrides)})
            idiom = "-".join(f"${{{key}}}" for key in keys if key != "seed")
            raise ValueError(
                f"name: expected a folder of its own for each job of a sweep, got "
                f"{folder(job.config)} for both {' '.join(other.overrides)} and "
                f"{' '.join(job.overrides)}; put what differs into the name, such as "
                f"'name={job.config.name}-{idiom}' (of a group: "
                "${hydra:runtime.choices.ablation})"
            )
