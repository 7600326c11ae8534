"""Configurations: what is composed is checked, what is nonsense is named, YAML loses nothing."""

import re
from dataclasses import replace
from enum import Enum

import pytest
from omegaconf import OmegaConf

from experiments.compare import CompareConfig
from flamingo import choices
from flamingo.choices import ClipStorage, Collection, Condition, Pooling, ResamplerKind
from flamingo.composition import CONF, as_typed, checked_overrides, compose
from flamingo.config import (
    BindingSourceConfig,
    CrossAttentionConfig,
    DataConfig,
    EasyVQASourceConfig,
    ModelConfig,
    ResamplerConfig,
    RunConfig,
    TrainingConfig,
    config_from_yaml,
    config_to_yaml,
    to_config,
)
from flamingo.evaluation_config import (
    BindingBenchmarkConfig,
    DemonstrationsConfig,
    EasyVQABenchmarkConfig,
    EvaluateConfig,
    EvaluationConfig,
    FolderBenchmarkConfig,
)
from flamingo.source_config import (
    CaptionShardsSourceConfig,
    ClipsSourceConfig,
    COCOCaptionsSourceConfig,
    InterleavedSourceConfig,
    MMC4SourceConfig,
    OBELICSSourceConfig,
    ShardsConfig,
)
from flamingo.structured import (
    expected,
    field_type,
    known_keys,
    optional_sections,
    told_by_program,
    unknown_keys,
)

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
GROUPS = sorted(
    f"{group}={path.stem}" for group in ("vision", "language") for path in (CONF / group).iterdir()
)


# ---------------------------------------------------------------------------- composition


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_validates_and_is_named_after_its_file(experiment):
    config = compose([f"experiment={experiment}"])
    assert isinstance(config, RunConfig)
    assert config.name == experiment
    published = experiment.startswith("openflamingo_") and not experiment.endswith("_training")
    assert bool(config.data.sources) != published  # to be evaluated


@pytest.mark.parametrize("choice", GROUPS)
def test_every_backbone_composes(choice):
    group, _ = choice.split("=")
    default = getattr(RunConfig(name="x"), group)
    chosen = getattr(compose(["name=x", choice]), group)
    assert type(chosen) is type(default)
    assert chosen.name


def test_what_no_file_sets_has_the_default_of_the_dataclass():
    assert compose(["name=x"]) == RunConfig(name="x")


def test_the_command_line_has_the_last_word_over_an_experiment():
    config = compose(["experiment=quickstart", "name=mine"])
    assert (config.name, config.vision.name) == ("mine", "efficientnet-lite0")
    config = compose(["experiment=quickstart", "vision=siglip_base", "training.steps=77"])
    assert config.vision.name.startswith("google/siglip")
    assert config.training.steps == 77
    assert config.training.lr == compose(["experiment=quickstart"]).training.lr


def test_setting_a_key_of_an_optional_section_switches_it_on():
    config = compose(["name=x", "data.easy_vqa.pairs=6"])
    assert config.data.easy_vqa == EasyVQASourceConfig(pairs=6)
    assert config.data.binding is None


def test_what_switches_a_section_on_may_be_given_as_well():
    typed = ["name=x", "data.easy_vqa.pairs=6", "+data/binding=default"]
    checked = checked_overrides(typed, RunConfig)
    assert checked == [*typed, "+data/easy_vqa=default"]
    assert checked_overrides(checked, RunConfig) == checked
    assert compose(checked) == compose(typed)
    assert as_typed(checked, RunConfig) == typed, "what was typed stays"


def test_setting_a_key_of_a_section_that_is_on_keeps_its_other_values():
    before = compose(["experiment=quickstart"]).data.easy_vqa
    after = compose(["experiment=quickstart", "data.easy_vqa.pairs=6"]).data.easy_vqa
    assert before is not None and after == replace(before, pairs=6)


def test_null_switches_a_section_off():
    assert compose(["experiment=quickstart", "data.binding=null"]).data.binding is None


def test_a_folder_benchmark_needs_no_more_than_its_path():
    folder = compose(["name=x", "evaluation.folder.path=/photos"]).evaluation.folder
    assert folder == FolderBenchmarkConfig(path="/photos")


def test_seeds_of_one_run_live_side_by_side():
    directory = compose(["name=x", "seed=3", "runs=elsewhere"]).directory
    assert str(directory) == "elsewhere/x/seed=3"


def test_choices_are_written_as_they_are_named():
    """Runs and models are saved by names, and some were saved by values."""
    enums = [c for c in vars(choices).values() if isinstance(c, type) and issubclass(c, Enum)]
    members = [member for enum in enums if enum is not Enum for member in enum]
    assert len(members) > 100
    assert [m for m in members if m.name != m.value] == []


# ---------------------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainning.steps=5", "trainning.steps: unknown .* did you mean training.steps?"),
        ("training.step=5", "training.step: unknown .* did you mean training.steps?"),
        ("+training.step=5", "training.step: unknown .* did you mean training.steps?"),
        ("++data.easy_vqa.pears=5", "pears: unknown .* did you mean data.easy_vqa.pairs?"),
        ("+brand.new=1", "brand.new: unknown configuration key"),
        ("expermient=smoke", "expermient: unknown .* did you mean experiment?"),
        ("+data={foo: 1}", "data.foo|foo"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(override, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        compose(["name=x", override])


def test_unknown_keys_are_found_at_every_depth_also_below_optional_sections():
    values = {"name": "x", "foo": 1, "data": {"easy_vqa": {"pairs": 1, "bar": 2}, "binding": None}}
    assert unknown_keys(values, RunConfig) == ["foo", "data.easy_vqa.bar"]
    with pytest.raises(ValueError, match=r"foo: unknown[^\n]*\ndata.easy_vqa.bar: unknown"):
        to_config(OmegaConf.create(values))


def test_optional_sections_and_keys_are_read_from_the_schema():
    optional = optional_sections(RunConfig)
    assert optional[:2] == ["data.easy_vqa", "data.binding"]
    assert {"evaluation.easy_vqa", "evaluation.folder", "evaluation.vl_icl"} <= set(optional)
    assert "evaluation" not in optional and "evaluation.vqav2.test" not in optional
    assert {"name", "data", "data.binding.collection", "model.resampler.depth"} <= {
        *known_keys(RunConfig)
    }


# ---------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps=many", "training.steps: expected a whole number, got 'many'"),
        ("training.steps=", "training.steps: expected a whole number, got ''"),
        ("training.steps=null", "training.steps: expected a whole number, got null"),
        ("training.lr=[1]", "training.lr: expected a number, got [1]"),
        ("data.cache_features=maybe", "data.cache_features: expected true or false, got 'maybe'"),
        (
            "training.schedule=cosin",
            "training.schedule: expected one of constant, cosine, linear, got 'cosin'; "
            "did you mean cosine?",
        ),
        ("training.betas=[a]", "training.betas[0]: expected a number, got 'a'"),
        (
            "evaluation.shots=3",
            "evaluation.shots: expected a list, of which each is a whole number, got 3",
        ),
        ("data.easy_vqa.pairs=x", "data.easy_vqa.pairs: expected a whole number, got 'x'"),
        (
            "model.cross_attention.every=1.5",
            "model.cross_attention.every: expected a whole number or null, got 1.5",
        ),
        (
            "model.cross_attention.layers=[1,a]",
            "model.cross_attention.layers[1]: expected a whole number, got 'a'",
        ),
        ("data=5", "data: expected a section (its keys are set one by one), got 5"),
        ("training=x", "training: expected a section (its keys are set one by one), got 'x'"),
        (
            "data.easy_vqa=3",
            "data.easy_vqa: expected a section (its keys are set one by one) or null, got 3",
        ),
        ("training.lr=${x}", "training.lr: Interpolation key 'x' not found"),
        (
            "experiment=quickstar",
            f"experiment: expected one of {', '.join(EXPERIMENTS)}, got 'quickstar'; "
            "did you mean quickstart?",
        ),
        (
            "experiment=ablation_media",
            f"experiment: expected one of {', '.join(EXPERIMENTS)}, got 'ablation_media'; "
            "it is a sweep, which experiments/ablate.py runs",
        ),
        ("vision=5", "vision: expected an option of conf/vision, got 5"),
        ("training", "training: expected key=value, got no '='"),
    ],
)
def test_a_wrong_value_is_named_with_what_the_field_takes(override, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compose(["name=x", override])


def test_an_option_that_a_group_lacks_is_named_with_those_it_has():
    with pytest.raises(ValueError) as raised:
        compose(["name=x", "vision=clip_vit"])
    files = sorted(path.stem for path in (CONF / "vision").glob("*.yaml"))
    listed, _, rest = str(raised.value).removeprefix("vision: expected one of ").partition(", got ")
    assert listed.split(", ") == files
    assert rest == "'clip_vit'; did you mean clip_vit_l14?"


def test_a_group_that_a_config_does_not_select_from_is_an_unknown_key():
    with pytest.raises(ValueError, match="^vision: unknown configuration key"):
        compose(["vision=clip_vit_l14"], EvaluationConfig, "ask")


def test_a_program_says_which_keys_of_a_run_it_takes():
    with pytest.raises(ValueError) as told:
        compose(["training.lr=1", "runs=x"], EvaluateConfig, "evaluate")
    assert str(told.value).splitlines() == [
        "training.lr: unknown configuration key of this program, which takes evaluation.* alone of "
        "a run's configuration",
        "runs: unknown configuration key of this program, which takes evaluation.* alone of a "
        "run's configuration; did you mean run?",
    ]
    with pytest.raises(ValueError, match="training.lr: .* which takes none of a run's configurat"):
        compose(["training.lr=1"], CompareConfig, "compare")


def test_a_key_that_a_program_hands_on_may_be_meant_for_itself():
    with pytest.raises(ValueError) as refused:
        try:
            compose(["name=x", "at_onc=2", "training.stps=3"])
        except ValueError as error:
            raise ValueError(f"arm 'one': {error}") from error
    assert str(refused.value).startswith("arm 'one': at_onc: unknown configuration key\n")
    assert told_by_program(refused.value, ["at_once", "sweep"]) == (
        "arm 'one': at_onc: unknown configuration key; did you mean at_once?\n"
        "training.stps: unknown configuration key; did you mean training.steps?"
    )
    assert told_by_program(ValueError("lr: wrong"), ["at_once"]) == "lr: wrong"


def test_fields_are_found_below_optional_sections_and_in_lists():
    assert field_type(RunConfig, "data.binding.views") is int
    assert field_type(RunConfig, "evaluation.binding.shots[2]") is int
    assert field_type(RunConfig, "training.steps.deeper") is None
    assert field_type(RunConfig, "training.steps[0]") is None
    assert expected(field_type(RunConfig, "data.binding.collection")) == (
        "one of twemoji, easy_vqa_concepts, folder"
    )


def test_a_run_without_a_name_is_refused():
    with pytest.raises(ValueError, match="name: expected a value, got none"):
        compose([])


def _folder(**values):
    return BindingSourceConfig(collection=Collection.folder, **values)


def _clips() -> DataConfig:
    clips = ClipsSourceConfig(shards=ShardsConfig(files=["x"]))
    return DataConfig(clips=clips, cache_features=False)


PLACE = ShardsConfig(files=["x"])
NONSENSE = {
    "resampler.depth": lambda: ResamplerConfig(depth=0),
    "resampler.latent_std": lambda: ResamplerConfig(latent_std=0.0),
    "cross_attention.heads": lambda: CrossAttentionConfig(heads=0),
    "cross_attention.ff_width": lambda: CrossAttentionConfig(ff_width=0),
    "cross_attention.norm_eps": lambda: CrossAttentionConfig(norm_eps=0.0),
    "exactly one of every and layers, got every=1": lambda: CrossAttentionConfig(layers=[2]),
    "exactly one of every and layers, got every=None": lambda: CrossAttentionConfig(every=None),
    "cross_attention.every": lambda: CrossAttentionConfig(every=0),
    "cross_attention.layers": lambda: CrossAttentionConfig(every=None, layers=[3, 2]),
    "cross_attention.layers: .*-1": lambda: CrossAttentionConfig(every=None, layers=[-1, 2]),
    r"cross_attention.layers: .*\[\]": lambda: CrossAttentionConfig(every=None, layers=[]),
    "data.easy_vqa.sequences": lambda: EasyVQASourceConfig(sequences=0),
    "data.binding.loss_weight": lambda: BindingSourceConfig(loss_weight=0.0),
    "data.obelics.max_tokens: expected >= 2": lambda: OBELICSSourceConfig(
        shards=PLACE, max_tokens=1
    ),
    "data.mmc4.lanes: expected >= 1": lambda: MMC4SourceConfig(shards=PLACE, lanes=0),
    "data.captions.max_words: expected >= min_words .3., got 2": lambda: CaptionShardsSourceConfig(
        shards=PLACE, min_words=3, max_words=2
    ),
    "data.clips.frames: expected >= 1": lambda: ClipsSourceConfig(shards=PLACE, frames=0),
    "data.coco_captions.held_out: expected >= 0": lambda: COCOCaptionsSourceConfig(
        annotations="a", images="b", held_out=-1
    ),
    "data.interleaved.shards: expected exactly one of files and hub": InterleavedSourceConfig,
    "data.obelics.shards.split: expected 'train' with files, got 'validation'": lambda: (
        OBELICSSourceConfig(shards=ShardsConfig(files=["x"], split="validation"))
    ),
    "data.mmc4.shards.revision: expected None with files, got 'main'": lambda: MMC4SourceConfig(
        shards=ShardsConfig(files=["x"], revision="main")
    ),
    "data.clips.shards.configuration: expected None with files, got 'a'": lambda: ClipsSourceConfig(
        shards=ShardsConfig(files=["x"], configuration="a")
    ),
    "data.clips.shards: expected none with storage=folders": lambda: ClipsSourceConfig(
        storage=ClipStorage.folders, folder="x", shards=ShardsConfig(split="test")
    ),
    "data.easy_vqa.pairs": lambda: EasyVQASourceConfig(pairs=0),
    "data.binding.path: .*path=None": lambda: _folder(),
    "data.binding.path: .*path='p'": lambda: BindingSourceConfig(path="p"),
    "2 <= min_ways <= max_ways": lambda: BindingSourceConfig(min_ways=5, max_ways=4),
    "2 <= min_ways <= max_ways, got .1": lambda: BindingSourceConfig(min_ways=1),
    "data.binding.images: expected > max_ways": lambda: BindingSourceConfig(images=5, max_ways=5),
    "data.binding.views": lambda: BindingSourceConfig(views=0),
    "data.binding.held_out: expected >= 0": lambda: BindingSourceConfig(held_out=-1),
    "data.binding.held_out: .*24": lambda: BindingSourceConfig(
        collection=Collection.easy_vqa_concepts, held_out=24
    ),
    "data.feature_cache": lambda: DataConfig(cache_features=False, feature_cache="folder"),
    "data.max_tokens": lambda: DataConfig(max_tokens=0),
    "data.workers": lambda: DataConfig(workers=-1),
    "training.steps": lambda: TrainingConfig(steps=0),
    "training.lr": lambda: TrainingConfig(lr=0.0),
    "training.clip_norm": lambda: TrainingConfig(clip_norm=0.0),
    r"training.warmup_steps: .*steps \(10\), got 10": lambda: TrainingConfig(
        steps=10, warmup_steps=10
    ),
    "training.min_lr_fraction": lambda: TrainingConfig(min_lr_fraction=1.5),
    "training.betas: .*0.9]": lambda: TrainingConfig(betas=[0.9]),
    "training.betas: .*1.0": lambda: TrainingConfig(betas=[0.9, 1.0]),
    "training.weight_decay": lambda: TrainingConfig(weight_decay=-0.1),
    "training.eval_every": lambda: TrainingConfig(eval_every=-1),
    "evaluation.binding.path": lambda: BindingBenchmarkConfig(path="p"),
    "evaluation.binding.ways: .*1": lambda: BindingBenchmarkConfig(ways=[1, 2]),
    r"evaluation.binding.ways: .*\[\]": lambda: BindingBenchmarkConfig(ways=[]),
    "evaluation.binding.queries: expected >= 1, got 0": lambda: BindingBenchmarkConfig(queries=0),
    "evaluation.folder.queries: expected >= 1, got 0": lambda: FolderBenchmarkConfig(
        path="p", queries=0
    ),
    "evaluation.folder.collection": lambda: EvaluationConfig(
        folder=FolderBenchmarkConfig(collection=Collection.twemoji)
    ),
    "evaluation.shots: .*4, 2": lambda: EvaluationConfig(shots=[4, 2]),
    r"evaluation.shots: .*\[\]": lambda: EvaluationConfig(shots=[]),
    "evaluation.shots: .*-1": lambda: EvaluationConfig(shots=[-1]),
    r"evaluation.easy_vqa.shots: .*\[2, 2\]": lambda: EvaluationConfig(
        easy_vqa=EasyVQABenchmarkConfig(shots=[2, 2])
    ),
    "evaluation.binding.shots: .*-1": lambda: EvaluationConfig(
        binding=BindingBenchmarkConfig(shots=[-1, 2])
    ),
    r"evaluation.binding.shots: .*\[\]": lambda: EvaluationConfig(
        binding=BindingBenchmarkConfig(shots=[])
    ),
    "evaluation.batch_size": lambda: EvaluationConfig(batch_size=0),
    "evaluation.shots: expected 0 among them for text_only_zero": lambda: EvaluationConfig(
        shots=[2, 4], conditions=[Condition.real, Condition.text_only_zero_shot]
    ),
    "evaluation.demonstrations.pooling: .* vision.keep_cls=false, got cls": lambda: RunConfig(
        name="x",
        evaluation=EvaluationConfig(demonstrations=DemonstrationsConfig(pooling=Pooling.cls)),
    ),
    "name: expected the name of one folder": lambda: RunConfig(name="a/b"),
    "name: .*'..'": lambda: RunConfig(name=".."),
    "name: .*''": lambda: RunConfig(name=""),
    "seed: .* got -1": lambda: RunConfig(name="x", seed=-1),
    "seed: .* got 4294967295": lambda: RunConfig(name="x", seed=2**32 - 1),
    r"data.clips.frames: expected <= 4 \(perceiver\), got 8": lambda: RunConfig(
        name="x",
        data=_clips(),
        model=ModelConfig(resampler=ResamplerConfig(max_frames=4)),
    ),
    r"data.clips.frames: expected <= 1 \(mlp\), got 8": lambda: RunConfig(
        name="x",
        data=_clips(),
        model=ModelConfig(resampler=ResamplerConfig(kind=ResamplerKind.mlp)),
    ),
    "training.micro_batches: expected at most a step's 2 sequences, got 3": lambda: RunConfig(
        name="x",
        data=DataConfig(easy_vqa=EasyVQASourceConfig(sequences=2)),
        training=TrainingConfig(micro_batches=3),
    ),
    "training.micro_batches: expected 1 with training.micro_batch_tokens, got 2": lambda: (
        TrainingConfig(micro_batches=2, micro_batch_tokens=4096)
    ),
    r"training.packing: expected >= data.max_tokens \(300\), got 299": lambda: RunConfig(
        name="x",
        data=DataConfig(easy_vqa=EasyVQASourceConfig(), max_tokens=300),
        training=TrainingConfig(packing=299),
    ),
    r"training.micro_batch_tokens: expected >= data.max_tokens \(300\), got 2": lambda: RunConfig(
        name="x",
        data=DataConfig(easy_vqa=EasyVQASourceConfig(), max_tokens=300),
        training=TrainingConfig(micro_batch_tokens=2),
    ),
    r"training.micro_batch_tokens: expected >= training.packing \(400\), got 3": lambda: RunConfig(
        name="x",
        data=DataConfig(easy_vqa=EasyVQASourceConfig(), max_tokens=300),
        training=TrainingConfig(packing=400, micro_batch_tokens=399),
    ),
}


@pytest.mark.parametrize("message", NONSENSE)
def test_nonsense_across_fields_is_refused_with_the_field_and_the_value(message):
    with pytest.raises(ValueError, match=message):
        NONSENSE[message]()


def test_nonsense_on_the_command_line_is_refused_while_composing():
    with pytest.raises(ValueError, match="training.warmup_steps: .* got 50"):
        compose(["name=x", "training.steps=50", "training.warmup_steps=50"])


# ---------------------------------------------------------------------------- YAML


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_yaml_loses_nothing(experiment):
    config = compose([f"experiment={experiment}", "training.lr=1e-5", "data.binding=null"])
    assert config_from_yaml(config_to_yaml(config)) == config


def test_yaml_of_another_version_names_the_key_it_has_and_we_have_not():
    text = config_to_yaml(RunConfig(name="x")).replace("warmup_steps", "warmup")
    with pytest.raises(ValueError, match="training.warmup: unknown .* training.warmup_steps"):
        config_from_yaml(text)
    with pytest.raises(ValueError, match="configuration: expected a mapping"):
        config_from_yaml("- 1\n- 2\n")
