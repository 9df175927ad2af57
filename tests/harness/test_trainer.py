import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from experiments.harness.batches import Batch
from experiments.harness.checkpoints import Checkpoints
from experiments.harness.feed import Feed, own_feed
from experiments.harness.journal import METRICS, Journal, read_journal
from experiments.harness.mesh import make_mesh
from experiments.harness.placement import OnMesh, Replicated
from experiments.harness.spikes import SpikeRecorder
from experiments.harness.train_step import init_averaged_state, init_state, make_step
from experiments.harness.trainer import MAX_ROLLBACKS, Interrupted, NonFinite, Upkeep, fit

PLACEMENT = OnMesh(make_mesh(devices=jax.devices()[:1]))
STEPS = 12


class Numbers:
    """Batches of tokens that their number decides; some are of a token that the loss cannot stand."""

    def __init__(self, state=None, bad=()):
        self.number, self.bad = (state or {"number": 0})["number"], bad

    def __next__(self):
        tokens = np.random.default_rng(self.number).integers(1, 50, [8, 5], dtype=np.int32)
        self.number += 1
        return Batch(tokens * (self.number - 1 not in self.bad), np.arange(8))

    def state(self):
        return {"number": self.number}


def feed(bad=(), skipped=()):
    return Feed(lambda state: Numbers(state, bad), {"drawn": 0, "skipped": list(skipped), "batches": None})


def loss(params, rows, moment):
    """Of a linear model of the logarithms; the logarithm of 0 is not finite."""
    x = jnp.log(rows.astype(jnp.float32))
    error = x[:, :-1] @ params["kernel"] - x[:, -1]
    return jnp.mean(error**2), {"vitals": {"blocks": {"attention": {"max_attention_logit": (jnp.max(x)[None],)}}}}


def params():
    return {"bias": jnp.zeros(2), "kernel": jnp.full(4, 0.5)}


OPTIMIZER = optax.adam(0.03)


def start(placement=PLACEMENT):
    return placement.create(lambda: init_state(params(), OPTIMIZER))


def compiled(placement=PLACEMENT, **options):
    return placement.compile(make_step(loss, OPTIMIZER, axis_name=placement.axis_name, **options))


STEP = compiled()


def run(batches, *, state=None, step=STEP, steps=STEPS, placement=PLACEMENT, **options):
    state = start(placement) if state is None else state
    return placement.to_save(fit(state, step, batches, steps=steps, placement=placement, **options))


def assert_same(state, expected):
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def resume(checkpoints):
    shapes = PLACEMENT.shapes(jax.eval_shape(lambda: init_state(params(), OPTIMIZER)))
    state, extra = checkpoints.restore(checkpoints.latest(), shapes)
    return state, Feed(Numbers, own_feed(extra))


def test_a_step_is_that_of_gradient_descent():
    rows = next(Numbers()).tokens
    step = jax.jit(make_step(loss, optax.sgd(0.1)))
    state, report = step(init_state(params(), optax.sgd(0.1)), rows)
    x = np.log(rows.astype(np.float64))
    error = x[:, :-1] @ np.full(4, 0.5) - x[:, -1]
    gradient = 2 * x[:, :-1].T @ error / len(rows)
    np.testing.assert_allclose(state.params["kernel"], 0.5 - 0.1 * gradient, rtol=1e-5)
    np.testing.assert_allclose(report.vitals.loss, np.mean(error**2), rtol=1e-6)
    np.testing.assert_allclose(report.vitals.gradient_norm, np.linalg.norm(gradient), rtol=1e-5)
    assert (int(state.step), int(report.bad_leaf)) == (1, -1)


def test_an_optimizer_may_look_at_the_loss():
    optimizer = optax.contrib.momo(1.0)
    state, _ = jax.jit(make_step(loss, optimizer))(init_state(params(), optimizer), next(Numbers()).tokens)
    assert np.all(np.isfinite(state.params["kernel"]))


@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_is_the_batch_as_a_whole(parts):
    rows = next(Numbers()).tokens
    state = init_state(params(), OPTIMIZER)
    whole, in_parts = (jax.jit(make_step(loss, OPTIMIZER, accumulate=n))(state, rows) for n in (1, parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), whole, in_parts)


@pytest.mark.parametrize("kind", ["whole", "in two parts", "pmap"])
def test_a_loss_sees_its_step_and_noise_of_its_own_and_the_average_is_exponential(kind):
    """The gradient is the noise that the key gives, times the number of the step."""
    key, decay, start = jax.random.key(3), 0.8, np.ones(3)
    placement = Replicated(jax.devices()[:2]) if kind == "pmap" else PLACEMENT

    def noise(key):
        return jax.random.normal(key, [3])

    def noisy(params, rows, moment):
        step = (moment.step + 1).astype(jnp.float32)
        return jnp.sum(params * noise(moment.key)) * step + 0.0 * jnp.sum(rows + moment.average[0]), {}

    step = make_step(
        noisy,
        optax.sgd(1.0),
        accumulate=2 if kind == "in two parts" else 1,
        axis_name=placement.axis_name,
        key=key,
        decay=decay,
    )
    state = placement.create(lambda: init_averaged_state(jnp.asarray(start, jnp.float32), optax.sgd(1.0)))
    compiled = placement.compile(step)
    expected = [start]
    for number in range(3):
        state, _ = compiled(state, placement.rows(np.zeros([4, 1], np.float32)))
        now = jax.random.fold_in(key, number)
        keys = {
            "whole": [now],
            "in two parts": list(jax.random.split(now, 2)),
            "pmap": [jax.random.fold_in(now, device) for device in range(2)],
        }[kind]
        expected.append(expected[-1] - (number + 1) * np.mean([noise(one) for one in keys], axis=0))
    state = placement.to_save(state)
    np.testing.assert_allclose(state.params, expected[-1], rtol=1e-5)
    weights = [decay**3, *((1 - decay) * decay ** (2 - number) for number in range(3))]
    np.testing.assert_allclose(state.average, np.tensordot(weights, expected, 1), rtol=1e-5)


def test_pmap_and_a_mesh_of_eight_train_like_one_device():
    expected = run(feed())
    for placement in (OnMesh(make_mesh(2)), Replicated()):
        state = run(feed(), placement=placement, step=compiled(placement))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state, expected)


def test_gradients_are_distorted_by_step():
    def distort(step, gradients):
        return jax.tree.map(lambda g: jnp.where(step == 3, 0 * g, g), gradients)

    with_fault = []
    run(feed(), step=compiled(distort=distort), on_step=lambda step, figures: with_fault.append(figures))
    assert [step for step, figures in enumerate(with_fault) if figures["gradient_norm"] == 0] == [3]


def test_a_feed_leaves_out_what_it_is_told_to_and_resumes():
    def numbers(batches):
        return [next(batches)[0] for _ in range(4)]

    batches = feed(skipped=[1, 2])
    assert numbers(batches) == [0, 3, 4, 5]
    state = batches.state()
    assert numbers(batches.reopened(state, skip=7)) == [6, 8, 9, 10]
    again = Feed(Numbers, state)
    np.testing.assert_array_equal(next(again)[1].tokens, Numbers({"number": 6}).__next__().tokens)


def test_a_stream_is_resumed_by_as_many_processes_as_read_it():
    alike, different = {"drawn": 3, "batches": {"batch": 3}}, {"drawn": 3, "batches": {"batch": 4}}
    assert own_feed({"feeds": [alike, alike]}) == alike
    assert own_feed({"feeds": [different]}) == different
    with pytest.raises(ValueError, match="processes must be 2 to resume this stream, got 1"):
        own_feed({"feeds": [alike, different]})


def test_the_journal_has_every_step_in_order(tmp_path):
    with Journal(tmp_path) as journal:
        run(feed(), journal=journal, evaluate=lambda state: {"validation_loss": 1.0}, upkeep=Upkeep(evaluate_every=5))
    lines = read_journal(tmp_path / METRICS)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "validation_loss" in line] == [5, 10, 12]
    assert {"batch", "gradient_norm", "update_norm", "parameter_norm", "max_attention_logit"} <= set(lines[0])


def test_a_resumed_run_and_its_journal_are_those_of_one_that_was_not_stopped(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    with Journal(whole) as journal:
        expected = run(feed(), journal=journal)
    upkeep = Upkeep(checkpoint_every=4)
    with Checkpoints(parts / "c") as checkpoints, Journal(parts) as journal:
        run(feed(), steps=7, journal=journal, checkpoints=checkpoints, upkeep=upkeep)
    (parts / "c" / "7").rename(tmp_path / "lost")
    with Checkpoints(parts / "c") as checkpoints, Journal(parts, resume_step=4) as journal:
        assert checkpoints.latest() == 4
        state, batches = resume(checkpoints)
        assert_same(run(batches, state=state, journal=journal), expected)
    assert (whole / METRICS).read_text() == (parts / METRICS).read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_is_saved_and_goes_on(tmp_path, number):
    expected = run(feed())
    before = signal.getsignal(number)
    with Checkpoints(tmp_path / "c") as checkpoints:
        with pytest.raises(Interrupted, match=r"stopped after step [56789], which is saved"):
            run(
                feed(),
                checkpoints=checkpoints,
                on_step=lambda step, figures: step == 3 and os.kill(os.getpid(), number),
            )
        state, batches = resume(checkpoints)
        assert 3 < int(state.step) < STEPS
        assert_same(run(batches, state=state), expected)
    assert signal.getsignal(number) == before


def test_a_stopped_run_without_checkpoints_is_not_said_to_go_on():
    with pytest.raises(Interrupted, match=r"stopped after step \d; nothing is saved to go on from"):
        run(feed(), on_step=lambda step, figures: step == 3 and os.kill(os.getpid(), signal.SIGTERM))


def test_a_checkpoint_has_the_usual_ranges_whatever_is_logged(tmp_path):
    upkeep = Upkeep(checkpoint_every=3, log_every=5, on_nan="skip")
    losses = []
    with Checkpoints(tmp_path / "c") as checkpoints, SpikeRecorder(tmp_path) as recorder:
        run(
            feed(bad=[7]),
            checkpoints=checkpoints,
            recorder=recorder,
            upkeep=upkeep,
            on_step=lambda step, figures: losses.append(figures["loss"]),
            say=lambda message: None,
        )
        shapes = PLACEMENT.shapes(jax.eval_shape(lambda: init_state(params(), OPTIMIZER)))
        usual = checkpoints.restore(12, shapes)[1]["usual"]
    assert usual["history"]["loss"] == [*losses[:6], *losses[-6:]]
    assert not usual["spiking"]


def test_what_is_not_finite_is_named_with_step_batch_leaf_and_checkpoint(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        message = (
            r"the loss is nan at step 8 \(batch 7\): the gradient of kernel is not finite; .* good checkpoint is 6"
        )
        with pytest.raises(NonFinite, match=message):
            run(feed(bad=[7]), checkpoints=checkpoints, upkeep=Upkeep(checkpoint_every=3))
    with pytest.raises(NonFinite, match="the last good checkpoint is none"):
        run(feed(bad=[7]))


def test_an_update_that_is_not_finite_is_named():
    step = PLACEMENT.compile(make_step(loss, optax.scale(1e38)))
    state = PLACEMENT.create(lambda: init_state(params(), optax.scale(1e38)))
    with pytest.raises(NonFinite, match=r"at step 1 \(batch 0\): the gradients are finite, the update is not"):
        fit(state, step, feed(), steps=3, placement=PLACEMENT)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kernel", r"the loss is nan at step 1 \(batch 0\): the parameter kernel is not finite"),
        ("bias", r"at step 1 \(batch 0\): gradients and update are finite, the parameters are not"),  # it is not used
    ],
)
def test_parameters_that_are_not_finite_are_named(name, message):
    state = start()
    broken = state._replace(params={**state.params, name: jnp.full_like(state.params[name], jnp.nan)})
    with pytest.raises(NonFinite, match=message):
        run(feed(), state=broken)


def test_a_batch_that_breaks_training_is_left_out(tmp_path):
    said = []
    upkeep = Upkeep(checkpoint_every=3, on_nan="skip")
    with Checkpoints(tmp_path / "c") as checkpoints, Journal(tmp_path) as journal:
        state = run(feed(bad=[7, 9]), checkpoints=checkpoints, journal=journal, upkeep=upkeep, say=said.append)
    assert_same(state, run(feed(skipped=[7, 9])))
    assert [line.split(": back")[-1] for line in said] == [" to step 6, without batch 7", " to step 6, without batch 9"]
    lines = read_journal(tmp_path / METRICS)
    assert [line["batch"] for line in lines if "batch" in line] == [0, 1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13]
    assert [(line["step"], line["skipped"]) for line in lines if "skipped" in line] == [(6, 7), (6, 9)]


def test_batches_are_not_skipped_for_ever(tmp_path):
    upkeep = Upkeep(checkpoint_every=3, on_nan="skip")
    said = []
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(NonFinite):
        run(feed(bad=range(5, 100)), checkpoints=checkpoints, upkeep=upkeep, say=said.append)
    assert len(said) == MAX_ROLLBACKS


def test_a_diverged_run_goes_on_where_that_is_wanted():
    state = run(feed(bad=[7]), upkeep=Upkeep(on_nan="ignore"))
    assert np.all(np.isnan(state.params["kernel"]))
    assert int(state.step) == STEPS


@pytest.mark.parametrize("name", ["log_every", "evaluate_every", "checkpoint_every", "keep", "keep_every"])
def test_upkeep_happens_every_whole_number_of_steps(name):
    with pytest.raises(ValueError, match=f"{name} must be in"):
        Upkeep(**{name: 0})
