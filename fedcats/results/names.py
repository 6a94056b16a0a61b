"""Names of models: ``centralized``, ``same_steps``, ``submodel/<client>``, else a merge rule's."""

IN_ONE_PLACE = ("centralized", "same_steps")  # models of all photos, and not merged
_OWN = "submodel/"


def submodel(client: int) -> str:
    """Name of a client's own model."""
    return f"{_OWN}{client}"


def is_submodel(name: str) -> bool:
    """Whether it is the name of a client's own model."""
    return name.startswith(_OWN)


def client_of(name: str) -> int:
    """Return whose own model it is; ValueError of any other name."""
    if not is_submodel(name):
        raise ValueError(f"{name} is no client's own model")
    return int(name.removeprefix(_OWN))


def is_merged(name: str) -> bool:
    """Whether a model of that name was merged, not trained."""
    return name not in IN_ONE_PLACE and not is_submodel(name)
