"""Documents of another harness: which demonstrations a query gets, and the prompt they make."""

from __future__ import annotations

import pytest
from PIL import Image

from flamingo.choices import Protocol
from flamingo.evaluation.demonstrations import plan_random
from flamingo.evaluation.prompts import QUESTION, prompt_text
from flamingo.evaluation.tasks import Kind, first, task
from flamingo.images import BLANK
from flamingo.interop.harness import TaskDocuments, Turn, opened, prompt
from flamingo.types import Media, Text

from .harness_task import FakeTask, key

PICTURE = Media((BLANK,))


def ids(documents: TaskDocuments, index: int, shots: int, seed: int = 0) -> list[str]:
    query = documents.query("test", index, f"what shape {index}?", alone=False)
    return [turn.id for turn in documents.demonstrations("train", query, shots, seed)]


def test_fewer_shots_are_the_last_of_more_and_the_plan_is_that_of_our_own_benchmarks() -> None:
    own = FakeTask()
    documents = TaskDocuments(own, first)
    longest = ids(documents, 2, 8)
    assert len(set(longest)) == 8
    assert [ids(documents, 2, shots) for shots in (1, 4)] == [longest[-1:], longest[-4:]]
    assert ids(TaskDocuments(FakeTask(test=3), first), 2, 4) == longest[-4:]  # --limit
    pool = [f"train/{n}" for n in range(20)]
    assert longest == list(plan_random(0, "shapes", "test/2", pool, 8).demonstrations)
    assert longest != ids(documents, 2, 8, seed=1) != ids(documents, 3, 8, seed=1)


def test_a_query_s_own_image_is_passed_over_as_if_it_had_been_excluded_beforehand() -> None:
    own = FakeTask()
    places = [int(name.split("/")[1]) for name in ids(TaskDocuments(own, first), 0, 6)]
    for copy in (places[-1], places[2]):
        own.dataset["train"][copy]["image"] = own.dataset["test"][0]["image"].copy()
    pool = [f"train/{n}" for n in range(20)]
    expected = plan_random(0, "shapes", "test/0", pool, 6, {places[-1], places[2]})
    assert ids(TaskDocuments(own, first), 0, 6) == list(expected.demonstrations)
    assert ids(TaskDocuments(own, first), 0, 18)  # all the others
    with pytest.raises(ValueError, match=r"the 20 demonstrations of shapes less 2 excluded"):
        ids(TaskDocuments(own, first), 0, 19)


def test_in_its_own_split_a_query_is_none_of_its_demonstrations() -> None:
    documents = TaskDocuments(FakeTask(test=6), first)
    query = documents.query("test", 3, "what shape 3?")
    chosen = documents.demonstrations("test", query, 5, 0)
    assert sorted(turn.id for turn in chosen) == [f"test/{n}" for n in (0, 1, 2, 4, 5)]


def test_only_what_is_shown_is_opened() -> None:
    own = FakeTask(train=500)
    chosen = ids(TaskDocuments(own, first), 1, 3)
    numbers = [1, *(100 + int(name.split("/")[1]) for name in chosen)]
    assert sorted(own.opened) == sorted(f"what shape {n}?" for n in numbers)


def test_an_image_s_key_is_its_content_wherever_it_stands() -> None:
    own = FakeTask()
    own.dataset["train"][4]["image"] = own.dataset["test"][1]["image"].copy()
    documents = TaskDocuments(own, first)
    (here,), (there,) = documents.media("test", 1), documents.media("train", 4)
    assert here == there and here.frames[0].key == key(own.dataset["test"][1]["image"])
    assert here.frames[0].open().tobytes() == own.dataset["test"][1]["image"].tobytes()


@pytest.mark.parametrize(
    ("target", "choices", "expected"),
    [
        ("red", None, "red"),
        (["blue", "red", "red"], None, "red"),
        (1, ["cat", "dog"], "dog"),
        (7, None, "7"),
    ],
)
def test_a_demonstration_shows_the_answer_that_our_tasks_would(target, choices, expected) -> None:
    own = FakeTask(doc_to_choice=choices)
    own.dataset["train"][0] |= {"answer": target, "choices": choices}
    shown = task(Kind.vqa, Protocol.native).shown
    assert TaskDocuments(own, shown).demonstration("train", 0).answer == expected


@pytest.mark.parametrize("target", [None, "", [], {"a": 1}])
def test_a_document_without_an_answer_cannot_be_a_demonstration(target) -> None:
    own = FakeTask()
    own.dataset["train"][3]["answer"] = target
    with pytest.raises(ValueError, match=r"doc_to_target.*train/3.*shapes"):
        TaskDocuments(own, first).demonstration("train", 3)


def test_demonstrations_come_from_the_task_s_own_split_or_the_one_that_is_named() -> None:
    assert TaskDocuments(FakeTask(), first).pool(None) == "train"
    assert TaskDocuments(FakeTask(fewshot_split="test"), first).pool(None) == "test"
    assert TaskDocuments(FakeTask(), first).pool("test") == "test"
    with pytest.raises(ValueError, match=r"pool: .*task shapes.*\['test', 'train'\]"):
        TaskDocuments(FakeTask(training_split=None), first).pool(None)
    with pytest.raises(ValueError, match=r"pool: .*shapes.*got 'dev'"):
        TaskDocuments(FakeTask(), first).pool("dev")


def test_a_split_that_the_task_does_not_name_is_processed_like_those_it_does() -> None:
    def reverse(rows):
        return rows[::-1]

    own = FakeTask(training_split=None, process_docs=reverse)
    assert TaskDocuments(own, first).demonstration("train", 0).question == "what shape 119?"
    assert TaskDocuments(own, first).demonstration("test", 0).question == "what shape 0?"


def test_a_context_with_more_than_the_question_is_refused_beside_demonstrations() -> None:
    documents = TaskDocuments(FakeTask(), first)
    assert documents.query("test", 0, "Be kind. what shape 0?").question.startswith("Be kind")
    with pytest.raises(ValueError, match="num_fewshot or system_instruction"):
        documents.query("test", 0, "Be kind. what shape 0?", alone=False)


def test_prompts_are_our_own_templates() -> None:
    demonstration = Turn("a", (PICTURE,), "what is it?", "a dax")
    query = Turn("b", (PICTURE,), "and this?")
    native = prompt((demonstration, query), QUESTION)
    assert prompt_text(native) == "<image>what is it? a dax<|endofchunk|><image>and this?"
    assert [type(segment) for segment in native.segments] == [Media, Text, Text, Media, Text]
    template = task(Kind.vqa, Protocol.open_flamingo).template
    sequence = prompt((demonstration, query), template)
    assert prompt_text(sequence) == (
        "<image>Question:what is it? Short answer:a dax<|endofchunk|>\n"
        "<image>Question:and this? Short answer:"
    )
    assert [type(segment) for segment in sequence.segments] == [Media, Text, Media, Text]


def test_several_images_stand_in_front_or_where_the_text_says_and_text_alone_has_none() -> None:
    two = (PICTURE, PICTURE)
    for turn, expected in (
        (Turn("a", two, "same?"), "<image><image>same?"),
        (Turn("a", two, "<image>and<image>: same?"), "<image>and<image>: same?"),
        (Turn("a", (), "what is 2 + 2?"), "what is 2 + 2?"),
    ):
        sequence = prompt((turn,), QUESTION)
        assert prompt_text(sequence) == expected
        assert sequence.media == turn.media
    with pytest.raises(ValueError, match=r"test/7: expected an image for each of its 3.*got 2"):
        prompt((Turn("test/7", two, "<image><image><image>"),), QUESTION)


def test_images_in_memory_are_read_as_files_are(tmp_path) -> None:
    clear = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    in_memory, from_file = opened([clear, str(tmp_path / "clear.png")], "x")
    assert in_memory.tobytes() == from_file.tobytes() == b"\xff" * 24
    with pytest.raises(ValueError, match="test/3: expected 8 or 16 bits"):
        opened(Image.new("F", (2, 2)), "test/3")


def test_anything_but_images_is_refused_by_name(tmp_path) -> None:
    picture = FakeTask().dataset["test"][0]["image"]
    picture.save(tmp_path / "a.png")
    assert opened(None, "x") == ()
    assert [i.tobytes() for i in opened([picture, str(tmp_path / "a.png")], "x")] == [
        picture.tobytes()
    ] * 2
    for visual in ("clip.mp4", {"array": [0.0], "sampling_rate": 16000}):
        with pytest.raises(ValueError, match=r"test/3 of task t: .*video and audio"):
            opened([visual], "test/3 of task t")
