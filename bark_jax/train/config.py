"""The settings of a training run, as a frozen dataclass that reads and writes TOML strictly.

Takes a TOML file or keyword arguments, gives a checked `TrainConfig`: unknown keys, wrong types and values out of range
are refused, all of them in one message. Knows no array, no data and no network: what depends on those (names that
`freeze` matches, the codebooks a model has, devices) is checked by `bark_jax.train.loop` before anything is computed.

A run names its `stage` ("text", "coarse" or "fine": one run trains one network), its `data`, the folder `out`, the
number of `steps`, and either `model` or `config`. Everything else has a default:

    setting                    range              default   meaning, and why this default
    -------------------------  -----------------  --------  -------------------------------------------------------
    model                      folder, hub id               weights to start from
    config                     path                         config.json of a model to train from random weights
    tokenizer                  path                         tokenizer.json; stage text with `config` only
    data                       files, folders               Parquet rows; folders and globs are searched
    rehearsal                  files, folders     none      rows of other voices, mixed in against forgetting
    rehearsal_share            0 .. < 1           0.15      share of each batch that they get; 10 to 20 % is usual
    steps                      1 ..                         updates; half an hour of speech is 22 batches of 16 coarse
                                                            windows, so steps are the natural unit, not epochs
    batch                      1 ..               16        rows of one update
    accumulate                 divides batch      1         parts a batch is computed in, one after another: less
                                                            memory, the same update
    learning_rate              > 0                see why   peak. LoRA 1e-4 (text 5e-5), all weights 1e-5 (what F5 and
                                                            XTTS use, or half of it), random weights 3e-4
    final_learning_rate_ratio  0 .. 1             0.1       the last rate as a share of the peak; a cosine between
    warmup                     0 .. < steps       5 %       steps over which the rate rises to its peak
    optimizer                  adamw, muon        adamw     muon: steps of the blocks' matrices are orthogonalised, as
                                                            large as AdamW's, which does the rest. For training from
                                                            random weights, where it learns more per step
    weight_decay               0 ..               0.01      AdamW's, on linears only: not on tables, norms, biases, and
                                                            not on LoRA, whose zero is the model itself
    beta1, beta2               0 .. < 1           .9, .95   AdamW's. 0.95 looks back 20 steps: runs are a few hundred
    clip                       > 0, inf           1.0       largest norm of the gradient
    dropout                    0 .. < 1           0.0       of embeddings and of what a block adds; 0.05 to 0.1 helps
                                                            where data is little
    lora.rank                  1 ..               32        rank of the adapters
    lora.alpha                 > 0                rank      adapters are scaled by alpha / rank
    lora.targets               see `TARGETS`      all four  linears of each block that get an adapter
    lora.dropout               0 .. < 1           0.05      on what goes into an adapter
    freeze                     patterns           none      tensors to leave as they are, such as "wte.*": a text
                                                            model's table is 30 % of it. Not with LoRA, which trains
                                                            its own tensors only
    dtype                      float32, bfloat16  see why   of the computation: bfloat16 on GPU and TPU, float32 on
                                                            CPU. Weights and optimizer are float32 always
    remat                      none, block        see why   "block" computes each block again in the backward pass: a
                                                            third more work, a fraction of the memory. Default: block
                                                            on GPU and TPU, none on CPU
    history_share              0 .. 1             0.5       share of rows that follow another clip of their voice
    codebooks                  within the model   see why   stage fine: which are trained. Default: those that the fine
                                                            stage fills when it follows the coarse stage (2 to 7)
    coarse_loss                all, window        all       stage coarse: learn every token of a prompt, or the window
                                                            (60 tokens) that is drawn from it; some ten times slower
    coarse_history             full, random       full      stage coarse: most earlier tokens of a prompt. "random" is
                                                            for a model that will be run with less than 630, too
    joined                     0 .. < 1           0.0       stage text: how likely a row goes on with another one of its
                                                            voice, and that one with a third, as far as they fit: long
                                                            texts for a model whose clips are short; bark-nano is
                                                            trained with 0.7
    text_noise                 0 .. < 1           0.0       stage text: share of a clip's semantic tokens that are shown
                                                            wrongly, in stretches from elsewhere in the clip, so that
                                                            the model finds its place again after its own mistakes;
                                                            bark-nano is trained with 0.15
    coarse_noise               0 .. < 1           0.0       stage coarse: share of a clip's frames that the prompt shows
                                                            wrongly, in stretches from elsewhere in the clip, so that
                                                            the model finds its way back after its own mistakes;
                                                            bark-nano is trained with 0.3
    coarse_own                 0 .. < 1           0.0       stage coarse: share of the frames that show what the network
                                                            itself draws there: it meets its own mistakes (scheduled
                                                            sampling); a third more work
    fine_smoothing             0 .. 10            0.0       stage fine: how far the right answer is spread to codes that
                                                            are near the true one, see `loss.smoothed`. What the network
                                                            cannot know it then leaves out, instead of drawing noise;
                                                            bark-nano is trained with 0.33
    bare                       0 .. < 1           0.0       stages text and coarse: share of the prompts without any
                                                            text, or without any semantic token, for guidance
    guidance                   1 .. 10            1.0       stages text and coarse: learn to draw what guidance of this
                                                            strength would draw, what fits the text (the semantic
                                                            tokens) better than it would fit without; needs bare (0.1),
                                                            and a third more work; bark-nano is trained with 2 and 4
    sharpness                  0.01 .. 100        1.0       the network's logits are taken for so many times those of
                                                            what is likely, where a model was made to draw colder than
                                                            it was trained: bark-nano's text stage 1.75
    alignment                  0 .. 10            0.0       stage text: weight of a loss that shows two heads of each
                                                            block in the middle the id of the text that is being said
                                                            and the next one; which those are is found out first, from
                                                            the rows. For training from random weights: small models do
                                                            not find their place by themselves; a twentieth more work;
                                                            bark-nano is trained with 0.5
    bucket                     1 ..               128       rows are padded to a multiple of this: few programs compile
    evaluate_every             1 ..               50        steps between evaluations on the validation rows
    patience                   1 ..               never     evaluations without improvement after which to stop
    save_every                 1 ..               200       steps between checkpoints; the best is saved besides
    keep                       1 ..               2         newest checkpoints to keep; the best is kept besides
    seed                       0 .. 2**31 - 1     0         of weights, order, windows and dropout
    log_every                  1 ..               1         steps between lines of metrics.jsonl

"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bark_jax.adapters import MAX_VALUE, TARGETS
from bark_jax.config import ConfigError
from bark_jax.hub import STAGES

MAX_BATCH = 65_536
"""Most rows of an update; a number beyond it is a slip of the hand."""

FREE = frozenset(
    {"out", "data", "rehearsal", "model", "config", "tokenizer", "save_every", "keep", "log_every", "remat"}
)
"""Settings that may differ when a run is resumed: they do not change its results. Those that name files are compared by
what is in the files."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Train low-rank adapters instead of the weights; see the table of this module."""

    rank: int = 32
    alpha: float | None = None
    targets: tuple[str, ...] = TARGETS
    dropout: float = 0.05

    def __post_init__(self) -> None:
        problems = _check_types(self, "lora.")
        if not problems:
            need = _Need(self, problems, "lora.")
            need("rank", self.rank >= 1, "it must be 1 or more")
            most = f"it must be greater than 0, and at most {MAX_VALUE:g}"
            need("alpha", self.alpha is None or 0 < self.alpha <= MAX_VALUE, most)
            need("dropout", 0 <= self.dropout < 1, "it must be 0 or more, and less than 1")
            known = ", ".join(TARGETS)
            need(
                "targets",
                len(self.targets) > 0 and set(self.targets) <= set(TARGETS),
                f"it must hold some of {known}",
            )
            need("targets", len(set(self.targets)) == len(self.targets), "it must name each linear once")
        _refuse(problems)

    @property
    def scaled_alpha(self) -> float:
        """`alpha`, or its default: the rank."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """What an adapter's output is multiplied by: alpha / rank."""
        return self.scaled_alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a training run is told; the table at the top of this module explains each setting.

    Raises:
      ConfigError: values of the wrong type, out of range, or that contradict each other. All of them are reported.
    """

    stage: str
    data: tuple[str, ...]
    out: str
    steps: int
    model: str | None = None
    config: str | None = None
    tokenizer: str | None = None
    rehearsal: tuple[str, ...] = ()
    rehearsal_share: float = 0.15
    batch: int = 16
    accumulate: int = 1
    learning_rate: float | None = None
    final_learning_rate_ratio: float = 0.1
    warmup: int | None = None
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    dropout: float = 0.0
    freeze: tuple[str, ...] = ()
    dtype: str | None = None
    remat: str | None = None
    history_share: float = 0.5
    codebooks: tuple[int, ...] | None = None
    coarse_loss: str = "all"
    coarse_history: str = "full"
    joined: float = 0.0
    text_noise: float = 0.0
    coarse_noise: float = 0.0
    coarse_own: float = 0.0
    fine_smoothing: float = 0.0
    bare: float = 0.0
    guidance: float = 1.0
    sharpness: float = 1.0
    alignment: float = 0.0
    bucket: int = 128
    evaluate_every: int = 50
    patience: int | None = None
    save_every: int = 200
    keep: int = 2
    seed: int = 0
    log_every: int = 1
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        problems = _check_types(self)
        if not problems:
            self._check_values(_Need(self, problems))
        _refuse(problems)

    def _check_values(self, need: _Need) -> None:
        def one_of(name: str, *choices: str) -> None:
            value = getattr(self, name)
            need(name, value is None or value in choices, f"choose one of {', '.join(choices)}")

        def at_least(low: float, *names: str) -> None:
            for name in names:
                value = getattr(self, name)
                need(name, value is None or low <= value < math.inf, f"it must be {low} or more")

        def share(*names: str) -> None:
            for name in names:
                need(name, 0 <= getattr(self, name) < 1, "it must be 0 or more, and less than 1")

        one_of("stage", *STAGES)
        one_of("dtype", "float32", "bfloat16")
        one_of("remat", "none", "block")
        one_of("optimizer", "adamw", "muon")
        one_of("coarse_loss", "all", "window")
        one_of("coarse_history", "full", "random")
        at_least(1, "steps", "batch", "accumulate", "bucket", "evaluate_every", "patience", "save_every", "keep")
        at_least(1, "log_every")
        need("batch", self.batch <= MAX_BATCH, f"it must be {MAX_BATCH:,} or less")
        for name in ("steps", "bucket", "evaluate_every", "save_every", "log_every", "keep", "warmup", "patience"):
            value = getattr(self, name)
            need(name, value is None or value < 2**31, "it must be less than 2**31")
        at_least(0, "weight_decay", "warmup")
        share("rehearsal_share", "beta1", "beta2", "dropout", "joined", "text_noise", "coarse_noise")
        share("coarse_own", "bare")
        for name in ("final_learning_rate_ratio", "history_share"):
            need(name, 0 <= getattr(self, name) <= 1, "it must be 0 to 1")
        need("guidance", 1 <= self.guidance <= 10, "it must be 1 to 10")
        need(
            "guidance",
            self.guidance == 1 or self.bare > 0,
            "it needs to know what is likely without text or semantic tokens: give bare, 0.1 will do",
        )
        need("sharpness", 0.01 <= self.sharpness <= 100, "it must be 0.01 to 100")
        need("alignment", 0 <= self.alignment <= 10, "it must be 0 to 10")
        need("fine_smoothing", 0 <= self.fine_smoothing <= 10, "it must be 0 to 10")
        need("fine_smoothing", self.stage == "fine" or self.fine_smoothing == 0, "it belongs to stage fine")
        need(
            "fine_smoothing",
            self.fine_smoothing == 0 or self.config is None,
            "it asks the codec which codes are near: name a model to start from (model), not config",
        )
        for name in ("alignment", "joined", "text_noise"):
            need(name, self.stage == "text" or getattr(self, name) == 0, "it belongs to stage text")
        rate = self.learning_rate
        need("learning_rate", rate is None or 0 < rate < math.inf, "it must be greater than 0")
        need("clip", self.clip > 0, "it must be greater than 0 (inf does not clip)")
        need("seed", 0 <= self.seed < 2**31, "it must be 0 to 2**31 - 1")
        need("warmup", self.warmup is None or self.warmup < self.steps, f"it must be less than steps = {self.steps}")
        need(
            "accumulate",
            self.accumulate < 1 or self.batch % self.accumulate == 0,
            f"it must divide batch = {self.batch}",
        )
        for name in ("out", "model", "config", "tokenizer"):
            need(name, getattr(self, name) != "", "it must name a file or folder")
        for path in (self.model, *self.data, *self.rehearsal):
            if path and self.out and os.path.realpath(path) == os.path.realpath(self.out):
                need.also(f"out is {self.out!r}, where the model or the rows are: it must be a folder of its own")
        for name in ("data", "rehearsal", "freeze"):
            need(name, "" not in getattr(self, name), "none of its entries may be empty")
        need("data", len(self.data) > 0, "it must name at least one file or folder of rows")
        if (self.model is None) == (self.config is None):
            which = "neither" if self.model is None else "both"
            need.also(
                f"model and config: {which} given; name the weights to start from (model), or the config.json of a "
                "model to train from random weights (config)"
            )
        needs_tokenizer = self.stage == "text" and self.config is not None
        if needs_tokenizer and self.tokenizer is None:
            need.also("tokenizer is missing: stage text with config needs the tokenizer.json of the model to come")
        need(
            "tokenizer",
            self.tokenizer is None or needs_tokenizer,
            "it belongs to stage text with config; a model has its own",
        )
        need("codebooks", self.codebooks is None or self.stage == "fine", "it belongs to stage fine")
        if self.codebooks is not None:
            right = len(self.codebooks) > 0 and len(set(self.codebooks)) == len(self.codebooks)
            need("codebooks", right and min(self.codebooks) >= 0, "it must name codebooks, each once")
        for name, default in (
            ("coarse_loss", "all"),
            ("coarse_history", "full"),
            ("coarse_noise", 0.0),
            ("coarse_own", 0.0),
        ):
            need(name, self.stage == "coarse" or getattr(self, name) == default, "it belongs to stage coarse")
        for name, default in (("bare", 0.0), ("guidance", 1.0)):
            need(name, self.stage != "fine" or getattr(self, name) == default, "it belongs to stages text and coarse")
        if self.lora is not None:
            need("freeze", not self.freeze, "it is not for LoRA, which leaves every tensor of the model as it is")
            need("optimizer", self.optimizer != "muon", "adapters are not orthogonalised: choose adamw")
            if self.config is not None:
                need.also("lora is given with config: adapters belong to trained weights, name those with model")

    # --- what None stands for -----------------------------------------------------------------------------------------

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or its default for the stage and for what is trained."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.lora is not None:
            return 5e-5 if self.stage == "text" else 1e-4
        return 1e-5 if self.config is None else 3e-4

    @property
    def warmup_steps(self) -> int:
        """`warmup`, or 5 % of the steps."""
        return round(0.05 * self.steps) if self.warmup is None else self.warmup

    def settings(self) -> dict[str, Any]:
        """The settings that decide the results, defaults put in, as JSON values by name ("lora.rank")."""
        flat: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "lora":
                parts = {} if value is None else dataclasses.asdict(value)
                flat["lora"] = value is not None
                flat |= {f"lora.{name}": part for name, part in parts.items()}
                if value is not None:
                    flat["lora.alpha"] = value.scaled_alpha
            elif field.name not in FREE:
                flat[field.name] = value
        flat |= {"learning_rate": self.peak_learning_rate, "warmup": self.warmup_steps}
        # An infinite float is no JSON; what is written is what will be read.
        return {
            name: str(value) if value == math.inf else list(value) if isinstance(value, tuple) else value
            for name, value in flat.items()
        }

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The defaults of `settings` that are the same for every run, as JSON values."""
        found = {f.name: f.default for f in dataclasses.fields(cls) if f.name not in FREE and f.name != "lora"}
        return {name: value for name, value in found.items() if isinstance(value, int | float | str)}

    # --- TOML ---------------------------------------------------------------------------------------------------------

    def to_toml(self) -> str:
        """The settings as TOML, in the order of the fields; what is None is left out."""
        lines = [
            f"{field.name} = {_toml(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if field.name != "lora" and getattr(self, field.name) is not None
        ]
        if self.lora is not None:
            lines += ["", "[lora]"]
            lines += [f"{name} = {_toml(v)}" for name, v in dataclasses.asdict(self.lora).items() if v is not None]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str, *, source: str = "the settings") -> TrainConfig:
        """Parse TOML. Raises `ConfigError`: not TOML, a key that is unknown or missing, or a wrong value."""
        return cls.from_tree(_parse(text, source), source=source)

    @classmethod
    def from_tree(cls, tree: dict[str, Any], *, source: str = "the settings") -> TrainConfig:
        """A config from a dictionary as TOML gives it, `lora` being a table. Raises `ConfigError` as `from_toml`."""
        problems = _check_keys(cls, tree)
        part = tree.get("lora")
        if isinstance(part, dict):
            problems += _check_keys(LoRA, part, "lora.")
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in tree]
        problems += [f"{name} is missing" for name in missing]
        _refuse(problems, source)
        try:
            return cls(**(tree if part is None else tree | {"lora": LoRA(**part) if isinstance(part, dict) else part}))
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    @classmethod
    def load(cls, path: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
        """Read a TOML file. Relative paths in it count from the current folder.

        Args:
          changes: "KEY=VALUE" each, which take the place of what the file says: VALUE is TOML, or a word without
            quotes; KEY may be "lora.rank".

        Raises:
          ConfigError: it is not TOML, a change is not of that form, a key is unknown or missing, or a value is wrong.
          OSError: it cannot be read.
        """
        path = Path(path)
        try:
            tree = _parse(path.read_text("utf-8"), str(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no {path}: the settings of a run are a TOML file") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text, as TOML is: {error}") from None
        for change in changes:
            _change(tree, change)
        return cls.from_tree(tree, source=" ".join([str(path), *(f"--set {change}" for change in changes)]))


ADVICE = "training.json"
"""In a native folder: how its stages want to be trained, by stage, in the names of `TrainConfig`."""
CALLERS = frozenset({"stage", "data", "out", "model", "config", "tokenizer"})
"""Settings that are arguments of their own in `finetune`."""
_NO_ADVICE = CALLERS | {"rehearsal", "lora"}


def advice(model: str | Path, stage: str, *, lora: bool) -> dict[str, Any]:
    """Settings that a native folder asks for when a stage of it is trained on; {} where it says nothing.

    A model that was taught guidance, or whose logits were made sharper, forgets that when it is trained without. In
    `ADVICE`, ``{"coarse": {"guidance": 4, "lora": {"learning_rate": 1e-3}}}``: what is in "lora" is for
    adapters alone.

    Raises:
      ConfigError: the file is no JSON object, or holds a setting that is unknown, out of range or a caller's own.
      OSError: it cannot be read.
    """
    path = Path(model) / ADVICE
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    if not isinstance(tree, dict) or not set(tree) <= set(STAGES):
        raise ConfigError(f"{path}: it must be an object whose keys are of {', '.join(STAGES)}")
    part = tree.get(stage, {})
    own = part.get("lora", {}) if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(own, dict):
        raise ConfigError(f"{path}: {stage}, and lora in it, must be objects")
    found = {name: value for name, value in part.items() if name != "lora"} | (own if lora else {})
    if callers := sorted(_NO_ADVICE & set(found)):
        raise ConfigError(f"{path}: {stage} has {', '.join(callers)}, which is for a caller to say")
    whole = {"stage": stage, "model": "m", "data": ["d"], "out": "o", "steps": 2**30, **found}
    TrainConfig.from_tree(whole | ({"lora": {}} if lora else {}), source=f"{path}: {stage}")
    return found


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from None


def _change(tree: dict[str, Any], change: str) -> None:
    """Apply "KEY=VALUE" to settings as TOML gives them."""
    key, sign, value = change.partition("=")
    if not sign or not all(key.split(".")):
        raise ConfigError(f"--set is {change!r}: it must be KEY=VALUE, such as steps=1000 or data='[\"rows\"]'")
    try:
        found = tomllib.loads(f"value = {value}")
    except (tomllib.TOMLDecodeError, RecursionError):
        found = {"value": value}  # a bare word is a string
    if len(found) > 1:
        raise ConfigError(f"--set is {change!r}: it must be one KEY=VALUE; give --set again for the next")
    *path, last = key.split(".")
    for name in path:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set is {change!r}: {name} is a setting, and has no {last}")
    tree[last] = found["value"]


class _Need:
    """Collects what is wrong with the values of one dataclass."""

    def __init__(self, config: Any, problems: list[str], prefix: str = ""):
        self._config, self._problems, self._prefix = config, problems, prefix

    def __call__(self, name: str, condition: bool, rule: str) -> None:
        if not condition:
            value = getattr(self._config, name)
            shown = list(value) if isinstance(value, tuple) else value
            self._problems.append(f"{self._prefix}{name} is {shown!r}: {rule}")

    def also(self, problem: str) -> None:
        self._problems.append(problem)


def _refuse(problems: list[str], source: str = "") -> None:
    if problems:
        text = problems[0] if len(problems) == 1 else "\n  ".join([f"{len(problems)} problems:", *problems])
        raise ConfigError(f"{source}: {text}" if source else text)


def _check_keys(cls: Any, tree: dict[str, Any], prefix: str = "") -> list[str]:
    known = [field.name for field in dataclasses.fields(cls)]
    problems = []
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {prefix}{near[0]}? It" if near else "it"
            problems.append(f"{prefix}{key} is unknown: {hint} must be one of {', '.join(known)}")
    return problems


def _check_types(config: Any, prefix: str = "") -> list[str]:
    """Put lists into tuples, paths into strings and integers into floats where those are asked for; what is wrong."""
    hints, problems = typing.get_type_hints(type(config)), []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        try:
            object.__setattr__(config, field.name, _typed(hints[field.name], value))
        except TypeError as error:
            problems.append(f"{prefix}{field.name} is {value!r}: it must be {error}")
    return problems


def _typed(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):  # X | None
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if isinstance(hint, types.GenericAlias):  # tuple[X, ...]
        kind = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise TypeError("a list of " + {str: "strings", int: "integers"}[kind])
        return tuple(_typed(kind, part) for part in value)
    if hint is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    right = isinstance(value, hint) and not isinstance(value, bool)
    if hint is float and right and math.isnan(value):
        right = False
    if hint is str and isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise TypeError("text that UTF-8 can hold") from None
    if not right:
        names = {str: "a string", int: "an integer", float: "a number"}
        raise TypeError(names.get(hint, "a table of rank, alpha, targets, dropout"))
    return value


def _toml(value: Any) -> str:
    if isinstance(value, str):
        # JSON's strings are TOML's, but for the one control character that JSON lets stand.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)
