"""Models with structure: probabilistic classifiers."""

from jaxreg.structured.naive_bayes import NaiveBayesParams, as_linear, fit_naive_bayes, naive_bayes_logits

__all__ = ["NaiveBayesParams", "as_linear", "fit_naive_bayes", "naive_bayes_logits"]
