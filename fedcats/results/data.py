"""What ``results.json`` says of a run's images, as types; see `fedcats.results`."""

from typing import Annotated, NotRequired, TypedDict


class NearDuplicate(TypedDict):
    """Two images that look alike but are different files."""

    first: Annotated[str, "file"]
    second: Annotated[str, "file"]
    distance: Annotated[int, "bits in which their perceptual hashes of 64 bits differ"]
    across: Annotated[bool, "one is a training, the other a test image"]


class Audit(TypedDict):
    """What was found when every file was looked at."""

    checked: Annotated[int, "files"]
    quarantined: Annotated[list[list[str]], "[file, reason] of what cannot be used and is left out"]
    ignored: Annotated[list[str], "files that do not look like images"]
    in_test_too: Annotated[list[list[str]], "[training file, test file] with the same content"]
    removed: Annotated[bool, "these training files are left out (`data.keep_duplicates=false`)"]
    duplicates: Annotated[list[list[str]], "groups of files with the same content in one part"]
    contradictions: Annotated[list[list[str]], "groups with the same content in several classes"]
    near_duplicates: Annotated[list[NearDuplicate], "at most 1,000, those across the parts first"]
    near_duplicates_found: Annotated[int, "how many there are"]


class Copy(TypedDict):
    """A training image that several clients have."""

    client: Annotated[int, "who has it"]
    file: Annotated[str, "under which name"]


class Shard(TypedDict):
    """What a client trains on."""

    client: Annotated[int, "from 0"]
    examples: Annotated[int, "images"]
    per_class: Annotated[dict[str, int], "images of each class"]
    digest: NotRequired[
        Annotated[
            str,
            "SHA-256 of its files, their labels and order, hexadecimal",
            "not in a real federation",
        ]
    ]


class Digests(TypedDict):
    """SHA-256 of the files of a part, their labels, order and transform; hexadecimal."""

    train: Annotated[str, "of all training images"]
    test: Annotated[str, "of all test images"]


class Data(TypedDict):
    """The images."""

    source: Annotated[str, "`synthetic` (drawings), `folder`, `hub`, .."]
    note: Annotated[str, "what is to be known of them; may be empty"]
    audit: Annotated[Audit, "the check of the files; of a real federation: the server's"]
    classes: Annotated[list[str], "their names, in the order of the model's outputs"]
    positive: NotRequired[
        Annotated[str, "of two classes, the one that precision and recall are of; else the second"]
    ]
    train: Annotated[dict[str, int], "training images of each class, without those held out"]
    test: Annotated[dict[str, int], "test images of each class"]
    held_out: Annotated[dict[str, int], "held-out training images of each class"]
    left_out: Annotated[
        dict[str, dict[str, int]],
        "training images of each class on no device: `limit` (data.limit, data.counts) and "
        "`partition` (dealt to nobody); empty in a real federation",
    ]
    in_several_shards: Annotated[list[list[Copy]], "groups with the same content, by client"]
    digest: Annotated[Digests, "of the images"]
    shards: Annotated[list[Shard], "one for each client, without what is held out"]
