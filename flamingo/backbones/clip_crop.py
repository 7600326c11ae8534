"""CLIP's image transform, to the pixel: transformers crops some images one pixel beside it.

CLIP, open_clip and OpenFlamingo crop with torchvision's ``CenterCrop``, whose corner is
``round((side - crop) / 2)``; transformers' is ``(side - crop) // 2``. They differ where the resized
side exceeds the crop by 3, 7, 11, ...: an image of 640 x 427 becomes 335 x 224 and is cut from
column 56, by transformers from column 55. All else is the same (bicubic resize of the shorter side
by PIL, rescaling, normalisation).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import CLIPImageProcessorPil
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict


class OriginalCLIPImageProcessor(CLIPImageProcessorPil):
    """CLIP's transform as CLIP itself has it. On disk it is transformers' own, which has no option
    for it: :func:`as_clip_crops` makes one of what was read."""

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs: Any) -> np.ndarray:
        """Cut (channel, height, width) to ``size``; smaller ones are padded as ever."""
        assert size.height is not None and size.width is not None
        height, width = image.shape[-2:]
        if height < size.height or width < size.width:
            return super().center_crop(image, size, **kwargs)
        # Python rounds halves to the even number, as torchvision does by calling it.
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return image[..., top : top + size.height, left : left + size.width]

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"image_processor_type": CLIPImageProcessorPil.__name__}


def as_clip_crops(processor: BaseImageProcessor) -> BaseImageProcessor:
    """``processor``, which crops as CLIP itself if it is transformers' for CLIP."""
    if type(processor) is not CLIPImageProcessorPil:
        return processor
    own = OriginalCLIPImageProcessor.from_dict(processor.to_dict())
    assert isinstance(own, OriginalCLIPImageProcessor)  # a tuple only where that is asked for
    return own
