"""The server profile: compose and Kubernetes manifests, and the same servers on loopback."""
