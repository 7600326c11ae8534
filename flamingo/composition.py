"""Composing ``conf/`` and overrides into a config: for entry points, tests and notebooks.

Hydra does the composing. Four things are added to it here. Unknown keys are refused with the
nearest known one, before Hydra advises to append them. What Hydra refuses is said as our own checks
say it: the field, what it takes, what came. A section that is off by default is switched on by
setting any of its keys (``data.easy_vqa.pairs=6``; ``data.easy_vqa=null`` switches it off). And an
entry point receives dataclasses, never a ``DictConfig``.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_type_hints, overload

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flamingo.config import RunConfig
from flamingo.launching import in_launched_job, launcher_errors
from flamingo.structured import (
    build,
    expected,
    explain,
    field_type,
    known_keys,
    nearest,
    optional_defaults,
    optional_sections,
    refuse,
    section,
    told_by_program,
)
from flamingo.sweeps import Job, JobFailed, check_folders, compose_jobs, is_sweep

logger = logging.getLogger(__name__)

CONF = Path(__file__).resolve().parent.parent / "conf"
"""The folder of YAML files, beside the package in a checkout."""
SCHEMA = "schema"
"""Name under which the dataclasses stand first in the defaults list of a file of ``conf/``."""
Schema = TypeVar("Schema")


def register(schema: type, name: str = SCHEMA) -> None:
    """Tell Hydra of a schema, and of the groups that switch its optional sections on."""
    store = ConfigStore.instance()
    store.store(name=name, node=schema)
    for optional in optional_sections(schema):
        # An empty mapping, merged over null, gives the section its defaults.
        store.store(group=optional.replace(".", "/"), name="default", node={})


def groups(config_name: str) -> list[str]:
    """The folders of ``conf/`` that ``conf/<config_name>.yaml`` selects an option from."""
    defaults = OmegaConf.select(OmegaConf.load(CONF / f"{config_name}.yaml"), "defaults")
    selected = {str(key) for entry in defaults if isinstance(entry, DictConfig) for key in entry}
    return sorted(group for group in selected if (CONF / group).is_dir())


def checked_overrides(
    overrides: Sequence[str], schema: type, config_name: str = "config"
) -> list[str]:
    """``overrides`` and what switches on the optional sections they set keys of.

    Raises ``ValueError`` for a key that neither the schema nor a group of ``config_name`` has, and
    for a value in the place of a section.
    """
    options = groups(config_name)
    known = {*known_keys(schema), *options}
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    keys = [override.key_or_group for override in parsed]
    ours = [k for k in keys if "/" not in k and "@" not in k and not k.startswith("hydra.")]
    unknown = [key for key in ours if key not in known]
    refuse(unknown, known, {key: _of_a_run(key, schema) for key in unknown})
    for override in parsed:
        _refuse_value_of_section(override, schema, options)
    switched = [s for s in optional_sections(schema) if any(k.startswith(f"{s}.") for k in keys)]
    return [*overrides, *(f"+{name.replace('.', '/')}=default" for name in switched)]


def _of_a_run(key: str, schema: type) -> str:
    """What a program with another schema is told of a key that runs have."""
    if schema is RunConfig or field_type(RunConfig, key) is None:
        return ""
    theirs, own = get_type_hints(RunConfig), get_type_hints(schema)
    shared = [
        f"{name}.*"
        for name, hint in own.items()
        if section(hint) is not None and section(hint) is section(theirs.get(name))
    ]
    taken = f"{', '.join(shared)} alone" if shared else "none"
    return f" of this program, which takes {taken} of a run's configuration"


def _refuse_value_of_section(override: Override, schema: type, options: Sequence[str]) -> None:
    """Hydra takes a section for a group, and ends with a traceback for what names no option."""
    key = override.key_or_group
    if override.is_sweep_override() or override.is_delete():
        return
    value, hint = override.value(), field_type(schema, key)
    if key in options and not isinstance(value, str | dict | list | None):
        raise ValueError(f"{key}: expected an option of conf/{key}, got {value!r}")
    off = value is None and key in optional_sections(schema)
    if key not in options and section(hint) and not off and not isinstance(value, dict):
        got = "null" if value is None else repr(value)
        raise ValueError(f"{key}: expected {expected(hint)}, got {got}")


def explain_composition(error: Exception, schema: type) -> str:
    """What Hydra or OmegaConf refused: the field, what it takes, what came."""
    match error, error.__cause__:
        case OverrideParseException(), _:
            if "=" not in error.override:
                return f"{error.override}: expected key=value, got no '='"
            what = error.message.splitlines()[0]
            return f"{error.override}: expected key=value in Hydra's grammar, got {what}"
        case MissingConfigException(options=[_, *_]), _:
            group, _, name = str(error.missing_cfg_file).rpartition("/")
            known = error.options or ()
            listed = ", ".join(known)
            if name.startswith("submitit_"):
                return (
                    f"launcher: expected submitit's plugin (pip install -e '.[slurm]'), no {name}"
                )
            return f"{group}: expected one of {listed}, got {name!r}{nearest(name, known)}"
        case (OmegaConfBaseException() as refused, _) | (_, OmegaConfBaseException() as refused):
            return explain(refused, schema)
        case _:
            return str(error)


@overload
def compose(overrides: Sequence[str]) -> RunConfig: ...
@overload
def compose(overrides: Sequence[str], schema: type[Schema], config_name: str) -> Schema: ...
def compose(
    overrides: Sequence[str] = (), schema: type = RunConfig, config_name: str = "config"
) -> Any:
    """The config that an entry point would receive for these command-line ``overrides``.

    ``compose(["experiment=quickstart", "training.steps=10"])``. Raises ``ValueError`` for
    whatever is wrong with them.
    """
    register(schema)
    try:
        checked = checked_overrides(overrides, schema, config_name)
        with _job_put_aside(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra.compose(config_name, checked)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain_composition(error, schema)) from error
    return build(composed, schema)


@contextmanager
def _job_put_aside() -> Iterator[None]:
    """Hydra holds one composition at a time: that of the job at work is put back afterwards."""
    held, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = held


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


def entry_point(
    task: Callable[[Schema], Any],
    schema: type[Schema] = RunConfig,
    config_name: str = "config",
    verbatim: Sequence[str] = (),
    verbatim_lists: Sequence[str] = (),
    unbuilt: Sequence[str] = (),
    folder: Callable[[Schema], Path] | None = None,
) -> None:
    """Run ``task`` with the config of the command line, under Hydra.

    A mistake in the configuration ends the process with its message alone and status 1, and so does
    a ``ValueError`` or ``OSError`` of the task (``hydra.verbose=true`` shows where). ``--help``
    opens with the docstring of the task's module and ends with the defaults of the optional
    sections. The values of ``verbatim`` keys are taken as they are typed, and so are the elements
    of ``verbatim_lists``. Of ``unbuilt`` sections, which ``task`` completes from elsewhere, it
    receives the defaults.

    ``--multirun`` and launchers work as Hydra documents them, with these additions. All jobs are
    composed and checked before the first one starts, and two with one ``folder`` are refused. A job
    that fails does not end the others; in the end the status is 1.
    """
    register(schema)
    arguments = quote_values(sys.argv[1:], verbatim, verbatim_lists)
    options = [a for a in arguments if a.startswith("-") or "=" not in a]
    overrides = [a for a in arguments if a not in options]
    failed: list[str] = []

    @functools.wraps(task)
    def with_dataclasses(composed: DictConfig) -> Any:
        try:
            keys = [str(key) for key in composed if key not in unbuilt]
            return task(build(OmegaConf.masked_copy(composed, keys), schema))
        except (ValueError, OSError) as error:
            logger.debug("where it happened", exc_info=True)
            return _end_job(f"error: {told_by_program(error, known_keys(schema))}", failed)
        except SystemExit as end:
            return _end_job(end.code, failed)
        except Exception:
            if not in_launched_job():
                raise
            # Handed back to submitit it would end with status 0, and the job's other processes
            # would wait for this one.
            traceback.print_exc()
            sys.exit(1)

    jobs: list[Job] = []
    try:
        checked = checked_overrides(overrides, schema, config_name)
        if is_sweep(checked):
            jobs = compose_jobs(checked, schema, config_name, CONF, unbuilt)
            if folder is not None:
                check_folders(jobs, folder)
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
        decorate(with_dataclasses)()
        if jobs:
            print(f"All {len(jobs)} jobs have ended.")
        sys.stdout.flush()
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


def _end_job(code: str | int | None, failed: list[str]) -> None:
    """End the process with ``code``, or of jobs that share one process only the job at work.

    A signal ends all of them.
    """
    serial = HydraConfig.get().mode is RunMode.MULTIRUN and not in_launched_job()
    if not serial or (isinstance(code, int) and code >= 128):
        sys.exit(code)
    if code:
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
