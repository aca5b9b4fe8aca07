"""A small Kubernetes cluster of network namespaces whose truth is known."""
