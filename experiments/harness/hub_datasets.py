"""Data sets of the Hugging Face hub, and local files in the formats that its package reads."""

from typing import Any

LOCAL = ("json", "parquet", "csv", "text", "imagefolder")


def open_dataset(spec: str, *, streaming: bool = True, process: tuple[int, int] = (0, 1)) -> Any:
    """The training split of a data set, or one process's part of it.

    Args:
        spec: ``"hf:NAME"``, ``"hf:NAME:CONFIG"``, or ``"hf:FORMAT:PATH"`` for local files.
        streaming: whether to read it from the start to the end only, without a copy on the disk.
        process: index of this process, and how many there are.

    Raises:
        ValueError: it cannot be opened, or the package ``datasets`` is missing.
    """
    try:
        import datasets  # optional
        import datasets.distributed
    except ImportError as error:
        raise ValueError(f'{spec} needs the extra "text": pip install -e ".[experiments,text]"') from error
    _, name, *rest = spec.split(":", 2)
    if rest and name == "imagefolder":
        where = {"data_dir": rest[0]}
    elif rest and name in LOCAL:
        where = {"data_files": rest[0]}
    else:
        where = {"name": rest[0] if rest else None}
    try:
        dataset = datasets.load_dataset(name, split="train", streaming=streaming, **where)
    except (OSError, ValueError) as error:
        raise ValueError(f"{spec} cannot be opened: {error}") from error
    index, count = process
    return dataset if count == 1 else datasets.distributed.split_dataset_by_node(dataset, rank=index, world_size=count)
