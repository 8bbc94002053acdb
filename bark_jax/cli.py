"""``bark-jax``: say, voices, info, train, finetune, export.

Exit code 0 only on success; an error is one line on stderr and code 1 (usage 2).
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import click

import bark_jax
from bark_jax import audio


class _Commands(click.Group):
    """Turns the errors that users cause into one line; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, BrokenPipeError):  # a reader that closed the pipe had what it wanted
            raise
        except (ValueError, OSError, ModuleNotFoundError) as error:
            raise click.ClickException(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    first, *more = (str(error) or type(error).__name__).split("\n")
    return " ".join([first, "; ".join(line.strip() for line in more)]).strip()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(bark_jax.__version__, prog_name="bark-jax")
def main() -> None:
    """Bark text-to-speech in JAX."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


_model = click.option(
    "-m",
    "--model",
    default="bark-nano",
    show_default=True,
    help="A folder (native, Suno's .pt files, Hugging Face) or a hub id such as suno/bark.",
)
_offline = click.option("--local-files-only", is_flag=True, help="Never use the network.")


@main.command()
@click.argument("text", nargs=-1, required=True)
@_model
@click.option("-v", "--voice", help="A voice's name (see `bark-jax voices`) or file.")
@click.option("-a", "--adapter", "adapters", multiple=True, help="An adapter's file; again for other networks.")
@click.option("-o", "--output", default="speech.wav", show_default=True, help="wav, flac or ogg.")
@click.option("--seed", type=int, help="0 to 2**64 - 1; the same seed says it the same way.")
@click.option("--text-temperature", type=float, default=0.7, show_default=True)
@click.option("--coarse-temperature", type=float, default=0.7, show_default=True)
@click.option("--fine-temperature", type=float, default=0.5, show_default=True)
@click.option("--top-k", type=int, help="Keep the k most likely tokens.")
@click.option("--top-p", type=float, help="Keep the most likely tokens up to this sum.")
@click.option("--min-eos-p", type=float, default=0.2, show_default=True, help="End the speech at this probability.")
@click.option("--max-duration", type=float, help="Seconds; the model's limit is about 15.")
@click.option("--greedy", is_flag=True, help="No randomness: the most likely token at every step.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of the weights.")
@click.option("--device", type=click.Choice(["cpu", "gpu", "tpu"]))
@click.option("--float", "as_float", is_flag=True, help="Write 32-bit float samples (wav only).")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
@_offline
def say(
    text: tuple[str, ...],
    model: str,
    voice: str | None,
    adapters: tuple[str, ...],
    output: str,
    seed: int | None,
    text_temperature: float,
    coarse_temperature: float,
    fine_temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_eos_p: float,
    max_duration: float | None,
    greedy: bool,
    dtype: str | None,
    device: str | None,
    as_float: bool,
    quiet: bool,
    local_files_only: bool,
) -> None:
    """Speak TEXT into a file ("-" reads the text from stdin)."""
    line = " ".join(text)
    if line == "-":
        line = sys.stdin.read()
    settings = bark_jax.Sampling(
        text_temperature=0.0 if greedy else text_temperature,
        coarse_temperature=0.0 if greedy else coarse_temperature,
        fine_temperature=0.0 if greedy else fine_temperature,
        top_k=top_k,
        top_p=top_p,
        min_eos_p=min_eos_p,
        max_duration_s=max_duration,
    )
    _check_output(Path(output), "float" if as_float else None)
    # What is said once has one adapter, whatever the files; errors call it by the first one's name.
    adapter = (Path(adapters[0]).name[:100] or "adapter") if adapters else None
    bark = bark_jax.load(
        model,
        dtype=dtype,
        device=device,
        adapters={adapter: adapters} if adapter is not None else None,
        local_files_only=local_files_only,
    )
    start = time.perf_counter()
    speech = bark.generate(line, voice=voice, seed=seed, sampling=settings, adapter=adapter, progress=not quiet)
    seconds = time.perf_counter() - start
    speech.save(output, subtype="float" if as_float else None)
    if not quiet:
        factor = f", {seconds / speech.duration:.2f} × real time" if speech.duration else ""
        stages = ", ".join(f"{stage} {t:.2f}" for stage, t in speech.timings.items())
        click.echo(f"{output}: {speech.duration:.2f} s of speech, seed {speech.seed}")
        click.echo(f"took {seconds:.2f} s with compilation{factor} ({stages})", err=True)


def _check_output(path: Path, subtype: str | None) -> None:
    """Refuse what could not be written at the end before anything is computed."""
    formats = audio.FORMATS
    if path.suffix.lower() not in formats:
        raise ValueError(f"The output is {str(path)!r}: its ending must be one of {', '.join(formats)}")
    if subtype and subtype not in formats[path.suffix.lower()]:
        raise ValueError(f"The output is {str(path)!r}: only .wav holds float samples")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"There is no folder {parent} to write {path.name} into")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: the output must be a file")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"The folder {parent} cannot be written to")


@main.command()
@_model
@_offline
def voices(model: str, local_files_only: bool) -> None:
    """List the voices on this machine that MODEL can use."""
    names = bark_jax.load(model, device="cpu", local_files_only=local_files_only).voices()
    for name in names:
        click.echo(name)
    if not names:
        click.echo("no voices here: set BARK_JAX_VOICES to a folder of .npz files, or give a file", err=True)


@main.command()
@_model
@_offline
def info(model: str, local_files_only: bool) -> None:
    """Show what MODEL is made of, and what this machine offers."""
    import jax

    bark = bark_jax.load(model, device="cpu", dtype="float32", local_files_only=local_files_only)
    config = bark.config
    click.echo(f"bark-jax    {bark_jax.__version__} (jax {jax.__version__}, Python {sys.version.split()[0]})")
    click.echo(f"devices     {', '.join(str(device) for device in jax.devices())}")
    click.echo(f"model       {model} (tokens of {config.fingerprint})")
    bases = bark.bases()
    for name, count in bark.parameters().items():
        network = getattr(getattr(config, name), "network", None)
        size = f"{network.n_layer} layers, {network.n_head} heads, width {network.n_embd}" if network else "EnCodec"
        size += f", base {bases[name]} of adapters" if name in bases else ""
        click.echo(f"{name:<11} {count / 1e6:8.1f} M parameters, {size}")
    limit = config.semantic.max_tokens / config.semantic.rate_hz
    click.echo(f"limits      {config.semantic.text_length} text tokens, {limit:.1f} s of speech per call")
    click.echo(f"audio       {config.codec.sample_rate} Hz, {config.codec.n_codebooks} codebooks")
    click.echo(f"voices      {len(bark.voices())} on this machine")


@main.command()
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting; again for others.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the result.")
def train(config: str, changes: tuple[str, ...], quiet: bool) -> None:
    """Train one stage as the TOML file CONFIG says; run it again to continue.

    The settings are those of bark_jax.train.TrainConfig.
    """
    from bark_jax.train import TrainConfig
    from bark_jax.train import train as run

    _say(run(TrainConfig.load(config, changes), progress=not quiet).product)


@main.command()
@click.option("-m", "--model", required=True, help="What to start from: a folder or a hub id, as for `say`.")
@click.option("-d", "--data", multiple=True, required=True, help="Parquet file or folder of rows; again for others.")
@click.option("-o", "--out", required=True, help="Folder of the result; run the same again to continue.")
@click.option("--stage", default="coarse,fine", show_default=True, help="Of text, coarse, fine; with commas.")
@click.option("--lora", type=int, metavar="RANK", help="Train a small adapter of this rank, not all weights.")
@click.option("--alpha", type=float, help="Scale of the adapter times its rank.  [default: the rank]")
@click.option("--steps", type=int, help="Updates per stage.  [default: coarse 500, fine 200, text 200]")
@click.option("--batch", type=int, help="Rows per update.  [default: 16]")
@click.option("--accumulate", type=int, help="Compute a batch in this many parts: less memory.")
@click.option("--learning-rate", type=float, help="[default: LoRA 1e-4 (text 5e-5), full 1e-5]")
@click.option("--rehearsal", multiple=True, help="Rows of other voices, against forgetting; again for others.")
@click.option("--rehearsal-share", type=float, help="Their share of each batch.  [default: 0.15]")
@click.option("--dropout", type=float, help="Of the whole network.  [default: 0]")
@click.option("--patience", type=int, help="Stop after so many evaluations without a better one.")
@click.option("--evaluate-every", type=int, help="Updates between evaluations.  [default: 50]")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of the computation; weights are float32.")
@click.option("--remat", type=click.Choice(["none", "block"]), help="block: half the memory, a third slower.")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the result.")
def finetune(
    model: str,
    data: tuple[str, ...],
    out: str,
    stage: str,
    lora: int | None,
    alpha: float | None,
    steps: int | None,
    quiet: bool,
    **settings: Any,
) -> None:
    """Adapt stages of a model to rows of tokens: an adapter with --lora, else a whole model."""
    from bark_jax.config import ConfigError
    from bark_jax.train import LoRA
    from bark_jax.train import finetune as run

    if alpha is not None and lora is None:
        raise ConfigError(f"--alpha is {alpha}: it belongs to --lora")
    given = {name: value for name, value in settings.items() if value not in (None, ())}
    tuned = run(
        model,
        data,
        out,
        stages=[part.strip() for part in stage.split(",")],
        lora=None if lora is None else LoRA(rank=lora, alpha=alpha),
        steps=steps,
        progress=not quiet,
        **given,
    )
    _say(tuned.product)


@main.command()
@click.argument("base")
@click.argument("dst", type=click.Path())
@click.option("--format", "kind", type=click.Choice(["native", "suno", "hf"]), default="native", show_default=True)
@click.option("-n", "--network", "networks", multiple=True, help="A trained network's file, to replace the base's.")
@click.option("-a", "--adapter", "adapters", multiple=True, help="An adapter's file, to add to the base's weights.")
@click.option("--size", type=click.Choice(["large", "small"]), default="large", show_default=True, help="suno: names.")
def export(base: str, dst: str, kind: str, networks: tuple[str, ...], adapters: tuple[str, ...], size: str) -> None:
    """Write BASE, with what was trained on it, as a new folder DST that others can load.

    native: for bark_jax. suno: Suno's .pt files (needs torch). hf: for transformers' BarkModel.
    """
    from bark_jax import assemble, library

    folder = Path(base)
    native = (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()
    if not native or any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        folder, _ = library.locate(base)
    replaced = assemble.changed(folder, networks, adapters)
    if kind == "native":
        _say(assemble.native(dst, folder, replaced))
        return
    from convert import export as formats

    click.echo(formats.export(folder, dst, format=kind, size=size, networks=replaced, log=_note))


def _say(product: Path) -> None:
    click.echo(str(product))


def _note(line: str) -> None:
    click.echo(line, err=True)
