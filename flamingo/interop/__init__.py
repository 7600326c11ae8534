"""Released checkpoints of other projects, as our model."""

from flamingo.interop.idefics import load_idefics as load_idefics
