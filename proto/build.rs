//! Generates the messages and services from the .proto files, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["common.proto", "meta.proto", "chunk.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
