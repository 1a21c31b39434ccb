"""``flair``: photos of Flickr users, labelled by 17 coarse classes (FLAIR, Song et al. 2022),
429,078 images of 51,414 users. The users are the clients."""

from collections import Counter
from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.datasets.domains import TEMPLATE, TEST_FRACTION, Row, build
from fedpgp.data.files import Source, locate, read_json, shuffled
from fedpgp.errors import FedPGPError, check_number

FOLDERS = ("flair", "FLAIR")
IMAGES = ("small_images", "raw_images")
LIST = "labels_and_metadata.json"
SOURCE = Source("what download_dataset.py of github.com/apple/ml-flair makes", "6 GB")


@register("flair")
def load(
    root: Path, *, download: bool = False, users: int | None = None, min_images: int = 10
) -> Dataset:
    """FLAIR, as a data set of one label an image: images with exactly one coarse label, of users
    with enough of them.

    The published partition puts every user into training, validation or test. Here each user is a
    client that trains and is tested, so a fifth of its images is for testing, by their names.

    Args:
        users: how many, those with the most images, ties by their identifiers; None is all.
        min_images: fewest images with one label that a user must have.

    Raises:
        FedPGPError: not there, or damaged; fewer users than are asked for.
    """
    check_number("dataset.min_images", min_images, whole=True, least=2)
    if users is not None:
        check_number("dataset.users", users, whole=True, least=1)
    folder = locate("flair", root, FOLDERS, [IMAGES, LIST], SOURCE, download)
    images = next(name for name in IMAGES if (folder / name).is_dir())
    path = folder / LIST
    try:
        records = [(r["user_id"], r["image_id"], r["labels"]) for r in read_json(path)]
        class_names = sorted({label for _, _, labels in records for label in labels})
    except (KeyError, TypeError) as error:
        raise FedPGPError(
            f"{path} is no list of images with user_id, image_id and labels ({error!r}); fetch it "
            "again"
        ) from error
    single = [(user, image, labels[0]) for user, image, labels in records if len(labels) == 1]
    many = Counter(user for user, _, _ in single)
    able = sorted((u for u in many if many[u] >= min_images), key=lambda u: (-many[u], u))
    if not able or users is not None and users > len(able):
        raise FedPGPError(
            f"dataset.users={users} with dataset.min_images={min_images}: {len(able)} users of "
            f"{path} have that many images with one label"
        )
    label = {name: i for i, name in enumerate(class_names)}
    of_user: dict[str, dict[str, Row]] = {user: {} for user in sorted(able[:users])}
    for user, image, name in single:
        if user in of_user:
            of_user[user][image] = (f"{images}/{image}.jpg", label[name], user)
    train: list[Row] = []
    test: list[Row] = []
    for rows in of_user.values():
        held = set(shuffled(list(rows), 0)[: max(1, round(TEST_FRACTION * len(rows)))])
        train += [row for image, row in rows.items() if image not in held]
        test += [row for image, row in rows.items() if image in held]
    note = (
        f"split: our own, {TEST_FRACTION:.0%} of each user's images for testing; {len(of_user):,} "
        f"users with {min_images} images of one label or more"
    )
    return build("flair", class_names, folder, train, None, test, note, TEMPLATE)
