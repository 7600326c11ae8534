"""Predictions as a table of episodes."""

from flamingo.run_episodes import COLUMNS, episode_table
from tests.comparison.written import predicted


def test_the_table_has_a_row_a_prediction_with_its_labels_in_front():
    own = predicted(1, "yes", shots=1, question="is it?", shown=[["was it?", "no"]])
    labels = {"benchmark": "vqa", "condition": "real", "seed": 5}
    frame = episode_table([(labels, own)], ("benchmark", "condition", "seed"))
    assert list(frame.columns) == ["benchmark", "condition", "seed", *COLUMNS[2:]]
    (row,) = frame.to_dict("records")
    assert (row["seed"], row["query"], row["question"]) == (5, "test/1", "is it?")
    assert row["references"] == ("yes",) and row["demonstrations"] == ("train/00",)
    assert row["demonstration_questions"] == ("was it?",)
    assert row["demonstration_answers"] == ("no",)


def test_without_predictions_the_table_is_empty_but_has_its_columns():
    assert list(episode_table([]).columns) == list(COLUMNS)
