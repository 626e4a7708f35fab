//! The metadata table of a volume and the server that hosts its replicas.

pub mod table;
