"""What is in each image: python detect_sync.py IMAGE..."""

import sys

from clq_client import Client, ClqError

with Client() as client:  # CLQ_URL and CLQ_API_KEY, if they are set
    for path in sys.argv[1:]:
        try:
            result = client.detect(path, score=0.3)
        except ClqError as error:
            print(f"{path}: {error}", file=sys.stderr)
            continue
        for found in result.detections:
            print(path, found.label, round(found.score, 3), *found.box)
