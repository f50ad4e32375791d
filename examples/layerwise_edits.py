"""Edit several layers of a Hugging Face model in a loop of your own: each is solved on the layers edited before it."""

import torch
from tiny import arguments, model_and_tokens, random_windows
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from sphere_callbacks import HypersphericalEnergy, LayerwiseEdit, Loop, SparseProjection

args = arguments(__doc__, learns=False)
model, tokens = model_and_tokens(args.model)
blocks = model.get_decoder().layers[:2]  # shallow to deep
matrices = [block.mlp.down_proj for block in blocks]
model.requires_grad_(False)


def look(prompts: Tensor, targets: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Keys of each matrix `[n, d_in]` and the deepest block's output `[n, d]`, at the last token, and the loss."""
    keys, outputs = [], []
    handles = [layer.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[0][:, -1])) for layer in matrices]
    handles.append(blocks[-1].register_forward_hook(lambda _, __, output: outputs.append(output.requires_grad_())))
    loss = cross_entropy(model(input_ids=prompts).logits[:, -1], targets)
    for handle in handles:
        handle.remove()
    return keys, outputs[0], loss


optimizer = LayerwiseEdit(
    [{"params": [layer.weight.requires_grad_(True)]} for layer in matrices],
    before_update=lambda _: [each.on_before_optimizer_step(loop, model, optimizer) for each in callbacks],
)
callbacks = [SparseProjection(cumulative_ratio=0.5, strength=0.8), HypersphericalEnergy()]
loop = Loop([optimizer])
for callback in callbacks:
    callback.on_train_start(loop, model)

for index in range(args.steps):
    prompts, targets = random_windows(tokens, 8), torch.randint(model.config.vocab_size, (8,))
    _, output, before = look(prompts, targets)
    (gradient,) = torch.autograd.grad(before, output)
    # One step along the gradient stands for the optimisation of target values that your method has.
    step = normalize(gradient[:, -1], dim=1) * output[:, -1].norm(dim=1, keepdim=True)
    values = (output[:, -1] - step).detach()

    def solve_layer() -> None:
        """What is still missing is shared over the layers that are left; the update goes through `weight.grad`."""
        layer = optimizer.active_group
        with torch.no_grad():
            keys, now, _ = look(prompts, targets)  # noqa: B023 (called in this step)
            residuals = (values - now[:, -1]) / (len(matrices) - layer)  # noqa: B023
            system = keys[layer].T @ keys[layer] + 0.1 * torch.eye(keys[layer].shape[1])
            matrices[layer].weight.grad = -torch.linalg.solve(system, keys[layer].T @ residuals).T

    optimizer.step(solve_layer)
    for callback in callbacks:
        callback.on_train_batch_end(loop, model, None, prompts, index)
    loop.global_step += 1
    with torch.no_grad():
        _, _, loss = look(prompts, targets)
    logged = {name: float(loop.callback_metrics[name]) for name in ("energy/change", "projection/removed")}
    print(f"batch {index} before {before.detach():.3f} loss {loss:.3f} energy {logged['energy/change']:+.4%} "
          f"removed {logged['projection/removed']:.1%}")  # fmt: skip
for callback in callbacks:
    callback.on_train_end(loop, model)
