"""Composing ``conf/`` and overrides into a config: for entry points, tests and notebooks.

Hydra does the composing. Three things are added to it here. Unknown keys are refused with the
nearest known one, before Hydra advises to append them. What Hydra refuses is said as our own checks
say it: the field, what it takes, what came. And a section that is off by default is switched on by
setting any of its keys (``data.easy_vqa.pairs=6``; ``data.easy_vqa=null`` switches it off).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_type_hints, overload

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flamingo.config import RunConfig
from flamingo.structured import (
    build,
    expected,
    explain,
    field_type,
    known_keys,
    nearest,
    optional_sections,
    refuse,
    section,
)

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
    # Hydra refuses one that is there already, as in a command that was recorded.
    return [*overrides, *(s for s in _switches(overrides, schema) if s not in overrides)]


def as_typed(overrides: Sequence[str], schema: type) -> list[str]:
    """``overrides`` without what :func:`checked_overrides` adds to them."""
    added = _switches(overrides, schema)
    return [override for override in overrides if override not in added]


def _switches(overrides: Sequence[str], schema: type) -> list[str]:
    """What switches on the optional sections that ``overrides`` set keys of."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    keys = [override.key_or_group for override in parsed]
    switched = [s for s in optional_sections(schema) if any(k.startswith(f"{s}.") for k in keys)]
    return [f"+{name.replace('.', '/')}=default" for name in switched]


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
            hint = nearest(name, known)
            if group == "experiment" and (CONF / "sweeps" / f"{name}.yaml").is_file():
                hint = "; it is a sweep, which experiments/ablate.py runs"
            return f"{group}: expected one of {listed}, got {name!r}{hint}"
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


def update_evaluation(values: DictConfig, overrides: Sequence[str]) -> None:
    """Set in ``values``, a run's configuration, what ``evaluation.*=`` among ``overrides`` say."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group.startswith("evaluation."):
            OmegaConf.update(values, override.key_or_group, override.value())


@contextmanager
def _job_put_aside() -> Iterator[None]:
    """Hydra holds one composition at a time: that of the job at work is put back afterwards."""
    held, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = held
