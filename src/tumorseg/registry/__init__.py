"""MLflow runs and model versions, ONNX export, promotion and rollback, the champion's bento."""
