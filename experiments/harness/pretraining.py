"""What a pretraining run consists of, put together from its settings: model, data, optimizer, faults, devices."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.harness.batches import TrainIterator
from experiments.harness.corpus import Corpus, open_corpus
from experiments.harness.faults import inject_spikes
from experiments.harness.llama import PRESETS, Llama, LlamaConfig, learning_rate_multipliers, next_token_loss
from experiments.harness.run_settings import DeviceSettings, OptimizationSettings, filled
from experiments.harness.train_step import Moment, Step, TrainState, init_state, make_step
from experiments.harness.training_run import Run
from jaxreg.typing import ScalarLike


class Recipe(NamedTuple):
    """What a model of some size is usually trained with."""

    batch: int
    steps: int
    learning_rate: float


RECIPES = {
    "tiny": Recipe(batch=32, steps=500, learning_rate=3e-3),
    # Those of the papers of SPAM and Stable-SPAM, with 256 tokens a row there.
    "60m": Recipe(batch=512, steps=20_000, learning_rate=1e-3),
    "130m": Recipe(batch=512, steps=20_000, learning_rate=8e-4),
    "350m": Recipe(batch=512, steps=60_000, learning_rate=4e-4),
    "1b": Recipe(batch=512, steps=100_000, learning_rate=2e-4),
}


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The model.

    Attributes:
        preset: its size: tiny, 60m, 130m, 350m or 1b.
        layers: number of blocks; the preset's by default, as below.
        width: of the stream between them.
        heads: of attention.
        hidden: width of the MLP.
        context: tokens in a row.
        tied: whether the output layer is the embedding.
        qk_norm: whether queries and keys are normalized.
        mup_base_width: width at which muP is as without muP; muP is off by default.
        scan: whether the layers are compiled as one.
        remat: whether activations are computed again in the backward pass, to save memory.
        dtype: of the computation.
        weight_bits: 4 rounds the layers' matrices to 4 bits.
        activation_bits: 4 rounds what these are multiplied with.
        attention: xla, or cudnn on a GPU.
        z_loss: weight of the squared logarithm of the softmax's normalizer in the loss.
    """

    preset: Literal["tiny", "60m", "130m", "350m", "1b"] = "tiny"
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    hidden: int | None = None
    context: int | None = None
    tied: bool | None = None
    qk_norm: bool | None = None
    mup_base_width: int | None = None
    scan: bool | None = None
    remat: bool | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    weight_bits: Literal[16, 4] | None = None
    activation_bits: Literal[16, 4] | None = None
    attention: Literal["xla", "cudnn"] | None = None
    z_loss: float = 0.0


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The data.

    Attributes:
        data: python (documentation and sources), file:PATH, or hf:NAME to stream a Hugging Face dataset.
        tokenizer: file:PATH or hf:NAME; bytes by default.
        batch: rows of a batch, over all devices; the preset's by default.
        seed: of the rows' order, the initial parameters and the faults.
    """

    data: str = "python"
    tokenizer: str | None = None
    batch: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class FaultSettings:
    """Faults to study.

    Attributes:
        spike_probability: of a step whose gradients spike.
        spike_scale: what they are then multiplied by.
        spike_leaves: regular expression: the parameters whose gradients spike.
        spike_entries: part of their entries that do.
    """

    spike_probability: float = 0.0
    spike_scale: float = 1000.0
    spike_leaves: str = ".*"
    spike_entries: float | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides what is computed; a run is resumed with the same, but for the devices."""

    model: tyro.conf.OmitArgPrefixes[ModelSettings] = ModelSettings()
    data: tyro.conf.OmitArgPrefixes[DataSettings] = DataSettings()
    optimization: tyro.conf.OmitArgPrefixes[OptimizationSettings] = OptimizationSettings()
    faults: tyro.conf.OmitArgPrefixes[FaultSettings] = FaultSettings()

    def complete(self) -> "Settings":
        """The settings with the preset's in place of those left open.

        Raises:
            ValueError: one of them is outside its range.
        """
        recipe = RECIPES[self.model.preset]
        preset = PRESETS[self.model.preset]
        names = [field.name for field in dataclasses.fields(ModelSettings) if hasattr(preset, field.name)]
        model = filled(self.model, **{name: getattr(preset, name) for name in names})
        data = filled(self.data, batch=recipe.batch)
        if model.context < 1:
            raise ValueError(f"context must be at least 1, got {model.context}")
        optimization = self.optimization.complete(
            steps=recipe.steps, learning_rate=recipe.learning_rate, batch=data.batch
        )
        return Settings(model, data, optimization, self.faults)


class Pretraining(Run):
    """A run that can be started: everything but its state.

    Args:
        settings: complete ones.
        devices: where it runs.

    Raises:
        ValueError: a setting cannot be used.
    """

    def __init__(self, settings: Settings, devices: DeviceSettings = DeviceSettings()):
        self.settings = settings
        chosen = settings.model
        self.corpus: Corpus = open_corpus(
            settings.data.data,
            context=chosen.context,
            batch=settings.data.batch,
            seed=settings.data.seed,
            tokenizer=settings.data.tokenizer,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        overridden = {field.name: getattr(chosen, field.name, None) for field in dataclasses.fields(LlamaConfig)}
        overridden = {name: value for name, value in overridden.items() if value is not None}
        overridden["vocab_size"] = self.corpus.vocab_size
        self.config: LlamaConfig = dataclasses.replace(PRESETS[chosen.preset], **overridden)
        self.model = Llama(self.config)
        self.placement = devices.place()

    def init_params(self) -> Any:
        """Initial parameters, which the seed decides."""
        key = jax.random.fold_in(jax.random.key(self.settings.data.seed), 0)
        return self.model.init(key, jnp.zeros([1, 2], jnp.int32))

    def optimizer(self, **changed: ScalarLike) -> Any:
        """The optimizer.

        Args:
            changed: hyperparameters in place of the settings', arrays too: the learning rate or any option.
        """
        multipliers = None
        if self.config.mup_base_width is not None:
            multipliers = learning_rate_multipliers(self.config, jax.eval_shape(self.init_params))
        return self.settings.optimization.build(multipliers=multipliers, **changed)

    def fresh_state(self) -> TrainState:
        """The state before the first step."""
        return init_state(self.init_params(), self.optimizer())

    def batches(self, state: dict[str, Any] | None = None) -> TrainIterator:
        """The training batches, from the first or from where a run was."""
        return self.corpus.train(state)

    def batch_shape(self) -> jax.ShapeDtypeStruct:
        """The rows of a batch, those of all processes together."""
        return jax.ShapeDtypeStruct((self.settings.data.batch, self.settings.model.context + 1), jnp.int32)

    def loss(self, params: Any, rows: Any, moment: Moment) -> tuple[Any, Any]:
        """Mean loss of a batch's rows, in nats a token, and the model's vitals."""
        logits, sown = self.model.apply(params, rows[:, :-1], mutable=["vitals"])
        losses, _ = next_token_loss(logits, rows[:, 1:], z_loss=self.settings.model.z_loss)
        return jnp.mean(losses), sown

    def validation_loss(self, params: Any, rows: Any) -> Any:
        """Mean cross-entropy of a batch's rows."""
        losses, _ = next_token_loss(self.model.apply(params, rows[:, :-1]), rows[:, 1:])
        return jnp.mean(losses)

    def evaluation(self, batches: int, *, side_by_side: bool = False) -> Callable[[TrainState], dict[str, Any]]:
        """A function that validates a state, on the same held-out batches each time.

        Args:
            batches: how many.
            side_by_side: whether the state is that of several runs, which get a list of losses.
        """
        loss = jax.vmap(self.validation_loss, (0, None)) if side_by_side else self.validation_loss
        mean = self.placement.compile_mean(loss)
        rows = [self.placement.rows(batch.tokens) for batch in self.corpus.validation(batches)]

        def evaluate(state):
            losses = [mean(state.params, part) for part in rows]
            return {"validation_loss": np.mean(jax.device_get(losses), axis=0).tolist()}

        return evaluate

    def step(self, **changed: ScalarLike) -> Step:
        """The step of training, not compiled yet; ``changed`` as in :meth:`optimizer`."""
        faults = self.settings.faults
        key = jax.random.fold_in(jax.random.key(self.settings.data.seed), 1)

        def distort(step, gradients):
            return inject_spikes(
                key,
                step,
                gradients,
                probability=faults.spike_probability,
                scale=faults.spike_scale,
                leaves=faults.spike_leaves,
                entries=faults.spike_entries,
            )

        return make_step(
            self.loss,
            self.optimizer(**changed),
            accumulate=self.settings.optimization.accumulate,
            distort=distort if faults.spike_probability else None,
            axis_name=self.placement.axis_name,
        )


def adopt_state(state: optax.OptState, other: optax.OptState) -> optax.OptState:
    """An optimizer's state with what another optimizer's has of it.

    That is every array of the same field (such as ``mu``), parameter, shape and type; moments mostly, and counts.

    Args:
        state: of the optimizer that is to go on.
        other: of the one that has gone so far.

    Returns:
        The state, taken over where it could be; the same one if both are alike.
    """

    def kind(path, leaf):
        fields = [position for position, key in enumerate(path) if isinstance(key, jax.tree_util.GetAttrKey)]
        return jax.tree_util.keystr(path[fields[-1] :] if fields else path), leaf.shape, leaf.dtype

    known = collections.defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(other):
        known[kind(path, leaf)].append(leaf)
    taken = collections.Counter()

    def adopt(path, leaf):
        # Chained transformations have counts of the same name: the first gets the first, and the last serves the rest.
        found = known[kind(path, leaf)]
        position = taken[kind(path, leaf)]
        taken[kind(path, leaf)] += 1
        return jnp.copy(found[min(position, len(found) - 1)]) if found else leaf

    return jax.tree_util.tree_map_with_path(adopt, state)
