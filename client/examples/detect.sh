#!/bin/sh
# Prints label and score of everything that the service finds in one image: detect.sh IMAGE
# CLQ_URL and CLQ_API_KEY as for clq-client.  Needs curl and python3.
set -eu
# A key on the command line could be seen by other users: curl reads it from here.
auth() { [ -z "${CLQ_API_KEY:-}" ] || printf 'header = "Authorization: Bearer %s"\n' "$CLQ_API_KEY"; }

# --retry repeats 408, 429, 500, 502, 503 and 504 and obeys Retry-After; detection may be repeated.
answer=$(auth | curl --config - --silent --show-error --fail-with-body --retry 4 --retry-connrefused \
    --max-time 60 --header 'Content-Type: application/octet-stream' --data-binary "@$1" \
    "${CLQ_URL:-http://127.0.0.1:8000}/v1/detect?score=0.3") || { echo "$answer" >&2; exit 1; }
printf '%s' "$answer" | python3 -c '
import json, sys
for found in json.load(sys.stdin)["detections"]:
    print(found["label"], round(found["score"], 3))'
