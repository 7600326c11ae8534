"""What does not fit its declaration is named with its place, what it takes and what came."""

import pytest
from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from flamingo.typed_json import parse_json


@with_config(ConfigDict(extra="forbid"))
class Row(TypedDict):
    numbers: list[int]


VALIDATE = TypeAdapter(dict[str, Row]).validate_json


def test_text_and_bytes_are_read_alike():
    for text in ('{"a": {"numbers": [1, 2]}}', b'{"a": {"numbers": [1, 2]}}'):
        assert parse_json(VALIDATE, text) == {"a": {"numbers": [1, 2]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"numbers": [1, "2"]}}', "a.numbers[1]: expected a valid integer, got '2'"),
        ('{"a": {}}', "a.numbers: expected this field, found none"),
        ('{"a": {"numbers": [], "b": 1}}', "a.b: expected no field of this name, found one"),
        ("[]", "expected an object, got []"),
    ],
)
def test_the_first_thing_that_does_not_fit_is_the_whole_message(text, message):
    with pytest.raises(ValueError) as raised:
        parse_json(VALIDATE, text)
    assert str(raised.value) == message


def test_text_that_is_no_json_is_said_to_be_none():
    with pytest.raises(ValueError, match="^expected JSON; .* line 1 column 1$"):
        parse_json(VALIDATE, "{")
