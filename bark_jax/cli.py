"""``bark-jax``: say, read, synthesize, clone, voices, info, prepare, train, finetune, evaluate, export.

Exit code 0 only on success; an error is one line on stderr and code 1 (usage 2).
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import bark_jax
from bark_jax import audio, files, speech, splitting
from bark_jax.settings import LATENCIES, new_seed


class _Commands(click.Group):
    """Turns the errors that users cause into one line; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, BrokenPipeError):  # a reader that closed the pipe had what it wanted
            raise
        except (ValueError, OSError, MemoryError, ModuleNotFoundError) as error:
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
_device = click.option("--device", type=click.Choice(["cpu", "gpu", "tpu"]))
_offline = click.option("--local-files-only", is_flag=True, help="Never use the network.")


def _together(*options: Any) -> Any:
    """Several options as one decorator."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_speaking = _together(
    _model,
    click.option("-v", "--voice", help="A voice's name (see `bark-jax voices`) or file."),
    click.option(
        "--cast",
        multiple=True,
        metavar="NAME=VOICE",
        help="A speaker of a script, whose lines begin with NAME:; again.",
    ),
    click.option("-a", "--adapter", "adapters", multiple=True, help="An adapter's file; again for other networks."),
    click.option("--seed", type=int, help="0 to 2**64 - 1; the same seed says it the same way."),
    click.option("--text-temperature", type=float, default=0.7, show_default=True),
    click.option("--coarse-temperature", type=float, default=0.7, show_default=True),
    click.option("--fine-temperature", type=float, default=0.5, show_default=True),
    click.option("--top-k", type=int, help="Keep the k most likely tokens."),
    click.option("--top-p", type=float, help="Keep the most likely tokens up to this sum."),
    click.option("--min-eos-p", type=float, default=0.2, show_default=True, help="End the speech at this probability."),
    click.option("--max-duration", type=float, help="Seconds of a call; the model's limit is about 15."),
    click.option("--greedy", is_flag=True, help="No randomness: the most likely token at every step."),
    click.option("--no-split", is_flag=True, help="One call, however long the text is."),
    click.option(
        "--carry",
        type=click.Choice(splitting.POLICIES),
        help="Who speaks a longer text's parts: the voice given, the first part's, or always the part's before.",
    ),
    click.option(
        "--pause", type=float, default=splitting.Split.pause_s, show_default=True, help="Between sentences, s."
    ),
    click.option(
        "--retries", type=int, default=splitting.Split.retries, show_default=True, help="Of a part that ran away."
    ),
    click.option("--language", type=click.Choice(splitting.LANGUAGES), help="Of the text, to find its sentences."),
    click.option("--timestamps", type=click.Path(dir_okay=False), help="Write when parts are spoken: .srt or .json."),
    click.option("--dtype", type=click.Choice(["float32", "bfloat16", "int8"]), help="Of the weights."),
    _device,
    click.option("--offload", is_flag=True, help="Weights are on the device only while their stage runs."),
    click.option("--float", "as_float", is_flag=True, help="Write 32-bit float samples (wav only)."),
    click.option("-q", "--quiet", is_flag=True, help="No progress, no summary."),
    _offline,
)


def _prepared(given: dict[str, Any]) -> tuple[bark_jax.Bark, dict[str, Any]]:
    """The loaded model, and what its methods are told, of the options of `_speaking`."""
    greedy = given["greedy"]
    settings = bark_jax.Sampling(
        text_temperature=0.0 if greedy else given["text_temperature"],
        coarse_temperature=0.0 if greedy else given["coarse_temperature"],
        fine_temperature=0.0 if greedy else given["fine_temperature"],
        top_k=given["top_k"],
        top_p=given["top_p"],
        min_eos_p=given["min_eos_p"],
        max_duration_s=given["max_duration"],
    )
    how = bark_jax.Split(
        voice=given["carry"], pause_s=given["pause"], retries=given["retries"], language=given["language"]
    )
    cast = dict(pair.partition("=")[::2] for pair in given["cast"])
    if len(cast) < len(given["cast"]):
        raise ValueError(f"The cast has {len(given['cast'])} voices for {len(cast)} names: a name has one")
    if not all(cast.values()):
        wrong = next(name for name, voice in cast.items() if not voice)
        raise ValueError(f"The cast has {wrong!r}: it must be NAME=VOICE")
    if cast and given["voice"]:
        raise ValueError("There are a voice and a cast: name the voice of every speaker in the cast")
    if given["timestamps"]:
        speech.check_timestamps(given["timestamps"])
    # What is said once has one adapter, whatever the files; errors call it by the first one's name.
    files = given["adapters"]
    adapter = (Path(files[0]).name[:100] or "adapter") if files else None
    bark = bark_jax.load(
        given["model"],
        dtype=given["dtype"],
        device=given["device"],
        offload=given["offload"],
        adapters={adapter: files} if adapter is not None else None,
        local_files_only=given["local_files_only"],
    )
    options = {
        "voice": cast or given["voice"],
        "seed": given["seed"],
        "sampling": settings,
        "adapter": adapter,
        "split": False if given["no_split"] else how,
        "progress": not given["quiet"],
    }
    return bark, options


def _stdin() -> str:
    """What comes on the standard input, UTF-8."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"The standard input is not UTF-8 text: {error}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _apart(paths: Mapping[str, str | None]) -> None:
    """Raises `ValueError` if two of the files are one."""
    seen: dict[str, str] = {}
    for name, path in paths.items():
        if path:
            other = seen.setdefault(os.path.realpath(path), name)
            if other != name:
                raise ValueError(f"{other} and {name} are both {path}: one would be written over the other")


def _named(place: str) -> Any:
    """The function that MODULE:FUNCTION names."""
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"The mark is {place!r}: it must be MODULE:FUNCTION ({error})") from None
    if not callable(found):
        raise ValueError(f"The mark is {place!r}, which cannot be called")
    return found


@main.command()
@click.argument("text", nargs=-1, required=True)
@click.option("-o", "--output", default="speech.wav", show_default=True, help="wav, flac, ogg or mp3.")
@click.option("--stream", is_flag=True, help="Write raw samples to stdout as they are made, and no file.")
@click.option(
    "--latency", type=click.Choice(LATENCIES), default="exact", show_default=True, help="low: sooner; other codes."
)
@click.option("--about", is_flag=True, help="Write OUTPUT.json: model, weights, voice, seed, digest of the text.")
@click.option(
    "--mark", metavar="MODULE:FUNCTION", help="What puts a watermark into the audio: (samples, rate) → samples."
)
@_speaking
def say(
    text: tuple[str, ...], output: str, stream: bool, latency: str, about: bool, mark: str | None, **given: Any
) -> None:
    """Speak TEXT into a file ("-" reads the text from stdin).

    With --stream: 16-bit little-endian mono at 24 kHz to stdout, for `aplay -f S16_LE -r 24000`.
    """
    line = " ".join(text)
    if line == "-":
        line = _stdin()
    if stream:
        named = click.get_current_context().get_parameter_source("output") is not ParameterSource.DEFAULT
        for name, there in (
            ("--timestamps", given["timestamps"]),
            ("--about", about),
            ("--mark", mark),
            ("--output", named),
            ("--float", given["as_float"]),
        ):
            if there:
                raise ValueError(f"There are --stream and {name}: a stream has none")
        if sys.stdout is None:
            raise OSError("There is no standard output to write the stream to")
        if given["seed"] is None:
            given["seed"] = new_seed()
            if not given["quiet"]:
                _note(f"seed {given['seed']}")
        bark, options = _prepared(given)
        for chunk in bark.stream(line, latency=latency, **options):
            sys.stdout.buffer.write(audio.pcm16_bytes(chunk.audio))
            sys.stdout.buffer.flush()
        return
    if latency != LATENCIES[0]:
        raise ValueError(f"The latency is {latency!r}: it belongs to --stream")
    audio.check_output(output, "float" if given["as_float"] else None)
    _apart({"--output": output, "--about": f"{output}.json" if about else None, "--timestamps": given["timestamps"]})
    marker = None if mark is None else _named(mark)
    bark, options = _prepared(given)
    start = time.perf_counter()
    said = bark.generate(line, **options)
    seconds = time.perf_counter() - start
    made = {name: options[name] for name in ("voice", "sampling", "adapter")}
    said.save(
        output,
        subtype="float" if given["as_float"] else None,
        about=bark.about(said, **made) | {"mark": mark} if about else None,
        mark=marker,
    )
    if given["timestamps"]:
        said.save_timestamps(given["timestamps"])
    if not given["quiet"]:
        factor = f", {seconds / said.duration:.2f} × real time" if said.duration else ""
        stages = ", ".join(f"{stage} {t:.2f}" for stage, t in said.timings.items())
        click.echo(f"{output}: {said.duration:.2f} s of speech, seed {said.seed}")
        click.echo(f"took {seconds:.2f} s with compilation{factor} ({stages})", err=True)


@main.command()
@click.argument("book", type=click.Path(allow_dash=True, dir_okay=False))
@click.option("-o", "--output", required=True, help="wav, flac, ogg or mp3.")
@_speaking
def read(book: str, output: str, **given: Any) -> None:
    """Speak BOOK, a text file in UTF-8 ("-" is stdin), into a file; started again after a kill, it goes on.

    Until it is done, what there is so far is in the folder OUTPUT.part. An OUTPUT that is there already is left alone.
    """
    from bark_jax import reading

    subtype = "float" if given["as_float"] else "pcm16" if Path(output).suffix.lower() == ".wav" else None
    audio.check_output(output, "float" if given["as_float"] else None)
    _apart({"BOOK": None if book == "-" else book, "--output": output, "--timestamps": given["timestamps"]})
    if not Path(f"{output}.part").exists():
        files.absent(Path(output))
    try:
        text = _stdin() if book == "-" else Path(book).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{book} is not UTF-8 text: {error}") from None
    bark, options = _prepared(given)
    try:
        segments = reading.read(bark, text, output, subtype=subtype, timestamps=given["timestamps"] or None, **options)
    except KeyboardInterrupt:
        _note(f"stopped: the same command goes on from what is in {output}.part")
        raise
    if not given["quiet"]:
        end = segments[-1].end if segments else 0.0
        click.echo(f"{output}: {end / 60:.1f} minutes of speech in {len(segments)} parts")


@main.command()
@click.argument("clip", type=click.Path(dir_okay=False))
@click.option("-o", "--output", required=True, help="Of the voice: .npz or .safetensors.")
@click.option("--consent", required=True, metavar="WHO", help="Who agreed that their voice is used; kept in the file.")
@_model
@_device
@_offline
def clone(clip: str, output: str, consent: str, model: str, device: str | None, local_files_only: bool) -> None:
    """Make a voice of CLIP, 1.1 to 15 s of one person speaking (5 to 10 are best), for `say --voice FILE`.

    Only of people who agreed to it: --consent names them, and goes with the voice.
    """
    from bark_jax import voice

    if Path(output).suffix not in (".npz", ".safetensors"):
        raise ValueError(f"The output is {output!r}: a voice ends in .npz or .safetensors")
    audio.check_place(Path(output))
    record = voice.agreed(consent, clip)
    bark = bark_jax.load(model, device=device, local_files_only=local_files_only)
    made = bark.clone(clip, consent=record)
    made.save(output)
    click.echo(f"{output}: {len(made.semantic) / bark.config.semantic.rate_hz:.1f} s of a voice, consent of {record}")


@main.command()
@click.argument("input", nargs=-1, required=True)
@click.option("-o", "--out", required=True, help="Folder, or an address in a store; run the same again to continue.")
@_model
@click.option("--revision", help="Of a hub id.")
@click.option("-v", "--voice", help="Of rows that name none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the job; every row has its own from it.")
@click.option("--text-temperature", type=float, default=0.7, show_default=True)
@click.option("--coarse-temperature", type=float, default=0.7, show_default=True)
@click.option("--fine-temperature", type=float, default=0.5, show_default=True)
@click.option("--no-split", is_flag=True, help="One call for each row, however long its text is.")
@click.option("--rows", type=int, default=16, show_default=True, help="Texts spoken at once, in the whole run.")
@click.option("--audio", type=click.Choice(["flac", "pcm16"]), default="flac", show_default=True)
@click.option("--format", "kind", type=click.Choice(["parquet", "webdataset"]), default="parquet", show_default=True)
@click.option("--shard-rows", type=int, default=128, show_default=True, help="Rows of a file of the result.")
@click.option(
    "--deadline",
    type=float,
    default=600.0,
    show_default=True,
    help="Seconds without any progress after which a row is given up.",
)
@click.option("--id-column", default="id", show_default=True)
@click.option("--text-column", default="text", show_default=True)
@click.option("--voice-column", default="voice", show_default=True, help="It may be missing.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "int8"]), help="Of the weights.")
@_device
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--actors", type=int, help="ray: most workers at once.")
@click.option("--gpus", type=float, help="ray: of a worker.")
@click.option("--tpus", type=int, help="ray: chips of a worker, 1, 2, 4 or 8.")
@click.option("--cpus", type=float, help="ray: of a worker.")
@click.option("--retry-errors", is_flag=True, help="Make parts again that have rows with an error.")
@click.option("--verify", is_flag=True, help="Compare the SHA-256 of parts that are there, not their sizes alone.")
@click.option("--dry-run", is_flag=True, help="Speak a few rows, write nothing, and tell what all would take.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def synthesize(input: tuple[str, ...], out: str, kind: str, deadline: float, **given: Any) -> None:
    """Speak every row of INPUT (Parquet, JSON lines, text lines) exactly once, into files of speech.

    A row that cannot be spoken is there with its error; if that is all of them, the exit code is 1. The last line of
    the output is a summary as JSON.
    """
    import dataclasses
    import json

    from bark_jax.synthesis import Job, estimate, synthesize_dataset

    same = ("model", "revision", "voice", "seed", "rows", "audio", "shard_rows", "dtype")
    job = Job(
        **{name: given[name] for name in (*same, "id_column", "text_column", "voice_column")},
        sampling=bark_jax.Sampling(
            **{f"{name}_temperature": given[f"{name}_temperature"] for name in ("text", "coarse", "fine")}
        ),
        split=not given["no_split"],
        format=kind,
        deadline_s=deadline,
    )
    if given["dry_run"]:
        guess = estimate(list(input), job, device=given["device"])
        _note(
            f"{guess.rows:,} rows: {guess.audio_hours:,.2f} hours of speech, {guess.hours:,.2f} hours of work here "
            f"(real-time factor {guess.real_time_factor:.2f}), {guess.gigabytes:,.2f} GB"
        )
        click.echo(json.dumps(dataclasses.asdict(guess)))
    else:
        actors, tpus = given["actors"], given["tpus"]
        cluster: dict[str, Any] = {
            "actors": (1, actors) if actors is not None else None,
            "num_gpus": given["gpus"],
            "num_cpus": given["cpus"],
            "resources": {"TPU": tpus} if tpus is not None else None,
        }
        cluster = {name: value for name, value in cluster.items() if value is not None}
        try:
            found = synthesize_dataset(
                list(input),
                out,
                job,
                engine=given["engine"],
                device=given["device"],
                progress=None if given["quiet"] else _note,
                retry_errors=given["retry_errors"],
                verify=given["verify"],
                **cluster,
            )
        except KeyboardInterrupt:
            _note("stopped: what was made stays, the same command goes on")
            raise
        _note(found.line())
        click.echo(json.dumps(dataclasses.asdict(found)))
        if found.errors == found.rows:
            raise click.ClickException(f"none of the {found.rows:,} rows could be spoken: their error column says why")


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

    from bark_jax import memory, native

    bark = bark_jax.load(model, device="cpu", dtype="float32", local_files_only=local_files_only)
    config = bark.config
    click.echo(f"bark-jax    {bark_jax.__version__} (jax {jax.__version__}, Python {sys.version.split()[0]})")
    click.echo(f"devices     {', '.join(str(device) for device in jax.devices())}")
    click.echo(f"kernels     {native.status()}")
    click.echo(f"model       {model} (tokens of {config.fingerprint})")
    bases = bark.bases()
    for name, count in bark.parameters().items():
        network = getattr(getattr(config, name), "network", None)
        size = f"{network.n_layer} layers, {network.n_head} heads, width {network.n_embd}" if network else "EnCodec"
        size += f", base {bases[name]} of adapters" if name in bases else ""
        click.echo(f"{name:<11} {count / 1e6:8.1f} M parameters, {size}")
    limit = config.semantic.max_tokens / config.semantic.rate_hz
    click.echo(f"limits      {config.semantic.text_length} text tokens, {limit:.1f} s of speech per call")
    for kind in memory.BYTES:
        whole, largest = (memory.need(config, kind, offload=offload) / 1e6 for offload in (False, True))
        click.echo(f"memory      {whole:8,.1f} MB of weights in {kind}, {largest:,.1f} offloaded")
    full, half = (memory.of_row(config, kind) / 1e6 for kind in ("float32", "bfloat16"))
    click.echo(f"            {full:8,.1f} MB for each row of a batch, {half:,.1f} with a bfloat16 cache (GPU, TPU)")
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
@click.argument("source", type=click.Path())
@click.option("-o", "--out", required=True, help="Folder of the rows; run the same again to continue.")
@click.option("--consent", required=True, metavar="WHO", help="Who agreed that their voice is learnt; kept.")
@click.option("-v", "--voice", help="The speaker's name.  [default: the name of each recording's folder]")
@click.option("-t", "--transcripts", help="A table (CSV, TSV), or a folder of Whisper's JSON or of .txt files.")
@click.option("--validation", type=float, default=0.05, show_default=True, help="Share kept from training.")
@click.option(
    "--one-speaker/--any-speaker",
    default=None,
    help="Leave out clips in which somebody else speaks.  [default: if Resemblyzer is installed]",
)
@_model
@_device
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the result.")
@_offline
def prepare(
    source: str,
    out: str,
    consent: str,
    voice: str | None,
    transcripts: str | None,
    validation: float,
    one_speaker: bool | None,
    model: str,
    device: str | None,
    quiet: bool,
    local_files_only: bool,
) -> None:
    """Make rows to fine-tune MODEL on, of a folder of recordings SOURCE.

    What is no speech, spoilt or of another text is left out, each with its reason in OUT/report.json.
    """
    from bark_jax.train import prepare as run

    bark = bark_jax.load(model, device=device, local_files_only=local_files_only)
    made = run(
        bark,
        source,
        out,
        voice=voice,
        consent=consent,
        transcripts=transcripts,
        validation=validation,
        one_speaker=one_speaker,
        progress=not quiet,
    )
    for line in [*map(str, made.rejected[:20]), *made.notes]:
        _note(line)
    if len(made.rejected) > 20:
        _note(f"and {len(made.rejected) - 20} more, see report.json")
    click.echo(f"{made.rows}: {len(made.clips)} clips, {made.minutes:.1f} minutes; {len(made.rejected)} rejected")


@main.command()
@click.option("-m", "--model", required=True, help="What to start from: a folder or a hub id, as for `say`.")
@click.option("-d", "--data", multiple=True, required=True, help="Parquet file or folder of rows; again for others.")
@click.option("-o", "--out", required=True, help="Folder of the result; run the same again to continue.")
@click.option("--consent", required=True, metavar="WHO", help="Who agreed that their voice is learnt; kept.")
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
    """Adapt stages of a model to rows of tokens: an adapter with --lora, else a whole model.

    What is not given is as the model's training.json says, if it has one, and else the default.
    """
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
@click.argument("speaker", type=click.Path())
@click.option("-o", "--out", required=True, help="New folder for the audio and the figures.")
@_model
@click.option("-v", "--voice", help="Who speaks: a voice's name or file.")
@click.option(
    "-a", "--adapter", "adapters", multiple=True, help="After fine-tuning: an adapter's file; again for more."
)
@click.option("--tuned", help="After fine-tuning: a whole model.")
@click.option("--others", multiple=True, help="Folder of somebody else's recordings; again for others.")
@click.option("--texts", type=click.Path(dir_okay=False), help="What is said, a line each.  [default: 20 sentences]")
@click.option("--takes", type=int, default=1, show_default=True, help="How often each is said.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--whisper", metavar="MODEL", help="Judge the words too: a size (base) or a folder for faster-whisper.")
@click.option("--language", default="en", show_default=True, help="Of the texts, for --whisper.")
@_device
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the result.")
@_offline
def evaluate(
    speaker: str,
    out: str,
    model: str,
    voice: str | None,
    adapters: tuple[str, ...],
    tuned: str | None,
    others: tuple[str, ...],
    texts: str | None,
    takes: int,
    seed: int,
    whisper: str | None,
    language: str,
    device: str | None,
    quiet: bool,
    local_files_only: bool,
) -> None:
    """How much MODEL sounds like SPEAKER, a folder of recordings, before and after fine-tuning.

    A table, OUT/evaluation.json and OUT/evaluation.png. Needs Resemblyzer, and faster-whisper for --whisper.
    """
    from bark_jax import evaluate as measure
    from bark_jax import judges

    if adapters and tuned:
        raise ValueError("There are --adapter and --tuned: measure one after the other")
    lines: Any = measure.TEXTS
    if texts:
        lines = [line.strip() for line in Path(texts).read_text("utf-8-sig").splitlines() if line.strip()]
    load = {"device": device, "local_files_only": local_files_only}
    bark = bark_jax.load(model, adapters={"tuned": adapters} if adapters else None, **load)
    ways = {"before": measure.Way(bark, voice)}
    if adapters:
        ways["after"] = measure.Way(bark, voice, "tuned")
    elif tuned:
        ways["after"] = measure.Way(bark_jax.load(tuned, **load), voice)
    found = measure.evaluate(
        ways,
        speaker,
        out,
        others=others,
        texts=lines,
        takes=takes,
        seed=seed,
        listener=judges.Listener(whisper, language=language) if whisper else None,
        log=None if quiet else _note,
    )
    click.echo(found.table())


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
