"""The benchmarks on data sets: which reader, kind and metric belong to which section."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from flamingo.choices import CLEVRGroup, Metric, VLICLTask
from flamingo.data.sources.easy_vqa import ANSWERS
from flamingo.evaluation.benchmarks.base import Benchmark, Submission
from flamingo.evaluation.benchmarks.captions import (
    read_coco_test,
    read_karpathy,
    write_coco_submission,
)
from flamingo.evaluation.benchmarks.clevr import read_clevr, read_clevr_scenes
from flamingo.evaluation.benchmarks.dataset import DatasetBenchmark, drawn_queries
from flamingo.evaluation.benchmarks.easy_vqa import read_easy_vqa
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import check_images
from flamingo.evaluation.benchmarks.gqa import read_gqa, write_gqa_submission
from flamingo.evaluation.benchmarks.hateful_memes import (
    read_hateful_memes,
    write_hateful_memes_submission,
)
from flamingo.evaluation.benchmarks.image_folder import (
    has_classes,
    one_key_a_file,
    read_image_folder,
    read_unlabelled_images,
)
from flamingo.evaluation.benchmarks.open_mi import OpenMIBenchmark
from flamingo.evaluation.benchmarks.pope import read_pope
from flamingo.evaluation.benchmarks.submissions import of_answers, of_probabilities
from flamingo.evaluation.benchmarks.textvqa import read_textvqa
from flamingo.evaluation.benchmarks.vizwiz import read_vizwiz, write_vizwiz_submission
from flamingo.evaluation.benchmarks.vl_icl import VLICL, read_vl_icl
from flamingo.evaluation.benchmarks.vqa import read_vqa, write_vqa_submission
from flamingo.evaluation.planner import MakePlans, Planner, PlannerByPool, Retrieve
from flamingo.evaluation.tasks import Kind, Task, adapted, task
from flamingo.evaluation_config import (
    AnnotatedImages,
    CaptionBenchmarkConfig,
    ClassificationBenchmarkConfig,
    CLEVRBenchmarkConfig,
    DatasetBenchmarkConfig,
    EvaluationConfig,
    GQABenchmarkConfig,
    HuggingFaceBenchmarkConfig,
    POPEBenchmarkConfig,
    VLICLBenchmarkConfig,
    VQABenchmarkConfig,
    VQAFiles,
)
from flamingo.structured import require


def dataset_benchmarks(
    config: EvaluationConfig, easy_vqa_folder: Callable[[], Path], retrieve: Retrieve | None
) -> list[Benchmark]:
    """Those whose section is not null, in the order of the configuration.

    Reads annotations and looks whether the images are there. Raises ``ValueError`` as the readers
    and :func:`check_images` do.
    """
    make = _Make(config, Planner(config.demonstrations, retrieve))
    built: list[Benchmark] = []
    if config.easy_vqa is not None:
        built.append(_easy_vqa(make, config.easy_vqa, easy_vqa_folder()))
    if config.vqav2 is not None:
        built.append(_vqa(make, config.vqav2, "vqav2", "VQAv2", Kind.vqa))
    if config.ok_vqa is not None:
        built.append(_vqa(make, config.ok_vqa, "ok_vqa", "OK-VQA", Kind.ok_vqa))
    if config.vizwiz is not None:
        test, train = _pair(read_vizwiz, config.vizwiz.test, config.vizwiz.train)
        submit = of_answers(write_vizwiz_submission, test)
        built.append(make(config.vizwiz, "vizwiz", "VizWiz", Kind.vqa, test, train, submit=submit))
    if config.textvqa is not None:
        test, train = _pair(read_textvqa, config.textvqa.test, config.textvqa.train)
        submit, kind = of_answers(write_vqa_submission, test), Kind.text_vqa
        built.append(make(config.textvqa, "textvqa", "TextVQA", kind, test, train, submit=submit))
    if config.gqa is not None:
        built.append(_gqa(make, config.gqa))
    if config.coco is not None:
        built.append(_captions(make, config.coco, "coco", "COCO captions"))
    if config.flickr30k is not None:
        built.append(_captions(make, config.flickr30k, "flickr30k", "Flickr30k"))
    if config.hateful_memes is not None:
        own, kind = config.hateful_memes, Kind.hateful_memes
        test, train = _pair(read_hateful_memes, own.test, own.train)
        submit = of_probabilities(write_hateful_memes_submission, test)
        built.append(make(own, "hateful_memes", "Hateful Memes", kind, test, train, submit=submit))
    if config.pope is not None:
        built.append(_pope(make, config.pope))
    if config.clevr is not None:
        built.append(_clevr(make, config.clevr))
    if config.classification is not None:
        built.append(_classification(make, config.classification))
    if config.vl_icl is not None:
        built += [_vl_icl(make, config.vl_icl, own) for own in config.vl_icl.tasks]
    if config.hugging_face is not None:
        built.append(_hugging_face(make, config.hugging_face))
    return built


@dataclass(frozen=True)
class _Make:
    """Makes a benchmark with what all of an evaluation have in common."""

    config: EvaluationConfig
    planner: MakePlans

    def task(self, kind: Kind, metric: Metric | None, new_tokens: int | None = None) -> Task:
        """``new_tokens`` instead of the protocol's; what the configuration says comes first."""
        own = task(kind, self.config.protocol, metric)
        if new_tokens is not None:
            own = replace(own, decoding=replace(own.decoding, max_new_tokens=new_tokens))
        return adapted(own, self.config)

    def __call__(
        self,
        section: DatasetBenchmarkConfig,
        name: str,
        title: str,
        kind: Kind,
        test: Sequence[Example],
        train: Sequence[Example] | None,
        *,
        metric: Metric | None = None,
        new_tokens: int | None = None,
        chance: float | None = None,
        submit: Submission | None = None,
        pools: PlannerByPool | None = None,
    ) -> DatasetBenchmark:
        built = DatasetBenchmark(
            name=name,
            title=title,
            task=self.task(kind, metric, new_tokens),
            test=test,
            train=train,
            planner=pools or self.planner,
            queries=section.queries,
            pool=self.config.demonstrations.pool,
            seed=self.config.seed,
            seeds=self.config.demonstration_seeds,
            shots=section.shots or self.config.shots,
            chance=chance,
            submission=submit,
        )
        check_images([*built.examples, *built.offered])
        return built


Pair = tuple[list[Example], list[Example]]


def _pair(
    read: Callable[[Path, Path], list[Example]], test: AnnotatedImages, train: AnnotatedImages
) -> Pair:
    """Test and training examples."""
    first, second = (read(Path(own.annotations), Path(own.images)) for own in (test, train))
    return first, second


# ---------------------------------------------------------------------------- questions


def _easy_vqa(make: _Make, config: DatasetBenchmarkConfig, folder: Path) -> Benchmark:
    test, train = (read_easy_vqa(folder, split) for split in ("test", "train"))
    return make(
        config,
        "easy_vqa",
        "easy-VQA",
        Kind.vqa,
        test,
        train,
        metric=Metric.exact_match,
        new_tokens=5,
        chance=1 / len(ANSWERS),
    )


def _vqa(make: _Make, config: VQABenchmarkConfig, name: str, title: str, kind: Kind) -> Benchmark:
    def read(files: VQAFiles) -> list[Example]:
        return read_vqa(
            Path(files.questions),
            None if files.annotations is None else Path(files.annotations),
            Path(files.images),
            image_split=files.image_split,
            name=name,
            group=config.group,
        )

    test = read(config.test)
    submit = of_answers(write_vqa_submission, test)
    return make(config, name, title, kind, test, read(config.train), submit=submit)


def _gqa(make: _Make, config: GQABenchmarkConfig) -> Benchmark:
    test, train = _pair(partial(read_gqa, group=config.group), config.test, config.train)
    submit, metric = of_answers(write_gqa_submission, test), Metric.exact_match
    return make(config, "gqa", "GQA", Kind.vqa, test, train, metric=metric, submit=submit)


def _pope(make: _Make, config: POPEBenchmarkConfig) -> Benchmark:
    test = [
        example
        for setting in config.settings
        for example in read_pope(
            Path(config.questions) / f"coco_pope_{setting.value}.json",
            Path(config.images),
            setting,
        )
    ]
    return make(config, "pope", "POPE", Kind.vqa, test, None, metric=Metric.exact_match)


def _clevr(make: _Make, config: CLEVRBenchmarkConfig) -> Benchmark:
    read = partial(read_clevr, group=config.group, counting=config.counting)
    test, train = _pair(read_clevr_scenes if config.scenes else read, config.test, config.train)
    titles = {CLEVRGroup.question_type: "CLEVR", CLEVRGroup.question_family: "CLEVR by family"}
    title = "CLEVR counting" if config.counting or config.scenes else titles[config.group]
    return make(config, "clevr", title, Kind.vqa, test, train, metric=Metric.exact_match)


def _hugging_face(make: _Make, config: HuggingFaceBenchmarkConfig) -> Benchmark:
    # Here, as the library takes a second to import.
    from flamingo.evaluation.benchmarks.hugging_face import read_hugging_face

    def read(split: str) -> list[Example]:
        return read_hugging_face(
            config.source,
            split,
            config.columns,
            name=config.name,
            configuration=config.configuration,
            revision=config.revision,
        )

    # Read as both, its rows would be shown among their own demonstrations.
    alone = (Path(config.source) / "state.json").is_file()
    require(
        not alone or config.train_split is None,
        "evaluation.hugging_face.train_split",
        f"null, as {config.source} was saved as one split (its other rows demonstrate)",
        config.train_split,
    )
    test = read(config.test_split)
    train = None if config.train_split is None else read(config.train_split)
    return make(config, config.name, config.name, Kind.vqa, test, train, metric=config.metric)


# ---------------------------------------------------------------------------- captions, classes


def _captions(make: _Make, config: CaptionBenchmarkConfig, name: str, title: str) -> Benchmark:
    captions, images = Path(config.captions), Path(config.images)
    train = read_karpathy(captions, images, config.train_splits, name=name)
    submit = None
    if config.test_info is None:
        test = read_karpathy(captions, images, config.test_splits, name=name)
    elif name == "coco":
        test = read_coco_test(Path(config.test_info), images / "test2014", name=name)
        submit = of_answers(write_coco_submission, test)
    else:
        raise ValueError(f"evaluation.{name}.test_info: expected null, got {config.test_info!r}")
    return make(config, name, title, Kind.caption, test, train, submit=submit)


def _classification(make: _Make, config: ClassificationBenchmarkConfig) -> Benchmark:
    names = None if config.class_names is None else Path(config.class_names)
    name, folder = "classification/test", Path(config.test)
    train = read_image_folder(Path(config.train), name="classification/train", class_names=names)
    if has_classes(folder):
        test = read_image_folder(folder, name=name, class_names=names)
    else:
        test = read_unlabelled_images(folder, train[0].candidates, name=name)
    test, train = one_key_a_file(test, train)
    title = f"Classes of {Path(config.test).resolve().parent.name}"
    return make(config, "classification", title, Kind.classification, test, train)


# ---------------------------------------------------------------------------- VL-ICL


def _vl_icl(make: _Make, config: VLICLBenchmarkConfig, own: VLICLTask) -> Benchmark:
    data = read_vl_icl(Path(config.folder), own)
    match own:
        case VLICLTask.open_mi:
            return _open_mi(make, config, data)
        case VLICLTask.operator_induction:
            title, kind = "VL-ICL operator induction", Kind.vqa
        case VLICLTask.clevr:
            title, kind = "VL-ICL CLEVR count induction", Kind.vqa
        case VLICLTask.textocr:
            title, kind = "VL-ICL TextOCR", Kind.text_vqa
    pools = {
        f"test/{query}": frozenset(f"train/{name}" for pool in pools for name in pool)
        for query, pools in data.pools.items()
    }
    return make(
        config,
        f"vl_icl_{own.value}",
        title,
        kind,
        data.queries,
        data.support,
        metric=Metric.exact_match,
        pools=PlannerByPool(make.planner, pools),
    )


def _open_mi(make: _Make, config: VLICLBenchmarkConfig, data: VLICL) -> Benchmark:
    name, shared = "vl_icl_open_mi", make.config
    queries = drawn_queries(data.queries, config.queries, shared.seed, name)
    check_images([*queries, *data.support])
    stored = shared.demonstrations.plans
    return OpenMIBenchmark(
        name=name,
        title="VL-ICL fast binding",
        task=make.task(Kind.classification, Metric.exact_match),
        queries=queries,
        support={example.id: example for example in data.support},
        pools=data.pools,
        seed=shared.seed,
        seeds=shared.demonstration_seeds,
        shots=config.shots or shared.shots,
        stored=None if stored is None else Path(stored),
    )
