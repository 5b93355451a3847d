"""Trained models as files of other runtimes: ONNX, OpenVINO and torch.export."""
