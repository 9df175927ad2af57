"""CycleQD: three experts, for digits turned by 0, 60 and 120 degrees, merged into one network.

Each task has a head of its own, trained jointly with the body for a moment and frozen, as a prompt tells a language
model its task; what is fine-tuned, and merged, is the body. Whatever is searched is searched by validation accuracy,
with 300 evaluations that include those of the experts; scores are test accuracies. CycleQD gives what its archives
aggregate to, as in the paper. The genetic algorithm has the same crossover, mutation and preference for good parents,
and one population that is ranked by the mean accuracy, which is what everything is judged by.

There was a first design, a smaller network with one head for all tasks: there no merge was better than the base, and
CycleQD as good as the mean of the experts.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness import data, models
from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.training import train
from jaxreg.weights import (
    add_task_vector,
    aggregate_archive,
    cycleqd_init,
    cycleqd_step,
    merge_task_vectors,
    mutate_along_basis,
    task_vector,
)

DEGREES, CLASSES = (0, 60, 120), 10
TASKS = len(DEGREES)
TRAIN, VALIDATION, BATCH, BASE_STEPS, HIDDEN = 1000, 300, 64, 30, 128
EVALUATIONS, POPULATION = 300, 32
STRENGTHS = jnp.arange(1, 41) / 20

CLAIM = Claim(
    slug="cycleqd",
    paper="Agent Skill Acquisition for Large Language Models via CycleQD",
    arxiv="2410.14735",
    says="Merging three experts, CycleQD is at least 2 points more accurate over their tasks than the best expert and "
    "than the mean of them, and not worse than a genetic algorithm that searches for the mean accuracy.",
    metric="test accuracy, mean over tasks",
    better="higher",
    worst=1 / CLASSES,
    min_effect=0.02,
    relative=False,
    tuned_on=("validation_accuracy", "higher"),
    also=(
        Criterion(
            metric="test accuracy, mean over tasks, within a point of the genetic algorithm",
            better="higher",
            worst=1 / CLASSES,
            margin=0.01,
            relative=False,
            baselines=("genetic",),
        ),
    ),
    method="cycleqd",
    baselines=("best_expert", "uniform"),
    grid={"learning_rate": (3e-4, 1e-3, 3e-3, 1e-2)},
    same_runs=True,
    beside=(
        Comparison("the sum of the task vectors with a tuned strength", baselines=("task_arithmetic",)),
        Comparison("the one model of the archives with the best mean", method="best_elite"),
    ),
    one_device=True,
    steps=300,
    seeds=16,
    finding="The best of an archive is the task's expert or close to it, so that what the archives aggregate to is "
    "close to the mean of the experts, and no better. The archives hold better: their one model with the best mean is "
    "a point ahead of that, though behind the genetic algorithm, which ranks by the mean and needs no archives. The "
    "sum of the task vectors with a tuned strength gains half a point.",
)


def run(key, *, learning_rate, steps):
    """Trains a base and three experts and merges them; the scores are the accuracies of the merged networks."""
    key_data, key_init, key_base, key_experts, key_search, key_genetic = jax.random.split(key, 6)
    split = data.digits(key_data, train=TRAIN + VALIDATION)
    turns = jnp.stack([data.rotation(degrees) for degrees in DEGREES])
    train_x, train_y = split.train_x[:TRAIN], split.train_y[:TRAIN]
    body_net, head_net = models.Mlp((HIDDEN,), final_activation=True), models.Mlp((CLASSES,))
    key_body, key_heads = jax.random.split(key_init)
    base = body_net.init(key_body, train_x[:1])
    heads = jax.vmap(lambda k: head_net.init(k, jnp.zeros([1, HIDDEN])))(jax.random.split(key_heads, TASKS))

    def cross_entropy(body, head, turn, key):
        chosen = jax.random.randint(key, [BATCH], 0, TRAIN)
        logits = head_net.apply(head, body_net.apply(body, train_x[chosen] @ turn))
        return optax.softmax_cross_entropy_with_integer_labels(logits, train_y[chosen]).mean()

    def joint_loss(params, state, key):
        losses = jax.vmap(cross_entropy, (None, 0, 0, 0))(*params, turns, jax.random.split(key, TASKS))
        return losses.mean(), state

    (base, heads), _, _ = train(key_base, (base, heads), optax.adam(1e-3), joint_loss, steps=BASE_STEPS)

    def expert(key, head, turn):
        def loss(body, state, key):
            return cross_entropy(body, head, turn, key), state

        return train(key, base, optax.adam(learning_rate), loss, steps=steps)[0]

    experts = jax.vmap(expert)(jax.random.split(key_experts, TASKS), heads, turns)
    vectors = task_vector(base, experts)

    def accuracies(x, y):
        """A function from a body to its accuracy in each task."""

        def accuracy(body, head, turn):
            return jnp.mean(head_net.apply(head, body_net.apply(body, x @ turn)).argmax(-1) == y)

        return lambda body: jax.vmap(accuracy, (None, 0, 0))(body, heads, turns)

    evaluate = accuracies(split.train_x[TRAIN:], split.train_y[TRAIN:])
    report = accuracies(split.test_x, split.test_y)

    def best_of(candidates):
        """The candidate, a task vector, with the best mean accuracy in validation."""
        fitness = jax.lax.map(lambda vector: evaluate(add_task_vector(base, vector)).mean(), candidates)
        return add_task_vector(base, jax.tree.map(lambda leaf: leaf[fitness.argmax()], candidates))

    state = cycleqd_init(experts, base, evaluate, low=0.25, high=1.0)

    def generation(state, number):
        key = jax.random.fold_in(key_search, number)
        return cycleqd_step(state, key, evaluate, task=number % TASKS), None

    generations = jnp.arange(EVALUATIONS - TASKS)
    state, _ = jax.lax.scan(generation, state, generations)
    mean_metrics = jnp.where(state.occupied, state.metrics.mean(-1), -jnp.inf)
    archive, cell = jnp.unravel_index(mean_metrics.argmax(), mean_metrics.shape)

    def breed(population, number):
        """One child of the genetic algorithm, in place of the worst if it is better."""
        members, fitness = population
        key_parents, key_cross, key_mutate = jax.random.split(jax.random.fold_in(key_genetic, number), 3)
        alive = jnp.isfinite(fitness)
        low = jnp.min(fitness, where=alive, initial=jnp.inf)
        preference = jnp.where(alive, 0.5 + 0.8 * (fitness - low) / jnp.maximum(fitness.max() - low, 1e-6), 0.0)
        parents = jax.random.choice(key_parents, POPULATION, [2], replace=False, p=preference / preference.sum())
        first, second = (jax.tree.map(lambda leaf, at=at: leaf[at], members) for at in parents)
        child = merge_task_vectors(key_cross, first, second)
        basis = jax.tree.map(lambda leaf: leaf[number % TASKS], state.basis)
        child = mutate_along_basis(key_mutate, child, basis)
        value = evaluate(add_task_vector(base, child)).mean()
        worst = fitness.argmin()
        wins = value > fitness[worst]
        members = jax.tree.map(lambda leaf, new: leaf.at[worst].set(jnp.where(wins, new, leaf[worst])), members, child)
        return (members, fitness.at[worst].max(value)), None

    members = jax.tree.map(lambda leaf: jnp.zeros([POPULATION, *leaf.shape[1:]]).at[:TASKS].set(leaf), vectors)
    expert_accuracies = jax.vmap(evaluate)(experts)
    fitness = jnp.full([POPULATION], -jnp.inf).at[:TASKS].set(expert_accuracies.mean(1))
    (members, fitness), _ = jax.lax.scan(breed, (members, fitness), generations)

    total = jax.tree.map(lambda leaf: leaf.sum(0), vectors)
    merged = {
        "best_expert": best_of(vectors),
        "uniform": add_task_vector(base, jax.tree.map(lambda leaf: leaf / TASKS, total)),
        "genetic": add_task_vector(base, jax.tree.map(lambda leaf: leaf[fitness.argmax()], members)),
        "task_arithmetic": best_of(
            jax.vmap(lambda strength: jax.tree.map(lambda leaf: strength * leaf, total))(STRENGTHS)
        ),
        "cycleqd": aggregate_archive(state),
        "best_elite": add_task_vector(base, jax.tree.map(lambda leaf: leaf[archive, cell], state.elites)),
    }
    return {
        "score": {name: report(params).mean() for name, params in merged.items()},
        "validation_accuracy": {name: evaluate(params).mean() for name, params in merged.items()},
        "base": report(base).mean(),
        "experts_on_their_tasks": jnp.diagonal(jax.vmap(report)(experts)).mean(),
        "coverage": state.occupied.mean(),
        "elites_on_their_tasks": jnp.diagonal(state.metrics.max(1)).mean(),
    }
