"""What many images share: a pattern common to what was taken out of them, found, estimated, matched and taken out."""
