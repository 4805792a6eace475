//! Builds images from the real package; the first run downloads it.
//! Run with `cargo test -p casemate-image -- --ignored`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use casemate_image::{BuildError, BuildSpec, ExtraFile, Manifest, Progress, Step, build};

/// The smallest file that passes for a static program: ELF64 for x86-64 without
/// program headers.
fn static_elf() -> Vec<u8> {
    [&b"\x7fELF\x02\x01"[..], &[0; 12], &[62], &[0; 45]].concat()
}

fn spec(work: &Path, name: &str) -> BuildSpec {
    let (init, config) = (work.join("init"), work.join("guest.toml"));
    fs::write(&init, static_elf()).unwrap();
    fs::write(&config, "# measured\n").unwrap();
    let mut spec = BuildSpec::new(&init, &config, work.join(name));
    spec.cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("image-cache");
    spec.extra_files =
        vec![ExtraFile { source: config, path: "/opt/workload".into(), mode: 0o755 }];
    spec
}

#[test]
#[ignore = "downloads the kernel package the first time"]
fn same_inputs_same_bytes_and_one_changed_byte_is_found() {
    let work = tempfile::tempdir().unwrap();
    let mut steps: Vec<Progress> = Vec::new();
    let started = std::time::Instant::now();
    let first = build(&spec(work.path(), "a"), &mut |progress| steps.push(progress)).unwrap();
    println!("image built in {:?}", started.elapsed());
    let started = std::time::Instant::now();
    let second = build(&spec(work.path(), "b"), &mut |_| {}).unwrap();
    println!("image built again in {:?}", started.elapsed());
    assert_eq!(first, second);
    for file in ["kernel", "initrd", "cmdline", "manifest.toml", "reference.toml"] {
        let read = |image: &str| fs::read(work.path().join(image).join(file)).unwrap();
        assert!(read("a") == read("b"), "{file}");
    }
    assert_eq!(steps.last().unwrap().step, Step::Assemble);
    let paths: Vec<_> = first.content.iter().map(|content| content.path.as_str()).collect();
    for path in ["/init", "/etc/casemate/guest.toml", "/lib/modules/tsm.ko", "/opt/workload"] {
        assert!(paths.contains(&path), "{paths:?}");
    }

    let image = work.path().join("a");
    let manifest = Manifest::read(&image).unwrap();
    assert_eq!(manifest, first);
    manifest.check(&image).unwrap();
    let text = fs::read_to_string(image.join("reference.toml")).unwrap();
    let values = casemate_attestation::ReferenceValues::from_toml(&text).unwrap();
    assert_eq!(values.by_launch(&manifest.files).unwrap().label, "casemate");
    let digest = casemate_image::Image::read(&image).unwrap().files().snp_measurement(2).unwrap();
    assert!(values.by_snp_measurement(&digest).next().is_some());

    fs::write(image.join("cmdline"), "quieT").unwrap();
    let error = manifest.check(&image).unwrap_err();
    assert!(matches!(error, BuildError::FileDigest { file: "cmdline", .. }), "{error}");
}
