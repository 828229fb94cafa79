"""The Kubernetes operator: reconciles HermesRun resources into pods. It may import the runtime's run
document and nothing else of the runtime."""
