"""Edit a Hugging Face model in closed form, in a loop of your own: your update, SPHERE's projection, the energy."""

import torch
from tiny import arguments, model_and_tokens, random_windows
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from sphere_callbacks import CollapseGuard, HypersphericalEnergy, Loop, SparseProjection

args = arguments(__doc__, learns=False)
model, tokens = model_and_tokens(args.model)
blocks = model.get_decoder().layers
layer = blocks[len(blocks) // 2].mlp.down_proj
model.requires_grad_(False)
layer.weight.requires_grad_(True)


def look(prompts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys `[n, d_in]` and residuals `[n, d_out]` of the edited layer at the last token, and the targets' loss."""
    seen = []
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0][:, -1], output)))
    logits = model(input_ids=prompts).logits[:, -1]
    handle.remove()
    keys, output = seen[0]
    loss = cross_entropy(logits, targets)
    (gradient,) = torch.autograd.grad(loss, output)
    # One step along the gradient stands for the optimisation of targets that your method has.
    residuals = -normalize(gradient[:, -1], dim=1) * output[:, -1].norm(dim=1, keepdim=True)
    return keys, residuals.detach(), loss.detach()


def your_update(keys: Tensor, residuals: Tensor, moment: Tensor) -> Tensor:
    """MEMIT's solve, `[d_out, d_in]`."""
    return torch.linalg.solve(moment + keys.T @ keys, keys.T @ residuals).T


def batch(count: int) -> tuple[Tensor, Tensor]:
    """Prompts, and a token to follow each."""
    return random_windows(tokens, count), torch.randint(model.config.vocab_size, (count,))


# An optimizer that takes the step it is given: the callbacks find the update in `weight.grad`, as -update.
optimizer = torch.optim.SGD([layer.weight], lr=1.0)
callbacks = [
    SparseProjection(cumulative_ratio=0.5, strength=0.8),
    HypersphericalEnergy(),
    CollapseGuard(max_energy_change=0.5, max_weight_growth=3.0, action="rollback"),
]
loop = Loop([optimizer])
known, _, _ = look(*batch(256))
moment = 0.1 * known.T @ known + 1e-3 * torch.eye(known.shape[1])  # of keys whose values shall stay as they are

for callback in callbacks:
    callback.on_train_start(loop, model)
for index in range(args.steps):
    prompts, targets = batch(8)
    keys, residuals, before = look(prompts, targets)
    layer.weight.grad = -your_update(keys, residuals, moment)
    for callback in callbacks:
        callback.on_before_optimizer_step(loop, model, optimizer)  # the projection changes the update here
    optimizer.step()
    for callback in callbacks:
        callback.on_train_batch_end(loop, model, None, prompts, index)
    loop.global_step += 1
    _, _, loss = look(prompts, targets)
    logged = {name: float(loop.callback_metrics[name]) for name in ("energy/change", "projection/removed")}
    print(f"batch {index} before {float(before):.3f} loss {loss.item():.3f} energy {logged['energy/change']:+.4%} "
          f"removed {logged['projection/removed']:.1%}")  # fmt: skip
for callback in callbacks:
    callback.on_train_end(loop, model)
