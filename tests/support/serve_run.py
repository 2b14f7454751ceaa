"""What `serve run locallab.cluster:app config=FILE` does, at a port of its own: ADDRESS PORT FILE."""

import sys
import time

import ray
from ray import serve

from locallab.cluster import app

ray.init(sys.argv[1], logging_level=50)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(app({"config": sys.argv[3]}), name="locallab")
print("running", flush=True)
time.sleep(3600)
