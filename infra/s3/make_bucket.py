"""Make the stack's bucket, where there is none: `python make_bucket.py BUCKET`. A server is waited for."""

import sys
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError

SECONDS = 120.0


def make_bucket(name: str, seconds: float = SECONDS) -> None:
    """Make it where there is none, and see that it can be written.

    Raises:
        SystemExit: The server did not answer in time, or refuses.
    """
    client = boto3.client("s3")
    deadline = time.monotonic() + seconds
    while True:
        try:
            if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=name)
            client.put_object(Bucket=name, Key="bucket-ready", Body=b"ready")
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"The bucket {name} cannot be made: {error}. Check AWS_ENDPOINT_URL and the keys."
                ) from error
        time.sleep(2)


if __name__ == "__main__":
    make_bucket(sys.argv[1])
