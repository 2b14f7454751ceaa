"""The parts of scripts/cluster-sim: traces, simulated replicas, routers, and what they are compared by."""
