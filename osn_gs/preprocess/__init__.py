"""From a video and masks to a scene folder: frames, masks, tracks, per-object structure from motion, layout, report."""
