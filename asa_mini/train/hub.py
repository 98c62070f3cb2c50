"""Data from the Hugging Face hub, always at one commit: files of the tasks' table, or any repository."""

import logging
from pathlib import Path

import datasets
from datasets import ClassLabel
from huggingface_hub import HfApi, hf_hub_download

from asa_mini.errors import DataFileError, InputError
from asa_mini.train.models import hub_answers
from asa_mini.train.reading import Row
from asa_mini.train.tasks import Task, as_tuple

logger = logging.getLogger(__name__)

SPLITS = {"train": ("train",), "dev": ("validation", "dev", "valid"), "test": ("test",)}


def download(task: Task, files: dict[str, tuple[str, ...]]) -> dict[str, list[Path]]:
    """Files of each split from the hub, or from the hub's cache on this machine.

    Raises:
        DataFileError: there is no copy, or it cannot be fetched.
    """
    names = [name for split in map(as_tuple, task.files.values()) for name in split]
    way = f"name a folder with {', '.join(names)} (--data_dir, ASA_DATA_DIR)"
    if task.hub is None:
        raise DataFileError(f"{task.name} is in no repository of the hub that was checked; {way}")
    offline, paths = not hub_answers(), {}
    where = {"repo_id": task.hub.repo, "revision": task.hub.revision, "repo_type": "dataset"}
    where["local_files_only"] = offline
    for split, wanted in files.items():
        try:
            paths[split] = [Path(hf_hub_download(**where, filename=name)) for name in wanted]
        except OSError as error:  # every error of the client is one: offline, unreachable, not found
            what = f"{wanted[0]} of {task.hub.repo} cannot be fetched ({type(error).__name__})"
            raise DataFileError(f"{what}; connect to the network, or {way}") from error
    return paths


def read_hub(
    name: str, config: str | None, revision: str | None, label: str
) -> tuple[dict[str, list[Row]], tuple[str, ...], str]:
    """Rows of train, dev and test of a repository's data set, the names of its labels, and its commit.

    Args:
        revision: a branch, tag or commit (default: the main branch); what it stands for now is returned.
        label: column of the labels.

    Raises:
        DataFileError: it cannot be fetched. InputError: it has no such set.
    """
    try:
        commit = HfApi().dataset_info(name, revision=revision, timeout=10).sha
        loaded = datasets.load_dataset(name, config, revision=commit)
    except Exception as error:  # the client's errors have no common class
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"{name} at revision {revision or 'main'} cannot be fetched from the hub ({cause})"
        raise DataFileError(f"{what}; connect to the network, or check name, config and revision") from error
    found = {ours: next((n for n in names if n in loaded), None) for ours, names in SPLITS.items()}
    if not any(found.values()):
        raise InputError(
            f"{name} has none of the splits train, validation and test, only {', '.join(loaded)}"
        )
    for ours, theirs in found.items():
        labels = loaded[theirs][label] if theirs and label in loaded[theirs].features else [0]
        if all(x in (-1, None) for x in labels):
            logger.warning("the split %s of %s has no labels and is left out", theirs, name)
            found[ours] = None
    rows = {
        ours: [Row(Path(name), n, row, f"{theirs} row") for n, row in enumerate(loaded[theirs], start=1)]
        for ours, theirs in found.items()
        if theirs
    }
    feature = loaded[next(filter(None, found.values()))].features.get(label)
    feature = getattr(feature, "feature", feature)  # of lists of labels
    return rows, tuple(feature.names) if isinstance(feature, ClassLabel) else (), commit
