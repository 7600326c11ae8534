"""Test session: offline, few threads, shapes of every public tensor checked while tests run."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

# Before anything imports flamingo: annotations are enforced in the modules loaded under the hook.
install_import_hook("flamingo", "beartype.beartype")

import torch

torch.set_num_threads(1)  # tests run side by side; tiny tensors gain nothing from threads
