"""Pictures and sounds of requests: checked when they come, decoded when a model reads them."""
