"""Decoupled mixup against numbers worked by hand and a NumPy transcription that drops the competing classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxreg.losses import decoupled_mixup_bce, decoupled_mixup_ce, decoupled_regularizer, rescale_lambda

Z = jnp.array([2.0, 1.0, 0.0, -1.0])
A, B = jnp.array(0), jnp.array(1)
LOGITS = 3 * jax.random.normal(jax.random.key(0), [6, 5])
LABELS, PARTNERS = jnp.array([0, 1, 2, 3, 4, 4]), jnp.array([3, 1, 0, 2, 0, 4])
WEIGHTS = jnp.array([0.9, 0.6, 0.5, 0.2, 1.0, 0.3])
cross_entropy = jax.jit(decoupled_mixup_ce)
binary = jax.jit(decoupled_mixup_bce)


def mixup_cross_entropy(z, a, b, w):
    log_p = scipy.special.log_softmax(np.asarray(z, np.float64))
    return -w * log_p[a] - (1 - w) * log_p[b]


def against_all_but(z, own, mixed):
    """Cross-entropy of a softmax from which the other mixed classes are deleted."""
    z = np.asarray(z, np.float64)
    left = [k for k in range(len(z)) if k == own or k not in mixed]
    return scipy.special.logsumexp(z[left]) - z[own]


def by_hand(z, a, b, w, *, eta, labelled=True, partner_labelled=True):
    loss = mixup_cross_entropy(z, a, b, w)
    if a == b or w in (0.0, 1.0):
        return loss
    return loss + eta * (labelled * against_all_but(z, a, {a, b}) + partner_labelled * against_all_but(z, b, {a, b}))


def batch_by_hand(**options):
    rows = zip(np.asarray(LOGITS), *(np.asarray(x).tolist() for x in (LABELS, PARTNERS, WEIGHTS)), strict=True)
    return [by_hand(*row, **options) for row in rows]


class TestCrossEntropy:
    @pytest.mark.parametrize(("eta", "value"), [(0.0, 0.740190), (0.1, 0.797935), (1.0, 0.740190 + 0.577452)])
    def test_by_hand(self, eta, value):
        np.testing.assert_allclose(cross_entropy(Z, A, B, 0.7, eta=eta), value, atol=2e-6)

    def test_a_batch_with_equal_labels_and_whole_examples(self):
        ours = cross_entropy(LOGITS, LABELS, PARTNERS, WEIGHTS, eta=0.3)
        np.testing.assert_allclose(ours, batch_by_hand(eta=0.3), rtol=3e-6)

    def test_one_weight_for_all(self):
        each = cross_entropy(LOGITS, LABELS, PARTNERS, jnp.full([6], 0.7))
        np.testing.assert_array_equal(cross_entropy(LOGITS, LABELS, PARTNERS, 0.7), each)

    def test_between_two_classes_there_is_nothing_to_decouple(self):
        """Without the competitor a softmax of two classes is sure."""
        z = jnp.array([0.3, -1.2])
        value, gradient = jax.value_and_grad(decoupled_mixup_ce)(z, A, B, 0.7, eta=5.0)
        np.testing.assert_allclose(value, mixup_cross_entropy(z, 0, 1, 0.7), rtol=1e-6)
        np.testing.assert_allclose(gradient, scipy.special.softmax(z) - np.array([0.7, 0.3]), atol=1e-6)

    def test_gradient_by_hand(self):
        """Of each decoupled term: its own softmax minus one-hot, and nothing at the competitor."""
        gradient = jax.grad(decoupled_mixup_ce)(Z, A, B, 0.7, eta=1.0)
        expected = scipy.special.softmax(Z) - np.array([0.7, 0.3, 0, 0])
        for own, competitor in [(0, 1), (1, 0)]:
            p = scipy.special.softmax(np.where(np.arange(4) == competitor, -np.inf, Z))
            expected += p - np.eye(4)[own]
        np.testing.assert_allclose(gradient, expected, atol=1e-6)

    def test_only_labelled_sides_are_decoupled(self):
        ours = cross_entropy(
            LOGITS, LABELS, PARTNERS, WEIGHTS, labelled=jnp.ones(6, bool), partner_labelled=jnp.zeros(6, bool)
        )
        np.testing.assert_allclose(ours, batch_by_hand(eta=0.1, partner_labelled=False), rtol=3e-6)


class TestRegularizer:
    def test_gradient_of_one_class_is_exactly_zero_at_its_competitor(self):
        """Class 2 is neither mixed nor decoupled here; class 0 loses its competitor 1 in its own term only."""

        def own_term(z):
            pair = decoupled_mixup_ce(z, A, B, 0.7, eta=1.0, partner_labelled=jnp.array(False))
            return pair - decoupled_mixup_ce(z, A, B, 0.7, eta=0.0)

        gradient = jax.grad(own_term)(Z)
        assert gradient[1] == 0
        assert (gradient[2:] > 0).all()

    @pytest.mark.parametrize(("mixed", "targets"), [({0, 1}, [0.7, 0.3, 0, 0]), ({0, 2, 3}, [0.2, 5e-4, 0.3, 0.5])])
    def test_any_number_of_classes(self, mixed, targets):
        expected = sum(against_all_but(Z, own, mixed) for own in mixed)
        np.testing.assert_allclose(decoupled_regularizer(Z, jnp.array(targets)), expected, rtol=2e-6)

    def test_pairs_agree_with_the_pairwise_loss(self):
        eye, w = np.eye(5, dtype=np.float32), np.asarray(WEIGHTS)[:, None]
        targets = w * eye[np.asarray(LABELS)] + (1 - w) * eye[np.asarray(PARTNERS)]
        with_terms, without = (cross_entropy(LOGITS, LABELS, PARTNERS, WEIGHTS, eta=eta) for eta in (1.0, 0.0))
        np.testing.assert_allclose(decoupled_regularizer(LOGITS, targets), with_terms - without, atol=3e-6)

    def test_whole_examples_and_all_classes_cost_nothing(self):
        assert float(decoupled_regularizer(Z, jnp.array([1.0, 0, 0, 0]))) == 0
        value, gradient = jax.value_and_grad(decoupled_regularizer)(Z, jnp.full([4], 0.25))
        assert float(value) == 0
        np.testing.assert_array_equal(gradient, np.zeros(4))


class TestBinaryCrossEntropy:
    def elementwise(self, target):
        z = np.asarray(Z, np.float64)
        return -(target * scipy.special.log_expit(z) + (1 - target) * scipy.special.log_expit(-z)).sum()

    @pytest.mark.parametrize(("weight", "target"), [(0.4, [0.5, 0.75, 0, 0]), (0.9, [1, 0.125, 0, 0])])
    def test_targets_by_hand(self, weight, target):
        np.testing.assert_allclose(binary(Z, A, B, weight), self.elementwise(np.array(target)), rtol=2e-6)

    def test_equal_labels_have_a_target_of_one(self):
        np.testing.assert_allclose(binary(Z, B, B, 0.5), self.elementwise(np.eye(4)[1]), rtol=2e-6)

    def test_predicted_labels_keep_their_share(self):
        ours = binary(Z, A, B, 0.4, labelled=jnp.array(False), partner_labelled=jnp.array(True))
        np.testing.assert_allclose(ours, self.elementwise(np.array([0.4, 0.75, 0, 0])), rtol=2e-6)

    def test_weights_of_examples(self):
        ours = binary(LOGITS, LABELS, PARTNERS, WEIGHTS)
        one_by_one = [decoupled_mixup_bce(*row) for row in zip(LOGITS, LABELS, PARTNERS, WEIGHTS, strict=True)]
        np.testing.assert_allclose(ours, one_by_one, rtol=1e-6)


@pytest.mark.parametrize(
    ("weight", "options", "value"),
    [(0.8, {}, 1.0), (0.4, {}, 0.5), (0.95, {}, 1.0), (0.0, {}, 0.0), (0.25, {"threshold": 0.5, "power": 2.0}, 0.25)],
)
def test_rescaled_shares(weight, options, value):
    np.testing.assert_allclose(rescale_lambda(weight, **options), value, rtol=1e-6)


@pytest.mark.parametrize("loss", [decoupled_mixup_ce, decoupled_mixup_bce, lambda *z: rescale_lambda(z[-1])])
def test_weights_outside_of_their_range_are_refused(loss):
    with pytest.raises(ValueError, match=r"^weight must be in \[0, 1\], got 1.5"):
        loss(Z, A, B, 1.5)


def test_thresholds_above_one_are_refused():
    with pytest.raises(ValueError, match=r"^threshold must be in \(0, 1\], got 1.1"):
        rescale_lambda(0.5, threshold=1.1)
