"""The command line of an entry point: Hydra's, with mistakes told as messages alone.

What is added to it: values typed without quotes, ``--help`` that says what the program does and
which sections are off, a sweep that is checked before its first job and survives one that fails.
An entry point receives dataclasses, never a ``DictConfig``.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flamingo.composition import CONF, checked_overrides, explain_composition, register
from flamingo.config import RunConfig
from flamingo.launching import in_launched_job, launcher_errors
from flamingo.structured import (
    build,
    known_keys,
    optional_defaults,
    optional_sections,
    told_by_program,
)
from flamingo.sweeps import Job, JobFailed, check_folders, compose_jobs, is_sweep

logger = logging.getLogger(__name__)

Schema = TypeVar("Schema")


def quote_values(
    arguments: Sequence[str], verbatim: Sequence[str], lists: Sequence[str] = ()
) -> list[str]:
    """``arguments`` with the values of the keys ``verbatim`` quoted for Hydra's grammar.

    A path such as ``run=runs/a/seed=0`` or a question can then be typed as it is, and so can the
    elements of ``lists`` that have no comma: ``runs=[runs/a/seed=0,runs/b/seed=0]``. The brackets
    may be left out: ``runs=runs/a/seed=0``.
    """
    result = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in verbatim and value:
            argument = f"{key}={_in_quotes(value)}"
        elif equals and key in lists:
            argument = f"{key}={_quoted_elements(value)}"
        result.append(argument)
    return result


def _in_quotes(value: str) -> str:
    if value[0] in ("'", '"'):
        return value
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"


NO_ELEMENTS = re.compile(r"null|\?\?\?|\w+\(.*\)|.*([\[\]]|\$\{).*", re.DOTALL)
"""What is typed for a list, without being one, and is none of its elements either."""


def _quoted_elements(value: str) -> str:
    """A list with its elements quoted, and elements without brackets as a list.

    As it is where it has quotes, or is neither.
    """
    inner = value.removeprefix("[").removesuffix("]")
    listed = f"[{inner}]" == value
    if not inner or "'" in inner or '"' in inner:
        return value
    if not listed and NO_ELEMENTS.fullmatch(value):
        return value
    return f"[{','.join(_in_quotes(element.strip()) for element in inner.split(',') if element)}]"


def in_lists(
    arguments: Sequence[str], schema: type, groups: Mapping[str, tuple[str, ...]] | None = None
) -> list[str]:
    """``arguments`` with those that are no keys of ``schema`` brought together in lists of it.

    What begins with one of ``groups[key]`` is put into ``key=[...]``, all else that runs are told
    into ``overrides=[...]``. Raises ``ValueError`` if such a list is typed out beside.
    """
    own: list[str] = []
    groups, known = groups or {}, known_keys(schema)
    others: dict[str, list[str]] = {key: [] for key in (*groups, "overrides")}
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        group = next((name for name, starts in groups.items() if argument.startswith(starts)), None)
        if group is not None:
            others[group].append(argument)
        elif not equals or key in known or key.startswith(("-", "hydra.")):
            own.append(argument)
        else:
            others["overrides"].append(argument)
    for key, words in others.items():
        if words and any(argument.startswith(f"{key}=") for argument in own):
            raise ValueError(f"{key}: expected all of them inside or none, got {words} beside it")
        if words:
            quoted = ",".join("'" + word.replace("'", "\\'") + "'" for word in words)
            own.append(f"{key}=[{quoted}]")
    return own


def entry_point(
    task: Callable[[Schema], Any],
    schema: type[Schema] = RunConfig,
    config_name: str = "config",
    verbatim: Sequence[str] = (),
    verbatim_lists: Sequence[str] = (),
    unbuilt: Sequence[str] = (),
    folder: Callable[[Schema], Path] | None = None,
    interrupted: str = "",
) -> None:
    """Run ``task`` with the config of the command line, under Hydra.

    A mistake in the configuration ends the process with its message alone and status 1, and so does
    a ``ValueError`` or ``OSError`` of the task (``hydra.verbose=true`` shows where). ``--help``
    opens with the docstring of the task's module and ends with the defaults of the optional
    sections. The values of ``verbatim`` keys are taken as they are typed, and so are the elements
    of ``verbatim_lists``. Of ``unbuilt`` sections, which ``task`` completes from elsewhere, it
    receives the defaults. Ctrl-C ends the process with status 130 and a line of its own, which ends
    with ``interrupted``: how to go on.

    ``--multirun`` and launchers work as Hydra documents them, with these additions. All jobs are
    composed and checked before the first one starts, and two with one ``folder`` are refused. A job
    that fails does not end the others; in the end the status is 1.
    """
    register(schema)
    arguments = quote_values(sys.argv[1:], verbatim, verbatim_lists)
    options = [a for a in arguments if a.startswith("-") or "=" not in a]
    overrides = [a for a in arguments if a not in options]
    failed: list[str] = []

    try:
        checked = checked_overrides(overrides, schema, config_name)
        jobs = _jobs(checked, schema, config_name, unbuilt, folder)
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain_composition(error, schema)}")
    except ValueError as error:
        sys.exit(f"error: {error}")
    texts = help_texts(task, schema) if {"--help", "-h"} & set(options) else []
    sys.argv[1:] = [*options, *checked, *texts]
    # Hydra then raises what goes wrong, instead of ending the process in words of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    decorate = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    try:
        decorate(_job(task, schema, unbuilt, failed))()
        if jobs:
            print(f"All {len(jobs)} jobs have ended.")
        sys.stdout.flush()
    except KeyboardInterrupt:
        logger.debug("where it happened", exc_info=True)
        _tell_interrupted(interrupted, overrides)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # Who reads what is printed (head) has seen enough. Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain_composition(error, schema)}")
    except JobFailed:
        sys.exit(f"error: {len(failed)} of the jobs failed: {'; '.join(failed)}")
    except launcher_errors() as error:
        sys.exit(f"error: a launched job failed, the others go on: {error}")


def _jobs(
    overrides: Sequence[str],
    schema: type[Schema],
    config_name: str,
    unbuilt: Sequence[str],
    folder: Callable[[Schema], Path] | None,
) -> list[Job]:
    """Of a sweep: all its jobs, checked; none where there is one thing to do."""
    if not is_sweep(overrides):
        return []
    jobs = compose_jobs(overrides, schema, config_name, CONF, unbuilt)
    if folder is not None:
        check_folders(jobs, folder)
    return jobs


def _job(
    task: Callable[[Schema], Any], schema: type[Schema], unbuilt: Sequence[str], failed: list[str]
) -> Callable[[DictConfig], Any]:
    """What Hydra calls for each job: ``task`` with dataclasses, ended as :func:`_end_job` does."""

    @functools.wraps(task)
    def with_dataclasses(composed: DictConfig) -> Any:
        try:
            keys = [str(key) for key in composed if key not in unbuilt]
            return task(build(OmegaConf.masked_copy(composed, keys), schema))
        except (ValueError, OSError) as error:
            logger.debug("where it happened", exc_info=True)
            code = f"error: {told_by_program(error, known_keys(schema))}"
        except SystemExit as end:
            code = end.code
        except Exception:
            if not (in_launched_job() or _does_jobs_in_turn()):
                raise
            # Raised, it would be told by Hydra when all jobs have ended; submitit would end the
            # job with status 0 while its other processes wait for this one.
            traceback.print_exc()
            code = 1
        # Behind the except clauses, as Hydra keeps what is raised here: raised within one it would
        # hold that error too, whose frames hold what the failed job has on a GPU.
        return _end_job(code, failed)

    return with_dataclasses


def _tell_interrupted(how_to_go_on: str, overrides: Sequence[str]) -> None:
    """Say it, on one process of those that share a job."""
    if any(o.partition("=")[0] in ("launcher", "hydra/launcher") for o in overrides):
        how_to_go_on = "Jobs that were launched may go on."
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"\nInterrupted. {how_to_go_on}".rstrip(), file=sys.stderr)


def _does_jobs_in_turn() -> bool:
    """Whether this process does the jobs of a sweep one after the other."""
    return HydraConfig.get().mode is RunMode.MULTIRUN and not in_launched_job()


def _end_job(code: str | int | None, failed: list[str]) -> None:
    """End the process with ``code``, or of jobs done in turn only the one at work.

    A signal ends all of them, and so does a failure where several processes share a job: the
    others may still be at work on it.
    """
    signalled = isinstance(code, int) and code >= 128
    job_is_shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not _does_jobs_in_turn() or signalled or (code and job_is_shared):
        sys.exit(code)
    if code:
        if isinstance(code, str):
            print(code, file=sys.stderr)
        failed.append(" ".join(HydraConfig.get().overrides.task))
        raise JobFailed(str(code))


def help_texts(task: Callable[..., Any], schema: type) -> list[str]:
    """Overrides that put the docstring of the task's module before Hydra's help, and the optional
    sections after it."""
    texts = {"header": inspect.getdoc(sys.modules[task.__module__]) or ""}
    if optional_sections(schema):
        texts["footer"] = (
            "Optional sections (off while null), as they are once any of their keys is set:\n\n"
            + optional_defaults(schema)
        )
    return [f"hydra.help.{place}='{_quoted(text)}'" for place, text in texts.items()]


def _quoted(text: str) -> str:
    """``text`` for single quotes of Hydra's grammar and the template of its help."""
    return text.replace("'", "\\'").replace("$", "$$")
