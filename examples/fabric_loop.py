"""Fine-tune a Hugging Face model through Lightning Fabric; `fabric.call` reaches the callbacks."""

from lightning.fabric import Fabric
from tiny import arguments, model_and_tokens, random_windows
from torch.optim import AdamW

from sphere_callbacks import CollapseGuard, HypersphericalEnergy, Loop, SparseProjection

args = arguments(__doc__)
model, tokens = model_and_tokens(args.model)
where = "*down_proj*"
callbacks = [
    SparseProjection(cumulative_ratio=0.5, strength=0.8, modules=where),
    HypersphericalEnergy(modules=where),
    CollapseGuard(max_energy_change=0.5, max_weight_growth=3.0, action="stop", modules=where),
]
fabric = Fabric(accelerator="auto", devices=1, callbacks=callbacks)
model, optimizer = fabric.setup(model, AdamW(model.parameters(), lr=args.learning_rate))
loop = Loop([optimizer], fabric.loggers)

fabric.call("on_train_start", loop, model)
for index in range(args.steps):
    batch = fabric.to_device(random_windows(tokens))
    loss = model(input_ids=batch, labels=batch).loss
    optimizer.zero_grad()
    fabric.backward(loss)
    fabric.call("on_before_optimizer_step", loop, model, optimizer)
    optimizer.step()
    fabric.call("on_train_batch_end", loop, model, None, batch, index)
    loop.global_step += 1
    logged = {name: float(loop.callback_metrics[name]) for name in ("energy/change", "projection/removed")}
    print(f"step {index} loss {loss.item():.3f} energy {logged['energy/change']:+.4%} "
          f"removed {logged['projection/removed']:.1%}")  # fmt: skip
    if loop.should_stop:
        break
fabric.call("on_train_end", loop, model)
