//! The generated code in src/gen is what the .proto files say. `UPDATE_GENERATED=1 cargo test -p kubelet-api` writes it anew.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

/// Package by package, as prost names the files.
const FILES: [&str; 3] = ["v1beta1.rs", "pluginregistration.rs", "v1.rs"];

#[test]
fn generated_code_is_what_the_proto_files_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos = ["deviceplugin.proto", "pluginregistration.proto", "podresources.proto"];
    let descriptors = protox::compile(protos, [root.join("proto")]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .build_transport(false)
        // The same answer always has the same bytes: the kubelet's checkpoint keeps them under a checksum.
        .btree_map(".")
        .out_dir(out.path())
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds(descriptors)
        .unwrap();
    for file in FILES {
        let fresh = fs::read_to_string(out.path().join(file)).unwrap();
        let checked_in = root.join("src/gen").join(file);
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            fs::write(&checked_in, &fresh).unwrap();
        }
        let kept = fs::read_to_string(&checked_in).unwrap_or_default();
        assert!(
            kept == fresh,
            "{} differs from what the .proto files say; write it anew with UPDATE_GENERATED=1 cargo test -p kubelet-api",
            checked_in.display()
        );
    }
}
