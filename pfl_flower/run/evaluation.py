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
            sums = [] if self.points is None else [self._tested(self.points, rho)]
            away = torch.linalg.vector_norm(rho - self._places, dim=1)
            # What is measured on a card is read at once: each look waits for all that it does.
            values = torch.cat([*sums, away]).double().tolist()
        measured = self._means(values[: -len(away)]) | self._distances(values[-len(away) :])
        if "accuracy_target" in measured and self.target is not None:
            measured["target_accuracy"] = self.target_accuracy
        return measured

    @cached_property
    def _places(self) -> Tensor:
        """Where rho's distances are taken from, ``(m, d)``; the last is the origin."""
        ends = [] if self.target is None else [self.target]
        ends += [*self.rivals, self.start]
        ends += [] if self.honest is None else [self.honest]
        return torch.stack([*ends, torch.zeros_like(self.start)])

    def _distances(self, away: list[float]) -> dict[str, float]:
        """Return the distances from ``_places`` by name."""
        measured, rest = {}, iter(away)
        if self.target is not None:
            measured["distance_to_target"] = next(rest)
        if self.rivals:
            measured["distance_to_rival"] = min([next(rest) for _ in self.rivals])
        measured["distance_to_start"] = next(rest)
        if self.honest is not None:
            measured["distance_to_honest"] = next(rest)
        measured["norm_rho"] = next(rest)
        return measured

    def _tested(self, points: SharedPoints, rho: Tensor) -> Tensor:
        """Return sums over the common test set, then over triggered points, in double."""
        sums = _added(each(partial(self._sums, rho), self._asked))
        if self.problem.backdoor is None or self.wanted is None:
            return sums
        parts = self.wanted.parts(self.problem.model)
        return torch.cat([sums, _added(each(partial(self._hits, rho), [(p,) for p in parts]))])

    def _means(self, sums: list[float]) -> dict[str, float]:
        """Return the means of what ``_tested`` sums, by name."""
        if self.points is None:
            return {}
        sizes = [len(self.points.labels)] * len(sums)
        if self.problem.backdoor is not None and self.wanted is not None:
            sizes[-1] = len(self.wanted.labels)
        names = ("loss_true", "accuracy_true", "accuracy_target")[: len(sums)]
        return {name: all / many for name, all, many in zip(names, sums, sizes, strict=True)}

    @cached_property
    def _asked(self) -> list[tuple[SharedPoints, Tensor]]:
        """Parts of the common test set, each with the labels ``(j, m)`` that count as right.

        What a trigger leads to the label is counted on points of its own.
        """
        assert self.points is not None
        parts, given = self.points.parts(self.problem.model), []
        for part in parts:
            relabelled = [self.problem.relabelled(part.labels)] if self._relabels else []
            given.append(torch.stack([part.labels, *relabelled]))
        return list(zip(parts, given, strict=True))

    @property
    def _relabels(self) -> bool:
        return self.problem.source.loss != "least-squares" and self.problem.backdoor is None

    def _sums(self, rho: Tensor, points: SharedPoints, given: Tensor) -> Tensor:
        """Return sums over points: the loss; of classes the answers that are as ``given``."""
        scores, labels = points.own_scores(self.problem.model, rho[None])[0], points.labels
        typed = labels.to(rho.dtype) if labels.is_floating_point() else labels
        loss = self.problem.loss.values(scores, typed).sum(dtype=torch.float64)[None]
        if self.problem.source.loss == "least-squares":
            return loss
        hits = (predict(scores) == given).sum(dim=1, dtype=torch.float64)
        return torch.cat([loss, hits])

    def _hits(self, rho: Tensor, points: SharedPoints) -> Tensor:
        """Return how many of the points are answered as they are labelled, ``(1,)``."""
        answers = predict(points.own_scores(self.problem.model, rho[None])[0])
        return (answers == points.labels).sum(dtype=torch.float64)[None]


def _added(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)
