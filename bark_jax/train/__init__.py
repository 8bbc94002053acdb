"""Training in Bark's own layout: from scratch, fully, or as low-rank adapters. The public door, nothing else.

    from bark_jax.train import TrainConfig, train

    result = train(TrainConfig.load("coarse.toml"))

Needs the packages of ``bark-jax[train]``, which `import bark_jax` does not import.
"""

try:
    import grain as _grain  # noqa: F401
    import optax as _optax  # noqa: F401
    import orbax.checkpoint as _orbax  # noqa: F401
    import pyarrow as _pyarrow  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"training needs {error.name}: pip install 'bark-jax[train]'", name=error.name) from None

from bark_jax.train.config import LoRA, TrainConfig
from bark_jax.train.data import Corpus, DataError, from_voices, read, write
from bark_jax.train.finetune import Tuned, finetune
from bark_jax.train.loop import Result, TrainingError, train
from bark_jax.train.prepare import Prepared, prepare
from bark_jax.train.runs import RunError

__all__ = [
    "Corpus",
    "DataError",
    "LoRA",
    "Prepared",
    "Result",
    "RunError",
    "TrainConfig",
    "TrainingError",
    "Tuned",
    "finetune",
    "from_voices",
    "prepare",
    "read",
    "train",
    "write",
]
