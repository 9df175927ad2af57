"""What the training of a consistency or diffusion model consists of, put together from its settings."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness.batches import TrainIterator
from experiments.harness.consistency_objectives import OBJECTIVES, Plan
from experiments.harness.consistency_settings import Settings
from experiments.harness.examples import ExampleSource, as_floats, open_examples
from experiments.harness.frechet import digit_features, frechet_to, pooled_features
from experiments.harness.models import NoiseMlp
from experiments.harness.run_settings import DeviceSettings
from experiments.harness.train_step import AveragedState, Moment, Step, init_averaged_state, make_step
from experiments.harness.trainer import steps_taken
from experiments.harness.training_run import Run
from experiments.harness.unet import LAST_LAYER, UNet
from jaxreg.layers import NonScalingLayerNorm
from jaxreg.metrics import energy_distance, mean_distance
from jaxreg.typing import Array, Float, PRNGKeyArray
from jaxreg.validation import check_range

BLOCK = 64
"""Rows of a matrix of distances at a time, few enough to stay in the cache."""


class ConsistencyTraining(Run):
    """A run that can be started: everything but its state.

    Args:
        settings: complete ones.
        devices: where it runs.

    Attributes:
        settings: as given.
        placement: where it runs.
        objective: its loss and sampler.
        shape: of an example.
        held_out: examples that are not trained on, as the model sees them.
        metric: what :meth:`distance_to` measures, as figures call it.

    Raises:
        ValueError: a setting cannot be used.
    """

    def __init__(self, settings: Settings, devices: DeviceSettings = DeviceSettings()):
        self.settings = settings
        self.placement = devices.place()
        self.source: ExampleSource = open_examples(
            settings.data.data,
            batch=settings.data.batch,
            seed=settings.data.seed,
            size=settings.data.size,
            flip=settings.data.flip,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.objective = OBJECTIVES[settings.objective.objective]
        self.shape = self.source.shape
        self.held_out = np.asarray(as_floats(self.source.held_out))
        self.metric = "energy_distance" if len(self.shape) == 1 else "frechet_distance"
        self.module, self.last_layer = self._build()
        self._key = jax.random.key(settings.data.seed)
        self.buffers: Any = jax.device_get(jax.jit(lambda: self._init()["buffers"])())

    def _build(self):
        """The network, and the name of its last layer."""
        chosen = self.settings.network
        norm = NonScalingLayerNorm if self.settings.objective.objective == "slct" else None
        if chosen.network == "mlp":
            return NoiseMlp(math.prod(self.shape), (chosen.width,) * chosen.layers, norm), f"Dense_{chosen.layers}"
        if len(self.shape) != 3:
            raise ValueError(f"network must be mlp for examples of shape {self.shape}, got unet")
        module = UNet(
            chosen.width,
            chosen.multipliers,
            chosen.layers,
            chosen.attention,
            dropout=chosen.dropout,
            norm=norm,
            dtype=jnp.dtype(chosen.dtype),
        )
        return module, LAST_LAYER

    def _init(self):
        one = jnp.zeros([1, *self.shape] if self.settings.network.network == "unet" else [1, math.prod(self.shape)])
        return self.module.init(jax.random.fold_in(self._key, 0), one, *[jnp.zeros([1])] * self.objective.levels)

    def apply_fn(
        self, params: Any, x: Float[Array, "batch *shape"], *noises: Float[Array, "batch"], dropout: Any = None
    ) -> Float[Array, "batch *shape"]:
        """The network, as the functions of :mod:`jaxreg.diffusion` call it.

        Args:
            params: of the network.
            x: scaled noisy examples.
            noises: a quarter of the logarithm of each example's noise levels.
            dropout: key; without it nothing is dropped.
        """
        flat = x.reshape(len(x), -1) if self.settings.network.network == "mlp" else x
        rngs = None if dropout is None else {"dropout": dropout}
        return self.module.apply({"params": params, "buffers": self.buffers}, flat, *noises, rngs=rngs).reshape(x.shape)

    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer."""
        return self.settings.optimization.build()

    def fresh_state(self) -> AveragedState:
        """The state before the first step."""
        return init_averaged_state(self._init()["params"], self.optimizer())

    def batches(self, state: dict[str, Any] | None = None) -> TrainIterator:
        """The training batches, from the first or from where a run was."""
        return self.source.train(state)

    def batch_shape(self) -> jax.ShapeDtypeStruct:
        """The rows of a batch, those of all processes together."""
        return jax.ShapeDtypeStruct((self.settings.data.batch, *self.shape), self.source.held_out.dtype)

    def loss(self, params: Any, rows: Any, moment: Moment) -> tuple[Any, Any]:
        """Mean loss of a batch's rows; noise and noise levels come from the moment's key."""
        key_dropout, key_loss = jax.random.split(moment.key)
        dropout = key_dropout if self.settings.network.dropout else None
        # One key for both points of a pair: they are compared under the same dropout.
        apply_fn = functools.partial(self.apply_fn, dropout=dropout)
        losses = self.objective.loss(apply_fn, params, key_loss, as_floats(rows), moment, self.plan)
        return jnp.mean(losses), {}

    @property
    def plan(self) -> Plan:
        """What the loss has to know of the settings."""
        chosen = self.settings.objective
        return Plan(
            total_steps=self.settings.optimization.steps,
            sigma_data=chosen.sigma_data,
            s0=chosen.s0,
            s1=chosen.s1,
            solver_steps=chosen.solver_steps,
            coupling=chosen.coupling,
            last_layer=self.last_layer,
        )

    def step(self) -> Step:
        """The step of training, not compiled yet."""
        return make_step(
            self.loss,
            self.optimizer(),
            accumulate=self.settings.optimization.accumulate,
            axis_name=self.placement.axis_name,
            key=jax.random.fold_in(self._key, 1),
            decay=self.settings.objective.decay,
        )

    def sample(
        self, params: Any, key: PRNGKeyArray, count: int, steps: int | None = None
    ) -> Float[Array, "count *shape"]:
        """Samples of the model; to be jitted.

        Args:
            params: averaged ones, combined ones, or as they are.
            key: of the noise: the same key, the same noise.
            count: how many.
            steps: of sampling; the objective's usual number by default.

        Returns:
            The samples. Images may leave [-1, 1].
        """
        check_range("count", count, "[1, inf)")
        check_range("steps", steps, "[1, inf)")
        steps = self.objective.sample_steps if steps is None else steps
        sigma_data = self.settings.objective.sigma_data
        return self.objective.sample(self.apply_fn, params, key, (count, *self.shape), steps, sigma_data)

    def distance_to(self, reference: Float[Array, "m *shape"]) -> Callable[[Float[Array, "n *shape"]], Any]:
        """How far samples are from other examples: Fréchet distance of images, energy distance of points.

        Digits are compared by the features of a classifier, other images by the means of their tiles.

        Args:
            reference: examples as the model sees them.

        Returns:
            ``samples -> distance``, to be jitted together with what makes the samples.
        """
        if len(self.shape) == 1:
            within = jax.jit(lambda points: mean_distance(points, block_size=BLOCK))(reference)
            return lambda samples: energy_distance(samples, reference, within_y=within, block_size=BLOCK)
        if self.settings.data.data == "digits":
            return frechet_to(reference, features=digit_features())
        side = next(side for side in (4, 2, 1) if all(length % side == 0 for length in self.shape[:2]))
        return frechet_to(reference, features=pooled_features(side))

    def evaluation(
        self, samples: int, show: Callable[[int, np.ndarray], None] = lambda step, samples: None
    ) -> Callable[[AveragedState], dict[str, Any]]:
        """A function that judges the averaged parameters by samples, of the same noise each time.

        Args:
            samples: how many.
            show: called with the step and the samples.
        """
        check_range("samples", samples, "[2, inf)")
        distance = self.distance_to(self.held_out)
        key = jax.random.fold_in(self._key, 2)

        def judge(params):
            drawn = self.sample(params, key, samples)
            return distance(drawn), drawn

        judge = self.placement.compile_on_copy(judge)

        def evaluate(state):
            value, drawn = jax.device_get(judge(self.placement.to_save(state.average)))
            show(steps_taken(state), drawn)
            return {self.metric: float(value)}

        return evaluate
