"""Composing ``conf/`` and overrides into a config: for entry points, tests and notebooks.

Hydra does the composing. Three things are added to it here. Unknown keys are refused with the
nearest known one, before Hydra advises to append them. A section that is off by default is
switched on by setting any of its keys (``data.easy_vqa.pairs=6``; ``data.easy_vqa=null`` switches
it off). And an entry point receives dataclasses, never a ``DictConfig``.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from flamingo.config import RunConfig
from flamingo.structured import build, known_keys, optional_sections, refuse

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


def checked_overrides(overrides: Sequence[str], schema: type) -> list[str]:
    """``overrides`` and what switches on the optional sections they set keys of.

    Raises ``ValueError`` for a key that neither the schema nor a folder of ``conf/`` has.
    """
    known = {*known_keys(schema), *(folder.name for folder in CONF.iterdir() if folder.is_dir())}
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    keys = [override.key_or_group for override in parsed]
    ours = [k for k in keys if "/" not in k and "@" not in k and not k.startswith("hydra.")]
    refuse([key for key in ours if key not in known], known)
    switched = [s for s in optional_sections(schema) if any(k.startswith(f"{s}.") for k in keys)]
    return [*overrides, *(f"+{name.replace('.', '/')}=default" for name in switched)]


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
        checked = checked_overrides(overrides, schema)
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra.compose(config_name, checked)
    except HydraException as error:
        cause = f": {str(error.__cause__).splitlines()[0]}" if error.__cause__ else ""
        raise ValueError(f"{error}{cause}") from error
    return build(composed, schema)


def quote_values(
    arguments: Sequence[str], verbatim: Sequence[str], lists: Sequence[str] = ()
) -> list[str]:
    """``arguments`` with the values of the keys ``verbatim`` quoted for Hydra's grammar.

    A path such as ``run=runs/a/seed=0`` or a question can then be typed as it is, and so can the
    elements of ``lists`` that have no comma: ``runs=[runs/a/seed=0,runs/b/seed=0]``.
    """
    result = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in verbatim and value:
            argument = f"{key}={_quoted(value)}"
        elif equals and key in lists:
            argument = f"{key}={_quoted_elements(value)}"
        result.append(argument)
    return result


def _quoted(value: str) -> str:
    if value[0] in ("'", '"'):
        return value
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"


def _quoted_elements(value: str) -> str:
    """A list with its elements quoted; as it is where it is no list or has quotes."""
    inner = value.removeprefix("[").removesuffix("]")
    if f"[{inner}]" != value or not inner or "'" in inner or '"' in inner:
        return value
    return f"[{','.join(_quoted(element.strip()) for element in inner.split(',') if element)}]"


def entry_point(
    task: Callable[[Schema], Any],
    schema: type[Schema] = RunConfig,
    config_name: str = "config",
    verbatim: Sequence[str] = (),
    verbatim_lists: Sequence[str] = (),
) -> None:
    """Run ``task`` with the config of the command line, under Hydra.

    A mistake in the configuration ends the process with its message alone. ``--help`` opens with
    the docstring of the task's module. ``--multirun`` and launchers work as Hydra documents them.
    The values of ``verbatim`` keys are taken as they are typed, and so are the elements of
    ``verbatim_lists``.
    """
    register(schema)
    arguments = quote_values(sys.argv[1:], verbatim, verbatim_lists)
    options = [a for a in arguments if a.startswith("-") or "=" not in a]
    overrides = [a for a in arguments if a not in options]
    try:
        checked = checked_overrides(overrides, schema)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except HydraException:
        checked = overrides  # not in Hydra's grammar: its own message points at the place
    documentation = inspect.getdoc(sys.modules[task.__module__]) or ""
    quoted = documentation.replace("'", "\\'").replace("$", "$$")
    help_header = [f"hydra.help.header='{quoted}'"] if {"--help", "-h"} & set(options) else []

    @functools.wraps(task)
    def with_dataclasses(composed: DictConfig) -> Any:
        try:
            config = build(composed, schema)
        except ValueError as error:
            sys.exit(f"error: {error}")
        return task(config)

    sys.argv[1:] = [*options, *checked, *help_header]
    decorate = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    decorate(with_dataclasses)()
