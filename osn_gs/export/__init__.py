"""What leaves a run: .ply files per configuration, manifests, previews."""
