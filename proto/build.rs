//! Compiles the schemas without a system protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema");
    let files = [
        "meta.proto",
        "data.proto",
        "control.proto",
        "record.proto",
        "cluster.proto",
        "metanode.proto",
        "node.proto",
        "raft.proto",
        "snapshot.proto",
    ];
    let descriptors = protox::compile(files, ["schema"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
