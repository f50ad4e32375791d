"""Fine-tune a Hugging Face model in bare PyTorch, with SPHERE's projection, the energy and a guard against collapse."""

from tiny import arguments, model_and_tokens, random_windows
from torch.optim import AdamW

from sphere_callbacks import CollapseGuard, HypersphericalEnergy, Loop, SparseProjection

args = arguments(__doc__)
model, tokens = model_and_tokens(args.model)
optimizer = AdamW(model.parameters(), lr=args.learning_rate)

# Embeddings have many rows that mean little: look at the MLPs' down-projections alone.
where = "*down_proj*"
callbacks = [
    SparseProjection(cumulative_ratio=0.5, strength=0.8, modules=where),
    HypersphericalEnergy(modules=where),
    CollapseGuard(max_energy_change=0.5, max_weight_growth=3.0, action="stop", modules=where),
]
loop = Loop([optimizer])

for callback in callbacks:
    callback.on_train_start(loop, model)
for index in range(args.steps):
    batch = random_windows(tokens)
    loss = model(input_ids=batch, labels=batch).loss
    optimizer.zero_grad()
    loss.backward()
    for callback in callbacks:
        callback.on_before_optimizer_step(loop, model, optimizer)  # the projection changes the gradients here
    optimizer.step()
    for callback in callbacks:
        callback.on_train_batch_end(loop, model, None, batch, index)
    loop.global_step += 1
    logged = {name: float(loop.callback_metrics[name]) for name in ("energy/change", "projection/removed")}
    print(f"step {index} loss {loss.item():.3f} energy {logged['energy/change']:+.4%} "
          f"removed {logged['projection/removed']:.1%}")  # fmt: skip
    if loop.should_stop:
        print(callbacks[-1].last_reason)
        break
for callback in callbacks:
    callback.on_train_end(loop, model)
