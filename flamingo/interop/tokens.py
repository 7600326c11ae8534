"""Where OpenFlamingo has its special tokens."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from flamingo.types import END_OF_CHUNK_TOKEN, IMAGE_TOKEN


class TokenIds(NamedTuple):
    """Ids of the two special tokens."""

    end_of_chunk: int
    image: int


def open_flamingo_token_ids(tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """The ids that OpenFlamingo gives its tokens, from the language model's tokenizer alone.

    It adds ``<|endofchunk|>``, ``<image>`` and then, to tokenizers without a padding token,
    ``<PAD>`` (``create_model_and_transforms`` in its ``src/factory.py``), and cuts or extends the
    embedding to ``len(tokenizer)`` rows. The ids therefore follow the tokenizer's last token,
    wherever the LM's matrix ends: 50277 and 50278 with the tokenizer of GPT-NeoX (50277 tokens),
    which the LMs of the 3B, 4B and 9B releases share. A tokenizer that has the tokens keeps them.
    ``tokenizer`` is not changed.
    """
    extended = deepcopy(tokenizer)
    extended.add_tokens([END_OF_CHUNK_TOKEN, IMAGE_TOKEN], special_tokens=True)
    vocabulary = extended.get_vocab()
    return TokenIds(end_of_chunk=vocabulary[END_OF_CHUNK_TOKEN], image=vocabulary[IMAGE_TOKEN])
