"""Tasks whose answer is one class or one value for each example."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from surm.data.base import Answers, Example, Examples, Objective, Split
from surm.data.encode import encode
from surm.data.metrics import compute_metrics
from surm.models.backbone import Backbone


class Labels(Objective):
    """What classes and values share; logits are (B, classes), or (B, 1) of a regression.

    Args:
        metrics: names, the primary one first.
    """

    predicts = "labels"

    def __init__(self, metrics: tuple[str, ...]) -> None:
        self.metrics = metrics

    def examples(self, split: Split, backbone: Backbone) -> Examples:
        return encode(split, backbone)

    def loss(self, module: nn.Module, batch: Example) -> Tensor:
        logits, labels = self.answer(module, batch)
        return self.losses(logits, labels)

    def answer(self, module: nn.Module, batch: Example) -> tuple[Tensor, ...]:
        inputs = dict(batch)
        labels = inputs.pop("labels")
        output = module(**inputs)
        logits: Tensor = getattr(output, "logits", output)
        return logits.float(), labels

    def score(self, answers: tuple[Tensor, ...]) -> Answers:
        logits, labels = answers
        predictions = self.predictions(logits).tolist()
        metrics = compute_metrics(self.metrics, labels.tolist(), predictions)
        metrics |= {"loss": self.losses(logits, labels).item()}
        return Answers(labels.tolist(), predictions, self.losses(logits, labels, "none").tolist(), metrics)

    def losses(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Their mean, or with the reduction "none" one for each example."""
        raise NotImplementedError

    def predictions(self, logits: Tensor) -> Tensor:
        """The answer to each example, (B,)."""
        raise NotImplementedError


class Classes(Labels):
    """The most probable class; cross-entropy in nats."""

    def losses(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        return cross_entropy(logits, labels, reduction=reduction)

    def predictions(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)


class Values(Labels):
    """A regression; squared error."""

    def losses(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        return mse_loss(logits.squeeze(-1), labels, reduction=reduction)

    def predictions(self, logits: Tensor) -> Tensor:
        return logits.squeeze(-1)
