"""``python -m convert SRC DST``: the command line of the converter.

Exit code 0 only if DST is complete; errors are one ``error: ...`` on stderr and exit code 1, wrong usage is 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bark_jax.hub import STAGES
from convert import DTYPES, convert, run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert",
        description="Convert published Bark weights into a folder that bark_jax loads. Works offline when everything "
        "is local; the hub is asked only for what is missing.",
    )
    parser.add_argument("src", metavar="SRC", help="folder of Suno's .pt files, Hugging Face Bark folder, or hub id")
    parser.add_argument("dst", metavar="DST", help="folder to make")
    parser.add_argument("--codec", metavar="PATH", help="encodec_24khz-*.th, or a Hugging Face EnCodec folder")
    parser.add_argument("--tokenizer", metavar="PATH", help="vocab.txt or tokenizer.json")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the GPTs' tables and linears")
    parser.add_argument("--size", choices=("small", "large"), help="which .pt files, where SRC has both")
    for stage in STAGES:
        parser.add_argument(f"--{stage}-size", choices=("small", "large"), help=f"the same, for {stage} only")
    parser.add_argument("--verify", action="store_true", help="compare logits and audio with torch before finishing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    chosen = {stage: getattr(arguments, f"{stage}_size") or arguments.size for stage in STAGES}
    return run(
        lambda: convert(
            arguments.src,
            arguments.dst,
            codec=arguments.codec,
            tokenizer=arguments.tokenizer,
            dtype=arguments.dtype,
            sizes={stage: size for stage, size in chosen.items() if size},
            verify=arguments.verify,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
