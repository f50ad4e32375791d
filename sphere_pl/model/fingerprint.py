"""Which model this is: a hash that another one, or the same one edited, does not have."""

import hashlib

from sphere_pl.model.language_model import LanguageModel


def fingerprint(lm: LanguageModel) -> str:
    """A hash of the model's configuration and of 64 values spread over each of its tensors."""
    digest = hashlib.sha256(lm.model.config.model_type.encode())
    for name, parameter in lm.model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)].float().cpu().numpy().tobytes()
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode() + sample)
    return digest.hexdigest()
