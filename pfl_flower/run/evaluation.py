"""What the server measures of rho each round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from pfl_flower.objective.models import accuracy, predict
from pfl_flower.objective.shared_points import SharedPoints
from pfl_flower.run.problem import Problem
from pfl_flower.support.threads import each, one_thread


@dataclass(frozen=True)
class Evaluation:
    """Accuracy, loss and distances of rho.

    Parameters
    ----------
    problem : Problem
        Whose test set and target are used. The target is the laboratory's knowledge: no update of
        rho depends on it. Without strategic users a model that is not linear has none, nor has a
        server that reads no user's points. Nor need there be a common test set.
    """

    problem: Problem
    points: SharedPoints | None
    target: Tensor | None
    start: Tensor
    rivals: tuple[Tensor, ...] = ()
    honest: Tensor | None = None

    @classmethod
    def of(cls, problem: Problem) -> Evaluation:
        """Return the evaluation of a run."""
        target, rivals = None, []
        # Two layers take minutes to learn a target, which nobody aims at without an attacker.
        wanted = problem.config.strategic() or problem.config.linear
        if wanted and problem.source.at_hand:
            target, *rivals = problem.targets.values()
        honest = problem.honest_model if problem.config.honest_distance else None
        points = problem.test_set if len(problem.test_set.labels) else None
        return cls(problem, points, target, problem.initial, tuple(rivals), honest)

    @cached_property
    def target_accuracy(self) -> float:
        """Accuracy of the target itself on the attacker's labels, what an attack can hope for."""
        if self.target is None or self.wanted is None:
            return float("nan")
        scores = self.wanted.scores(self.problem.model, self.target[None])
        return float(accuracy(scores, self.wanted.labels[None])[0])

    @cached_property
    def wanted(self) -> SharedPoints | None:
        """Test points as the attacker wants them answered: relabelled, or with its trigger."""
        if self.problem.backdoor is not None:
            return self.problem.triggered_tests
        if self.points is None:
            return None
        return replace(self.points, labels=self.problem.relabelled(self.points.labels))

    def __call__(self, rho: Tensor) -> dict[str, float]:
        """Return the metrics of ``rho (d,)``.

        ``accuracy_true`` and ``accuracy_target`` are on the test set as it is and as the attacker
        relabels it (absent for regression), which by a trigger are the points of other classes
        than its label's, triggered, and that label; ``loss_true`` is the mean loss per point (all
        absent without a test set); distances are Euclidean, ``distance_to_rival`` to the nearest
        target of the others, ``distance_to_honest`` to a classifier learned as the target is, on
        the true labels.
        """
        with one_thread():
            found = self._measured(rho)
            # What is measured on a card is read at once: each look waits for all that it does.
            values = torch.stack([value.double() for value in found.values()]).tolist()
        measured = dict(zip(found, values, strict=True))
        if "accuracy_target" in measured and self.target is not None:
            measured["target_accuracy"] = self.target_accuracy
        return measured

    def _measured(self, rho: Tensor) -> dict[str, Tensor]:
        measured = {} if self.points is None else self._tested(self.points, rho)
        if self.target is not None:
            measured["distance_to_target"] = _norm(rho - self.target)
        if self.rivals:
            away = [_norm(rho - rival) for rival in self.rivals]
            measured["distance_to_rival"] = torch.stack(away).amin()
        measured["distance_to_start"] = _norm(rho - self.start)
        if self.honest is not None:
            measured["distance_to_honest"] = _norm(rho - self.honest)
        measured["norm_rho"] = _norm(rho)
        return measured

    def _tested(self, points: SharedPoints, rho: Tensor) -> dict[str, Tensor]:
        """Return what rho comes to on the common test set."""
        model = self.problem.model
        judged = each(partial(self._sums, rho), [(part,) for part in points.parts(model)])
        means = torch.stack(judged).sum(dim=0) / len(points.labels)
        names = ("loss_true", "accuracy_true", "accuracy_target")[: len(means)]
        measured = dict(zip(names, means, strict=True))
        if self.problem.backdoor is not None and self.wanted is not None:
            parts = [(part,) for part in self.wanted.parts(model)]
            hits = torch.stack(each(partial(self._hits, rho), parts)).sum(dim=0)
            measured["accuracy_target"] = hits / len(self.wanted.labels)
        return measured

    def _sums(self, rho: Tensor, points: SharedPoints) -> Tensor:
        """Return sums over points: the loss; of classes right answers, and relabelled ones.

        What a trigger leads to the label is counted on points of its own.
        """
        scores, labels = points.own_scores(self.problem.model, rho[None])[0], points.labels
        typed = labels.to(rho.dtype) if labels.is_floating_point() else labels
        sums = [self.problem.loss.values(scores, typed).double().sum()]
        if self.problem.source.loss != "least-squares":
            answers, given = predict(scores), [labels]
            if self.problem.backdoor is None:
                given.append(self.problem.relabelled(labels))
            sums += [(answers == one).double().sum() for one in given]
        return torch.stack(sums)

    def _hits(self, rho: Tensor, points: SharedPoints) -> Tensor:
        """Return how many of the points are answered as they are labelled."""
        answers = predict(points.own_scores(self.problem.model, rho[None])[0])
        return (answers == points.labels).double().sum()


def _norm(vector: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vector)
