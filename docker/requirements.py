"""The requirements in a pyproject.toml:  python requirements.py pyproject.toml [EXTRA]"""

import re
import sys
import tomllib

path, *extras = sys.argv[1:]
with open(path, "rb") as file:
    project = tomllib.load(file)["project"]
requirements = list(project["dependencies"])
for extra in extras:
    requirements += project["optional-dependencies"][extra]
if any(requirement.startswith("onnxruntime-gpu") for requirement in requirements):
    # Both would install the same folder; which one wins depends on the order.
    requirements = [r for r in requirements if not re.match(r"onnxruntime\b(?!-)", r)]
print(*requirements, sep="\n")
