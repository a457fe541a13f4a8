#!/bin/sh
# SeaweedFS as an S3 server for one key. The configuration is written at start: the key comes from the environment.
set -eu
umask 077
printf '{"identities": [{"name": "cartridges", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
  "credentials": [{"accessKey": "%s", "secretKey": "%s"}]}]}\n' "$S3_ACCESS_KEY" "$S3_SECRET_KEY" > /tmp/s3.json
exec weed server -dir=/data -ip=127.0.0.1 -ip.bind=0.0.0.0 -master.volumeSizeLimitMB=1024 -volume.max=0 \
    -s3 -s3.port=8333 -s3.config=/tmp/s3.json
