"""Creates the buckets that the profile uses, where they are missing: `python -m deploy.buckets`."""

import boto3

BUCKETS = ("mlflow", "dvc")


def create(**options: str) -> None:
    """Creates them, by default on the server that the AWS_ variables name.

    Args:
        **options: Of `boto3.client`.
    """
    s3 = boto3.client("s3", **options)
    there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in there:
            s3.create_bucket(Bucket=name)
            print(f"bucket {name}: created")


if __name__ == "__main__":
    create()
