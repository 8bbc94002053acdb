"""Corpora: files of texts → files of speech, each text exactly once. The public door, nothing else.

    from bark_jax.synthesis import Job, synthesize_dataset

    synthesize_dataset("corpus.parquet", "out", Job(model="suno/bark", voice="v2/en_speaker_6"))

Needs pyarrow (``bark-jax[corpus]``), which `import bark_jax` does not import.
"""

try:
    import pyarrow as _pyarrow  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"corpora need {error.name}: pip install 'bark-jax[corpus]'", name=error.name) from None

from bark_jax.synthesis.job import SCHEMA, Job, JobError, Row, row_seed
from bark_jax.synthesis.local import Summary, estimate, synthesize_dataset
from bark_jax.synthesis.worker import SynthesisWorker

__all__ = [
    "SCHEMA",
    "Job",
    "JobError",
    "Row",
    "Summary",
    "SynthesisWorker",
    "estimate",
    "row_seed",
    "synthesize_dataset",
]
