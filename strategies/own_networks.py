"""Devices that train a network of their own choice, where the experiment can be made with it."""

from collections.abc import Mapping
from dataclasses import replace

from fedistill import planning
from fedistill.config import Config, ModelConfig
from fedistill.errors import UserError
from fedistill.images import DataSpec


def adopt(
    config: Config, spec: DataSpec, own: Mapping[int, ModelConfig]
) -> tuple[Config, dict[int, str]]:
    """Let each device train its own network, or say why the experiment cannot be made with it.

    A network is held against the config alone, so that no device is refused for another's choice.

    Args:
        config: of the experiment; it fits without them.
        spec: of the data set.
        own: the networks that devices have chosen, by partition id.

    Returns:
        The config with the networks that fit, and why the others do not, by partition id.
    """
    refused = {}
    for client, model in own.items():
        try:
            # Beside the config's network: rows that average weights take one for all.
            planning.check(replace(config, model=(config.teacher_model(client), model)), spec)
        except (UserError, ValueError) as error:
            refused[client] = (
                f"the model of its node config, {model.name}, does not fit the experiment: {error}"
            )
    fitting = {client: model for client, model in own.items() if client not in refused}
    if not fitting:
        return config, refused
    everyone = range(config.partition.clients)
    models = tuple(fitting.get(client, config.teacher_model(client)) for client in everyone)
    return replace(config, model=models), refused
