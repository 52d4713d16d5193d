"""Checkpoints that are whole or absent, and how a training goes on from them."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import callbacks
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tumorseg.core.files import atomic_path


class WholeFiles(TorchCheckpointIO):
    """Writes each checkpoint beside its place and renames it; Lightning would use another disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Writes the checkpoint through to the disk before it takes its name.

        Raises:
            OSError: It cannot be written.
        """
        try:
            with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:
            # PyTorch closes its archive after a failed write, and complains of that instead.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class Patience(callbacks.EarlyStopping):
    """Stops when the validation loss has not fallen for long, also where that was before a kill."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning forgets that it was to stop."""
        trainer.should_stop = self.wait_count >= self.patience


def last_checkpoint(folder: Path) -> Path | None:
    """The last epoch's checkpoint that is sound, if there is one; says which are not."""

    def epoch(path: Path) -> int:
        return int(path.stem.removeprefix("epoch="))

    for path in sorted(folder.glob("epoch=*.ckpt"), key=epoch, reverse=True):
        if fault := _fault(path):
            print(f"{path}: is damaged ({fault}); going on from the one before")
            path.unlink(missing_ok=True)
            continue
        print(f"going on after epoch {epoch(path) + 1}")
        return path
    return None


def _fault(path: Path) -> str:
    """What is wrong with a checkpoint; empty if nothing. Loading one does not check its sums."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    # Damage in the zip's own tables can raise any of these.
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    return f"{member} has another checksum" if member else ""
