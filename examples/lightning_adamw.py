"""Train a LightningModule around a Hugging Face model with AdamW; the callbacks go to the Trainer as any others."""

import lightning as L
import torch
from tiny import arguments, model_and_tokens, random_windows

from sphere_callbacks import CollapseGuard, HypersphericalEnergy, SparseProjection


class FineTuning(L.LightningModule):
    """Next-token training on windows of a text."""

    def __init__(self, model, learning_rate):
        super().__init__()
        self.model = model
        self.learning_rate = learning_rate

    def training_step(self, batch, batch_idx):
        """The loss of one batch of windows `[n, T]`."""
        loss = self.model(input_ids=batch, labels=batch).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        """AdamW on all parameters; the callbacks pick theirs by name."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


args = arguments(__doc__)
model, tokens = model_and_tokens(args.model)
where = "*down_proj*"
trainer = L.Trainer(
    callbacks=[
        SparseProjection(cumulative_ratio=0.5, strength=0.8, modules=where),
        HypersphericalEnergy(modules=where),
        CollapseGuard(max_energy_change=0.5, max_weight_growth=3.0, action="stop", modules=where),
    ],
    max_epochs=1,
    devices=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
windows = [random_windows(tokens) for _ in range(args.steps)]
trainer.fit(FineTuning(model, args.learning_rate), torch.utils.data.DataLoader(windows, batch_size=None))
logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
print(f"{trainer.global_step} steps loss {logged['loss']:.3f} energy {logged['energy/change']:+.4%} "
      f"removed {logged['projection/removed']:.1%}")  # fmt: skip
