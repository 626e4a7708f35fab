//! Framed RPC for Holdfast's hot paths.
