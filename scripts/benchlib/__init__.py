"""The parts of scripts/bench; standard library only, so that it runs wherever Python does."""
