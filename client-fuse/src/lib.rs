//! FUSE adapter over the Holdfast client, and mounting.
