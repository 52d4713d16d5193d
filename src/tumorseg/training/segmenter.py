"""A network with its loss, optimiser, schedule and validation figures, as Lightning needs them."""

import math
from collections import defaultdict
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from tumorseg.core.errors import InputError
from tumorseg.core.params import CommonTrainParams
from tumorseg.evaluation.metrics import dice
from tumorseg.training.datasets import Batch
from tumorseg.training.encoders import EfficientNetLite0
from tumorseg.training.loss import bce_dice_loss
from tumorseg.training.networks import UNet


class Segmenter(lightning.LightningModule):
    """The training of one network.

    Args:
        network: `UNet` or `AttentionUNet`.
        params: The section train.common.

    Attributes:
        best: Number (`epoch`), `score` and `weights` of the best epoch so far; the highest score is
            the best.
    """

    def __init__(self, network: UNet, params: CommonTrainParams) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.params = params
        self.resumed_plateau: dict[str, Any] | None = None
        self.best: dict[str, Any] = {"epoch": 0, "score": -math.inf, "weights": {}}

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and loss of one batch."""
        images, masks, _ = batch
        logits = self.network(images.contiguous(memory_format=torch.channels_last)).float()
        weights = (self.params.bce_weight, self.params.dice_weight, self.params.dice_over)
        return logits, bce_dice_loss(logits, masks.float(), *weights)

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """Loss and gradients of one batch.

        Raises:
            InputError: The loss is not a number; the message names the batch.
        """
        loss = self.loss(batch)[1]
        if not torch.isfinite(loss):
            raise InputError(
                f"epoch {self.current_epoch + 1}, batch {number + 1}: the loss is {loss.item()}; "
                "lower train.common.learning_rate, or look at the train slices in rows "
                f"{sorted(batch[2].tolist())} of the manifest's train split"
            )
        size = len(batch[0])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss * self._share_of_step(number, size)

    def _share_of_step(self, number: int, size: int) -> float:
        """Factor of a pass that makes a step's loss the mean of its slices, not of its passes."""
        passes = self.trainer.accumulate_grad_batches
        if passes == 1:
            return 1.0
        loader: Any = self.trainer.train_dataloader
        full = passes * loader.batch_size
        before = number // passes * full
        return size * passes / min(full, len(loader.sampler) - before)

    def on_validation_epoch_start(self) -> None:
        """Resets the sums, and keeps the weights that are validated (maybe averaged ones)."""
        self.sums = torch.zeros(3, device=self.device)  # of loss, of Dice, and of slices
        state = self.network.state_dict()
        self.validated = {k: value.detach().to("cpu", copy=True) for k, value in state.items()}

    def validation_step(self, batch: Batch, _: int) -> None:
        """Sums loss and Dice at threshold 0.5, on the grid."""
        logits, loss = self.loss(batch)
        hard, truth = logits > 0, batch[1] > 0
        positive, negative = (hard & truth).sum((1, 2, 3)), (hard ^ truth).sum((1, 2, 3))
        scores = dice(positive.cpu().numpy(), negative.cpu().numpy())
        size = len(batch[0])
        self.sums += self.sums.new_tensor([float(loss) * size, scores.sum(), size])

    def on_validation_epoch_end(self) -> None:
        """Means over the slices of all processes, which may have unequal shares.

        Raises:
            InputError: The loss is not a number.
        """
        loss, score, count = self.trainer.strategy.reduce(self.sums, reduce_op="sum")
        means = {"val_loss": loss / count, "val_dice": score / count}
        self.log_dict(means, prog_bar=True, sync_dist=True)
        found, epoch = float(means["val_loss"]), self.current_epoch + 1
        if not math.isfinite(found):
            raise InputError(
                f"epoch {epoch}: the validation loss is {found}; lower train.common.learning_rate"
            )
        scores = {"loss": -found, "dice": float(means["val_dice"]), "last": epoch}
        if scores[self.params.best_epoch] > self.best["score"]:
            score = scores[self.params.best_epoch]
            self.best = {"epoch": epoch, "score": score, "weights": self.validated}

    def configure_optimizers(self) -> Any:
        """AdamW (Loshchilov and Hutter 2019) with one of two schedules.

        One cycle (Smith and Topin 2018) warms up and then falls to zero along a cosine; plateau
        lowers the rate when the validation loss stops falling.
        """
        common = self.params
        optimizer = torch.optim.AdamW(parameter_groups(self.network, common), fused=True)
        if common.schedule == "one_cycle":
            steps = int(self.trainer.estimated_stepping_batches)
            cycle = torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                [group["lr"] for group in optimizer.param_groups],
                total_steps=steps,
                # PyTorch divides by the number of warm-up steps minus one.
                pct_start=common.warm_up if common.warm_up * steps > 1.5 else 0.0,
            )
            return [optimizer], [{"scheduler": cycle, "interval": "step"}]
        # Stepped here, since Lightning would step it after the checkpoint of the epoch.
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=common.plateau_factor,
            patience=common.plateau_patience,
            min_lr=common.minimum_learning_rate,
        )
        return optimizer

    def on_train_epoch_end(self) -> None:
        """Steps the plateau schedule."""
        if self.params.schedule == "plateau":
            self.plateau.step(float(self.trainer.callback_metrics["val_loss"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the best weights and the plateau schedule; Lightning saves the other schedule."""
        checkpoint["best"] = self.best
        if self.params.schedule == "plateau":
            checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the best weights; the schedule follows in `on_train_start`."""
        self.best = checkpoint["best"]
        self.resumed_plateau = checkpoint.get("plateau")

    def on_train_start(self) -> None:
        """Restores the plateau schedule of a checkpoint, and prints where a training resumes."""
        if self.current_epoch and self.trainer.is_global_zero:
            print(f"going on after epoch {self.current_epoch}")
        if self.resumed_plateau is not None:
            self.plateau.load_state_dict(self.resumed_plateau)


def parameter_groups(network: nn.Module, common: CommonTrainParams) -> list[dict[str, Any]]:
    """The parameters as an optimiser takes them: a pretrained encoder's have a rate of their own.

    Biases and the scales of normalisation are not decayed.
    """
    slower = set[Tensor]()
    if isinstance(encoder := getattr(network, "encoder", None), EfficientNetLite0):
        slower.update(encoder.parameters())
    groups = defaultdict[tuple[float, float], list[Tensor]](list)
    for parameter in network.parameters():
        rate = common.learning_rate * (common.encoder_rate if parameter in slower else 1.0)
        decay = common.weight_decay if parameter.ndim > 1 else 0.0
        groups[rate, decay].append(parameter)
    return [{"params": own, "lr": r, "weight_decay": d} for (r, d), own in groups.items()]
