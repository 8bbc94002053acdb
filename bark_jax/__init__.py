"""Bark in JAX: text to speech with Suno's Bark, on GPU, TPU and CPU. This file is the public door, nothing else.

``bark_jax.load("suno/bark").generate("Hello!", voice="v2/en_speaker_6", seed=7).save("hello.wav")``
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bark_jax.adapters import AdapterError
    from bark_jax.bark import Bark, load
    from bark_jax.config import BarkConfig, ConfigError
    from bark_jax.hub import HubError
    from bark_jax.settings import Sampling, SamplingError
    from bark_jax.speech import BarkWarning, Segment, Speech
    from bark_jax.splitting import Split, SplitError
    from bark_jax.streaming import Chunk
    from bark_jax.text import TextError
    from bark_jax.voice import Voice, VoiceError
    from bark_jax.weights import CheckpointError

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "Bark",
    "BarkConfig",
    "BarkWarning",
    "CheckpointError",
    "Chunk",
    "ConfigError",
    "HubError",
    "Sampling",
    "SamplingError",
    "Segment",
    "Speech",
    "Split",
    "SplitError",
    "TextError",
    "Voice",
    "VoiceError",
    "generate",
    "load",
]


_HOMES = {
    "AdapterError": "adapters",
    "Bark": "bark",
    "BarkConfig": "config",
    "BarkWarning": "speech",
    "CheckpointError": "weights",
    "Chunk": "streaming",
    "ConfigError": "config",
    "HubError": "hub",
    "Sampling": "settings",
    "SamplingError": "settings",
    "Segment": "speech",
    "Speech": "speech",
    "Split": "splitting",
    "SplitError": "splitting",
    "TextError": "text",
    "Voice": "voice",
    "VoiceError": "voice",
    "load": "bark",
}
"""Where each name is. It is fetched at its first use: JAX takes two seconds to import, and who drives workers, asks for
help or reads a manifest needs none of it."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        globals()[name] = value = getattr(import_module(f"bark_jax.{_HOMES[name]}"), name)
        return value
    if not name.startswith("_") and find_spec(f"bark_jax.{name}"):  # `bark_jax.audio` after `import bark_jax` alone
        return import_module(f"bark_jax.{name}")
    raise AttributeError(f"module 'bark_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def generate(text: Any, *, model: str = "bark-nano", **options: Any) -> Any:
    """`Bark.generate` with a model that is loaded at the first call and kept: see there for the arguments.

    Args:
      model: what `load` takes. One model is kept; another one replaces it.
    """
    return _loaded(str(model)).generate(text, **options)


@lru_cache(maxsize=1)
def _loaded(model: str) -> Bark:
    from bark_jax.bark import load

    return load(model)
