"""The same server on many machines: Ray Serve runs replicas of the engine, and requests go where their prefix is."""
