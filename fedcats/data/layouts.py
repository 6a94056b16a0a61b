"""Where in a folder or an archive the parts and the classes of a data set are."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fedcats.data.files import Files
from fedcats.errors import UserError
from fedcats.text import shown

LAYOUTS = (
    "allowed are train/<class> and test/<class> (or other usual names of the parts), only "
    "<class>, or files like cat.0.jpg"
)

_NAME_WITH_CLASS = re.compile(r"([^./]+)\.\d+\.[^./]+")

_BEHIND = r"(?:[ _.-]*(?:set|data|dataset|images?|imgs?|photos?|pictures?|pics|split|part))*\d?"
_NAMES = {
    "train": r"train(?:ing|val)?|trn",
    "test": r"test(?:ing)?|tst",
    "validation": r"val(?:id|idation|idate)?|dev(?:elopment)?|eval(?:uation)?",
}
_EXACT = {part: re.compile(f"(?:{name}){_BEHIND}", re.I) for part, name in _NAMES.items()}
_LOOSE = {
    part: re.compile(f"(?:.*[ _.-])?(?:{name}){_BEHIND}", re.I) for part, name in _NAMES.items()
}


@dataclass(frozen=True)
class Layout:
    """Paths by class: of a train and a test part, or of all images when `test` is None.

    Attributes
    ----------
    note
        What a user must know of what was found beside that; may be empty.
    """

    classes: tuple[str, ...]
    train: list[list[str]]
    test: list[list[str]] | None
    folders: tuple[str, ...]  # what lies outside them is of no interest
    note: str = ""

    def holds(self, path: str) -> bool:
        """Whether a path lies where images are looked for."""
        return any(path.startswith(folder) for folder in self.folders)


def find_layout(files: Files) -> Layout:
    """Find the classes, and the train and test parts where there are such.

    Raises
    ------
    UserError
        When there are not two or more classes with images in both parts, or when it cannot be
        told which folders are parts and which are classes.
    """
    top = ""
    while True:
        if given := _parts(files, top):
            return given
        if flat := _flat(files, top):
            return flat
        inside = _the_only_folder(files, top)
        if not (inside and (folders_in(files, inside) or _named_by_class(files, inside))):
            return _class_folders(files, top)
        top = inside


def part_folder(files: Files, part: str) -> str:
    """Path of the folder with the classes of a part, ``train`` or ``test``; '' when there is none.

    Raises
    ------
    UserError
        When there are several.
    """
    return _one(files, part, _with_classes(files, "", _EXACT)[part]) or ""


def by_class(files: Files, folder: str, classes: Sequence[str]) -> list[list[str]]:
    """Paths of the images in each class folder directly in `folder`.

    Raises
    ------
    UserError
        When a class has none.
    """
    grouped: dict[str, list[str]] = defaultdict(list)
    for path in files.images:
        if path.startswith(folder):
            grouped[path[len(folder) :].partition("/")[0]].append(path)
    for name in classes:
        if not grouped[name]:
            raise UserError(
                f"data.root={files.where}: the class folder {folder}{name} has no images"
            )
    return [grouped[name] for name in classes]


def folders_in(files: Files, folder: str) -> list[str]:
    """Names of the folders directly in `folder` ('' or 'some/folder/'), sorted."""
    return files.inside[folder].folders


def refuse_links(files: Files, folder: str) -> None:
    """Raise when a folder that should hold classes, or be one, is a link to elsewhere."""
    for linked in sorted(files.linked_folders):
        if linked.startswith(folder) and "/" not in linked[len(folder) :]:
            raise UserError(
                f"data.root={files.where}: the folder {linked} is a link that leaves it; "
                "copy it there, or name the real folder"
            )


def check_classes(files: Files, classes: Sequence[str], folder: str) -> None:
    """Raise when these folders in `folder` cannot be the classes."""
    where = files.where / folder
    if not classes:
        raise UserError(f"data.root: no class folders in {where}; {LAYOUTS}")
    if len(classes) == 1:
        raise UserError(
            f"data.root: only one class folder, {classes[0]!r}, in {where}; at least two are needed"
        )
    for names in (_EXACT, _LOOSE):
        train, other = (
            [name for name in classes if any(names[part].fullmatch(name) for part in parts)]
            for parts in (("train",), ("test", "validation"))
        )
        if train and other and (names is _EXACT or len(train) + len(other) == len(classes)):
            raise UserError(
                f"data.root={files.where}: {', '.join(train + other)} look like parts of a data "
                f"set, not like classes, but hold no class folders; {LAYOUTS} (a class of such a "
                "name needs another one)"
            )
    within = [folders_in(files, f"{folder}{name}/") for name in classes]
    if all(_is_divided(names) for names in within):
        raise UserError(
            f"data.root={files.where}: each class is divided by itself, such as "
            f"{folder}{classes[0]}/{within[0][0]}; the parts must be outside; {LAYOUTS}"
        )


def _is_divided(names: Sequence[str]) -> bool:
    found = [next((p for p, name in _EXACT.items() if name.fullmatch(n)), None) for n in names]
    return None not in found and "train" in found and len({*found}) > 1


def _parts(files: Files, top: str) -> Layout | None:
    """Find a train and a test part in `top`; None when it does not look as if it had any."""
    for names in (_EXACT, _LOOSE):
        found = _with_classes(files, top, names)
        if found["train"] and (found["test"] or found["validation"]):
            break
    else:
        _refuse_half(files, top, _with_classes(files, top, _EXACT))
        return None
    refuse_links(files, top)
    train = _one(files, "train", found["train"])
    test = _one(files, "test", found["test"]) or _one(files, "test", found["validation"])
    assert train and test  # that is what the loop above ended with
    notes = []
    if not found["test"]:
        notes.append(f"tested on the images in {test[:-1]}, as there are no classes in a test part")
    unused = [folder for folder in found["validation"] if folder != test]
    for folder in unused:
        count = sum(path.startswith(folder) for path in files.images)
        notes.append(f"the {count} images in {folder[:-1]} are not used")
    return _given_split(files, top, train, test, "; ".join(notes))


def _with_classes(
    files: Files, top: str, names: dict[str, re.Pattern[str]]
) -> dict[str, list[str]]:
    """Folders in `top` that are called like a part and hold folders, by part."""
    found: dict[str, list[str]] = {part: [] for part in names}
    for name in folders_in(files, top):
        part = next((part for part in names if names[part].fullmatch(name)), None)
        folder = f"{top}{name}/"
        # Kaggle's "cat-and-dog" has training_set/training_set/cats.
        while part and (inside := _the_only_folder(files, folder)):
            if not names[part].fullmatch(inside[len(folder) : -1]):
                break
            folder = inside
        if part and folders_in(files, folder):
            found[part].append(folder)
    return found


def _one(files: Files, part: str, folders: Sequence[str]) -> str | None:
    if len(folders) > 1:
        raise UserError(
            f"data.root={files.where}: several folders look like the {part} part: "
            f"{', '.join(folder[:-1] for folder in folders)}; keep one of them there"
        )
    return folders[0] if folders else None


def _refuse_half(files: Files, top: str, found: dict[str, list[str]]) -> None:
    """Raise where one part is there without the other, and may as well be a class."""
    for part, other in (("train", "test"), ("test", "train")):
        for folder in found[part]:
            refuse_links(files, top)
            if folder == f"{top}{part}/":
                raise UserError(
                    f"data.root={files.where}: there are classes in {part} but not in {other}; "
                    f"{LAYOUTS}"
                )
            filled = {path[len(top) :].partition("/")[0] for path in files.images}
            beside = [
                name
                for name in folders_in(files, top)
                if not folder.startswith(f"{top}{name}/") and name in filled
            ]
            if beside:
                raise UserError(
                    f"data.root={files.where}: {folder[:-1]} looks like a part of a data set, but "
                    f"there is no {other} part, and {', '.join(beside)} beside it; {LAYOUTS}"
                )


def _given_split(files: Files, top: str, train: str, test: str, note: str) -> Layout:
    for folder in (train, test):
        refuse_links(files, folder)
    called = {folder: folder[len(top) : -1] for folder in (train, test)}
    classes = folders_in(files, train)
    check_classes(files, classes, train)
    in_test = folders_in(files, test)
    for name in in_test:
        if name not in classes:
            raise UserError(
                f"data.root={files.where}: class {name!r} is in {called[test]} but not in "
                f"{called[train]}; {called[train]} has {', '.join(classes)}"
            )
    for name in classes:
        if name not in in_test:
            raise UserError(
                f"data.root={files.where}: class {name!r} is in {called[train]} but not in "
                f"{called[test]}"
            )
    parts = [by_class(files, folder, classes) for folder in (train, test)]
    return Layout(class_names(classes), parts[0], parts[1], (train, test), note)


def _class_folders(files: Files, top: str) -> Layout:
    refuse_links(files, top)
    classes = folders_in(files, top)
    if not classes and (inner := [path for path in files.ignored if path.endswith(".zip")]):
        raise UserError(
            f"data.root={files.where}: holds no images but {inner[0]}; "
            "unpack it and name that: data.root=.../" + inner[0].rpartition("/")[2]
        )
    check_classes(files, classes, top)
    folders = tuple(f"{top}{name}/" for name in classes)
    return Layout(class_names(classes), by_class(files, top, classes), None, folders)


def _flat(files: Files, top: str) -> Layout | None:
    """Find files like ``cat.0.jpg`` in `top`, or in a train part and perhaps a test part in it."""
    if found := _named_by_class(files, top):
        return found
    parts: dict[str, list[Layout]] = {"train": [], "test": []}
    for name in folders_in(files, top):
        for part in parts:
            if _EXACT[part].fullmatch(name):
                named = _named_by_class(files, f"{top}{name}/")
                parts[part] += [named] if named else []
    if len(parts["train"]) != 1:
        return None
    (train,) = parts["train"]
    if len(parts["test"]) != 1 or parts["test"][0].classes != train.classes:
        return train
    (test,) = parts["test"]
    return Layout(train.classes, train.train, test.train, train.folders + test.folders)


def _named_by_class(files: Files, folder: str) -> Layout | None:
    """Find files like ``cat.0.jpg`` directly in `folder`; None when there are not two classes."""
    grouped: dict[str, list[str]] = defaultdict(list)
    nameless = []
    for path in files.inside[folder].images:
        match = _NAME_WITH_CLASS.fullmatch(path[len(folder) :])
        if match:
            grouped[match[1]].append(path)
        else:
            nameless.append(path)
    if len(grouped) < 2:
        return None
    files.rejected |= dict.fromkeys(nameless, "no class in its name, as in cat.0.jpg")
    classes = sorted(grouped)
    return Layout(class_names(classes), [grouped[name] for name in classes], None, (folder,))


def class_names(names: Sequence[str], key: str = "data.root") -> tuple[str, ...]:
    """Names of classes as they are `shown`; UserError where two are then the same."""
    found = tuple(map(shown, names))
    if twice := next((name for name, count in Counter(found).items() if count > 1), None):
        raise UserError(f"{key}: two classes are called {twice!r}; rename one of them")
    return found


def _the_only_folder(files: Files, top: str) -> str | None:
    """Path of the folder that all else is in, as archives often have it."""
    below = folders_in(files, top)
    return f"{top}{below[0]}/" if len(below) == 1 and not files.inside[top].images else None
