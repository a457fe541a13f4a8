"""Back up and restore a bucket: `python copy_bucket.py out|in BUCKET FOLDER`. An object becomes a file."""

import sys
from pathlib import Path
from typing import Any

import boto3


def copy_out(client: Any, bucket: str, folder: Path) -> int:
    """Write every object that is not there yet in its size into the folder; returns how many the bucket has.

    Raises:
        SystemExit: An object's name would lead out of the folder.
    """
    count = 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            target = (folder / entry["Key"]).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise SystemExit(f"The object {entry['Key']!r} leads out of {folder}. Remove or rename it.")
            if not target.exists() or target.stat().st_size != entry["Size"]:
                target.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, entry["Key"], str(target))
            count += 1
    return count


def copy_in(client: Any, bucket: str, folder: Path) -> int:
    """Store every file of the folder; returns how many."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        client.upload_file(str(path), bucket, path.relative_to(folder).as_posix())
    return len(files)


if __name__ == "__main__":
    _, direction, bucket_name, folder_name = sys.argv
    copied = {"out": copy_out, "in": copy_in}[direction](boto3.client("s3"), bucket_name, Path(folder_name))
    sys.stdout.write(f"{copied} objects\n")
