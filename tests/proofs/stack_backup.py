"""Backing up and restoring a native stack, by the commands of docs/deploying.md."""

from pathlib import Path

from tests.proofs.native_stack import NativeStack

DATABASES = ("catalog", "mlflow", "prefect")


def back_up(stack: NativeStack, folder: Path) -> None:
    """What docs/deploying.md says about a backup: the databases, then the bucket."""
    folder.mkdir()
    for name in DATABASES:
        stack.run_job("pg_dump", "pg_dump", "--format=custom", f"--file={folder}/{name}.dump", name)
    bucket = stack.variables["S3_BUCKET"]
    stack.run_in("worker-cpu", "python", "infra/s3/copy_bucket.py", "out", bucket, str(folder / "bucket"))


def lose_everything(stack: NativeStack) -> None:
    """Stop it all and empty the volumes; S3's stand-in forgets by itself."""
    stack.stop()
    for volume in ("postgres-data", "cartridge-home", "prefect-data"):
        stack.forget_volume(volume)


def restore(stack: NativeStack, folder: Path) -> None:
    """What docs/deploying.md says about restoring into empty volumes."""
    stack.start_postgres()
    stack.start_s3()
    stack.job("bucket")
    for name in DATABASES:
        stack.run_job("pg_restore", "pg_restore", "--clean", "--if-exists", f"--dbname={name}", f"{folder}/{name}.dump")
    bucket = stack.variables["S3_BUCKET"]
    stack.run_in("worker-cpu", "python", "infra/s3/copy_bucket.py", "in", bucket, str(folder / "bucket"))
