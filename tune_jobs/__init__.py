"""The search: features over the cluster, a grid under Ray Tune, the winner as a bundle. Knows nothing of HTTP."""
