"""The choices that configurations offer, each with what it means."""

from __future__ import annotations

from enum import Enum


class MediaVisibility(Enum):
    """Which media a text token attends to (paper, section 2.3)."""

    immediate = "immediate"
    """The last medium before it alone: the paper's default."""
    all_previous = "all_previous"


class Activation(Enum):
    """Of the feed-forward layers of what trains."""

    squared_relu = "squared_relu"
    """The paper's."""
    gelu = "gelu"
    """OpenFlamingo's."""
    relu = "relu"
    """IDEFICS' resampler's."""
    silu = "silu"
    """LLaMA's, and so IDEFICS' cross-attention's."""


class Norm(Enum):
    """How a stream is normalised before a layer reads it."""

    layer = "layer"
    """LayerNorm: mean removed, scaled, with a bias (Ba et al. 2016)."""
    rms = "rms"
    """RMSNorm: scaled alone (Zhang and Sennrich 2019), as LLaMA and IDEFICS."""


class Gate(Enum):
    """What a gate of the cross-attention is."""

    scalar = "scalar"
    """One number a branch: the paper's."""
    channel = "channel"
    """One number for each channel of the stream."""
    none = "none"
    """No gate: what a block computes is added as it is (the paper's ablation, table 3 iii)."""


class ResamplerKind(Enum):
    """What turns the encoder's tokens into latents."""

    perceiver = "perceiver"
    """The paper's perceiver resampler."""
    mlp = "mlp"
    """Each token through an MLP of its own: as many latents as tokens (the paper's table 3 vi)."""
    pooling = "pooling"
    """The mean of all tokens, mapped to the latents by one linear."""
    identity = "identity"
    """Nothing: the encoder's tokens are the latents."""


class ModelFormat(Enum):
    """Whose checkpoint it is."""

    flamingo = "flamingo"
    """Ours: a run, or a saved model."""
    open_flamingo = "open_flamingo"
    """OpenFlamingo's, or Otter's in the same form."""
    idefics = "idefics"
    """transformers' Idefics, version 1."""


class LanguageTraining(Enum):
    """Whether the language model itself trains (the paper's table 3, viii)."""

    frozen = "frozen"
    """Not at all: its weights stay as they are, bit for bit."""
    full = "full"
    """From its own weights."""
    scratch = "scratch"
    """From random weights: of the model that is named only the architecture is used."""


class Mixing(Enum):
    """How the sources of a mixture come into the steps (the paper's table 3, ii)."""

    accumulate = "accumulate"
    """Every step has all sources: their gradients are added up."""
    round_robin = "round_robin"
    """Each step has the sequences of one source, in turn."""


class Precision(Enum):
    """Of the forward and backward pass; the trained weights are fp32.

    The frozen vision encoder computes in what its device computes fast, whatever this says: its
    features are cached in half precision anyway.
    """

    auto = "auto"
    """bf16 where the device computes it natively, else fp32."""
    bf16 = "bf16"
    fp32 = "fp32"


class Schedule(Enum):
    """Of the learning rate after its warm-up."""

    constant = "constant"
    cosine = "cosine"
    linear = "linear"


class WandbMode(Enum):
    """Where runs are tracked besides ``metrics.jsonl``."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


class Collection(Enum):
    """Labelled images that concepts can be drawn from."""

    twemoji = "twemoji"
    easy_vqa_concepts = "easy_vqa_concepts"
    """easy-VQA's shape x colour combinations."""
    folder = "folder"
    """Any directory with one sub-directory a class."""


class Strategy(Enum):
    """How demonstrations are chosen."""

    random = "random"
    """Uniformly from the pool, without replacement."""
    balanced = "balanced"
    """In rounds: each round holds one demonstration of every class, in random order."""
    fixed = "fixed"
    """The same for every query, as the user lists them."""
    label_balanced = "label_balanced"
    """As balanced, with the labels of a pool for classes; a last round may be incomplete."""
    rices = "rices"
    """The most similar ones, the most similar last (Yang et al. 2022, arXiv:2109.05014)."""
    diverse = "diverse"
    """Similar to the query and unlike each other (Carbonell and Goldstein 1998)."""


class Order(Enum):
    """In which order a set of demonstrations is presented.

    Only ``drawn`` also nests the order; under the others a demonstration keeps its place relative
    to any other at all shot counts, but the one that a further shot adds may stand anywhere.
    """

    drawn = "drawn"
    """As the strategy gives them (rices: the most similar last)."""
    similar_last = "similar_last"
    """The most similar next to the query."""
    similar_first = "similar_first"
    """The most similar farthest from the query."""
    shuffled = "shuffled"
    """At random, by ``order_seed``."""


class Exclusion(Enum):
    """Which demonstrations a query may not get, besides itself."""

    nothing = "nothing"
    same_image = "same_image"
    """Those that show an image of the query, by the image's key."""
    same_content = "same_content"
    """Those that show an image of the query, by its pixels: copies under other names too."""


class Condition(Enum):
    """What the model gets to see."""

    real = "real"
    blank_query = "blank_query"
    shuffled_answers = "shuffled_answers"
    blank_demonstrations = "blank_demonstrations"
    swap_query = "swap_query"
    swap_demonstrations = "swap_demonstrations"
    drop_query = "drop_query"
    drop_demonstrations = "drop_demonstrations"
    blur_query = "blur_query"
    blur_demonstrations = "blur_demonstrations"
    flipped_answers = "flipped_answers"
    swapped_questions = "swapped_questions"
    reversed_order = "reversed_order"
    text_only_zero_shot = "text_only_zero_shot"

    @property
    def label(self) -> str:
        """What reports call it."""
        return _LABELS[self]


_LABELS = {
    Condition.real: "model",
    Condition.blank_query: "query image blanked",
    Condition.shuffled_answers: "demonstration answers shuffled",
    Condition.blank_demonstrations: "demonstration images blanked",
    Condition.swap_query: "query image swapped",
    Condition.swap_demonstrations: "demonstration images swapped",
    Condition.drop_query: "query image removed",
    Condition.drop_demonstrations: "demonstration images removed",
    Condition.blur_query: "query image blurred",
    Condition.blur_demonstrations: "demonstration images blurred",
    Condition.flipped_answers: "demonstration answers flipped",
    Condition.swapped_questions: "demonstration questions swapped",
    Condition.reversed_order: "demonstrations reversed",
    Condition.text_only_zero_shot: 'text-only "0-shot"',
}


class VQAGroup(Enum):
    """Which annotation results are broken down by."""

    answer_type = "answer_type"
    """``yes/no``, ``number`` or ``other`` (in OK-VQA always ``other``)."""
    question_type = "question_type"
    """VQAv2: the first words of the question; OK-VQA: the knowledge category (``one`` to ``ten``,
    ``other``)."""


class GQAGroup(Enum):
    """Which of the three question types results are broken down by."""

    structural = "structural"
    """``verify``, ``query``, ``choose``, ``logical`` or ``compare``."""
    semantic = "semantic"
    """``obj``, ``attr``, ``cat``, ``rel`` or ``global``."""
    detailed = "detailed"


class CLEVRGroup(Enum):
    """What results are broken down by."""

    question_type = "question_type"
    """``exist``, ``count``, ``compare_integer``, ``query`` or ``compare_attribute`` (the paper's
    table 1 and figure 4), from the last step of the question's program."""
    question_family = "question_family"
    """The template it was made from: 0 to 89."""


class KarpathySplit(Enum):
    """A split of the file. ``restval`` (COCO alone) is what is left of val2014: more training."""

    train = "train"
    val = "val"
    test = "test"
    restval = "restval"


class VLICLTask(Enum):
    """The image-to-text tasks that are read; the names are those of their folders."""

    open_mi = "open_mi"
    """Fast binding: made-up names of MiniImageNet classes."""
    operator_induction = "operator_induction"
    """``2 ? 7``: which of plus, minus and times ``?`` stands for is to be induced."""
    clevr = "clevr"
    """Count induction: ``shape: large`` and how many there are."""
    textocr = "textocr"
    """The text in the red frame."""


class POPESetting(Enum):
    """How the absent objects of a file were chosen."""

    random = "random"
    popular = "popular"
    """The objects most frequent in the data set."""
    adversarial = "adversarial"
    """The objects that most often occur together with those in the image."""


class Pooling(Enum):
    """How the features of an image's patches become one vector."""

    mean = "mean"
    """Their mean."""
    cls = "cls"
    """The first of them: the class token, if the encoder keeps one (``vision.keep_cls``)."""


class Similarity(Enum):
    """What demonstrations resemble the query in (strategies rices and diverse)."""

    image = "image"
    """The frozen encoder's features, pooled: the literature's RICES."""
    question = "question"
    """The question's words, through the frozen language model."""
    mixed = "mixed"
    """Both, weighted."""


class Protocol(Enum):
    """Prompts, decoding, post-processing and normalisation as one name."""

    native = "native"
    """Ours: prompts as in training, greedy, nothing cut but the end of a chunk."""
    open_flamingo = "open_flamingo"
    """OpenFlamingo 2.0's evaluation script, as its published numbers were made."""


class Metric(Enum):
    """What an answer is worth; the mean over queries is what is reported."""

    exact_match = "exact_match"
    """1 if equal to a reference up to case and surrounding space."""
    relaxed_match = "relaxed_match"
    """As exact match; numbers may be 5 % off."""
    vqa_accuracy = "vqa_accuracy"
    """The official one: normalised only where the annotators disagree."""
    vqa_accuracy_always = "vqa_accuracy_always"
    """Normalised always, as OpenFlamingo does."""
    ok_vqa_accuracy = "ok_vqa_accuracy"
    """Official VQA accuracy of stemmed answers."""
    ok_vqa_accuracy_always = "ok_vqa_accuracy_always"
    """Stemmed, and normalised always, as OpenFlamingo does."""
    cider = "cider"
    """CIDEr-D; the idf is that of the evaluated references."""
    roc_auc = "roc_auc"
    """Of the probability of yes, over all answers together; each alone is right or wrong."""


class ImageMatching(Enum):
    """Which sentence of an MMC4 document an image stands before."""

    assignment = "assignment"
    """One to one, of the greatest total similarity among the images that could be fetched
    (OpenFlamingo's)."""
    stored = "stored"
    """MMC4's own ``matched_text_index``: the same, among all images of the page."""


class LearnedText(Enum):
    """Which text of a document the model is trained to produce. ``<image>`` never is."""

    marked = "marked"
    """What the source marks: of pages what ``chunks`` says, captions, answers alone, and of JSON
    lines the texts with ``learn``."""
    everything = "everything"
    """All text (paper, section 2: the likelihood of the text given the images before it)."""
    after_first_image = "after_first_image"
    """All text but that before the first image."""
    chunks = "chunks"
    """From each image to the ``<|endofchunk|>`` behind it: neither what stands before the first
    image nor what stands between an ``<|endofchunk|>`` and the next image (OpenFlamingo's)."""


class VQAFormat(Enum):
    """As which benchmark a set of visual questions was published."""

    vqa = "vqa"
    """The VQA API's: VQAv2, OK-VQA."""
    textvqa = "textvqa"
    vizwiz = "vizwiz"
    gqa = "gqa"


class AnswerChoice(Enum):
    """Which of the annotators' answers is learned."""

    most_common = "most_common"
    """Of several, the first."""
    random = "random"
    """As likely as annotators gave it, drawn anew each epoch."""


class ClipStorage(Enum):
    """How clips are stored as frames."""

    shards = "shards"
    """webdataset: ``clip.0.jpg``, ``clip.1.jpg``, ..., ``clip.txt``."""
    folders = "folders"
    """A sub-folder a clip: ``0.jpg``, ``1.jpg``, ..., ``caption.txt``."""


class FrameSampling(Enum):
    """Which frames of a clip are shown."""

    even = "even"
    """The middle frames of equal stretches."""
    random = "random"
    """In order, drawn without replacement, anew each epoch."""


class Sharding(Enum):
    """What of the model each of several processes holds between steps."""

    none = "none"
    """All of it."""
    full = "full"
    """Its share of every weight, gradient and optimiser moment, the frozen language model's
    included (FSDP2)."""
