//! The component in a layer that is an archive: `FROM scratch`, `COPY app.wasm`.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use crate::agent::image::fetch::COMPONENT_BYTES_MAX;
use crate::agent::image::gunzip::{GZIP_MAGIC, Gunzip};
use crate::agent::image::tar::read_full;
use crate::agent::image::unzstd::{Unzstd, ZSTD_MAGIC};

/// First bytes of a module or component.
const WASM_MAGIC: &[u8; 4] = b"\0asm";
/// Bytes at a layer's start that tell how it is compressed.
const MAGIC_BYTES: usize = ZSTD_MAGIC.len();
/// Size of a header and unit of content in an archive.
const TAR_BLOCK: usize = 512;
/// Most that an archive may hold when it is unpacked, in bytes.
const UNPACKED_BYTES_MAX: u64 = 2 * COMPONENT_BYTES_MAX;
/// Compressed bytes held at a time.
pub(super) const INPUT_BYTES: usize = 32 * 1024;

/// Writes the one component in the archive `layer` to `output`. `false`: the layer is no archive
/// but a component itself, and nothing was written.
///
/// # Errors
///
/// `InvalidData` when the layer cannot be used; all others are the disk's.
pub(super) fn unpack(layer: &Path, output: &Path) -> io::Result<bool> {
    let (content, is_compressed) = open(layer)?;
    let is_short = std::fs::metadata(layer)?.len() < MAGIC_BYTES as u64;
    if is_short || (!is_compressed && !is_archive(layer)?) {
        // What else it is, the compiler says.
        return Ok(false);
    }
    let mut content = content.take(UNPACKED_BYTES_MAX);
    extract(&mut content, &mut File::create(output)?)?;
    Ok(true)
}

/// The content of a layer, and whether it is compressed: its first bytes tell, whatever its media type.
pub(super) fn open(layer: &Path) -> io::Result<(Box<dyn Read>, bool)> {
    let mut magic = [0; MAGIC_BYTES];
    // A shorter file is compressed by neither, or damaged.
    let _count = File::open(layer)?.read(&mut magic)?;
    let file = BufReader::with_capacity(INPUT_BYTES, File::open(layer)?);
    Ok(match () {
        () if magic.starts_with(&GZIP_MAGIC) => (Box::new(Gunzip::new(file)), true),
        () if magic == ZSTD_MAGIC => (Box::new(Unzstd::new(file)), true),
        () => (Box::new(file), false),
    })
}

/// Whether an archive's mark is where an archive has it.
fn is_archive(path: &Path) -> io::Result<bool> {
    let mut header = [0; TAR_BLOCK];
    let count = File::open(path)?.take(TAR_BLOCK as u64).read(&mut header)?;
    Ok(count == TAR_BLOCK && header.get(257..262) == Some(b"ustar".as_slice()))
}

pub(super) fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// Copies the only Wasm file of an archive, or of a compressed component, to `output`.
fn extract(archive: &mut dyn Read, output: &mut dyn Write) -> io::Result<()> {
    let mut found = 0_u32;
    let mut is_first = true;
    loop {
        let mut header = [0; TAR_BLOCK];
        if read_full(archive, &mut header)? < TAR_BLOCK || header.iter().all(|byte| *byte == 0) {
            break;
        }
        if is_first && header.starts_with(WASM_MAGIC) {
            output.write_all(&header)?;
            io::copy(archive, output)?;
            return Ok(());
        }
        is_first = false;
        let size = size_of(&header)?;
        let mut content = archive.take(size);
        let mut taken = 0;
        if matches!(header.get(156), Some(b'0' | 0)) {
            let mut magic = [0; 4];
            taken = read_full(&mut content, &mut magic)? as u64;
            if &magic == WASM_MAGIC {
                found += 1;
                if found == 1 {
                    output.write_all(&magic)?;
                    taken += io::copy(&mut content, output)?;
                }
            }
        }
        let padded = size.div_ceil(TAR_BLOCK as u64) * TAR_BLOCK as u64;
        io::copy(&mut archive.take(padded - taken), &mut io::sink())?;
    }
    match found {
        1 => Ok(()),
        0 => Err(invalid(
            "there is no WebAssembly file in the image's layer; an image made for containers can be replaced under `images` in registries.yaml",
        )),
        count => Err(invalid(format!("there are {count} WebAssembly files in the image's layer"))),
    }
}

/// Size of an entry, in octal digits.
fn size_of(header: &[u8; TAR_BLOCK]) -> io::Result<u64> {
    let digits = header.get(124..136).unwrap_or_default();
    let digits = std::str::from_utf8(digits).unwrap_or_default();
    let digits = digits.trim_matches(['\0', ' ']);
    u64::from_str_radix(digits, 8)
        .ok()
        .filter(|size| *size <= UNPACKED_BYTES_MAX)
        .ok_or_else(|| invalid("the image's layer is a damaged archive"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const WASM: &[u8] = b"\0asm\x0d\0\x01\0 and more";

    /// An archive made by the system's `tar` of files by name.
    fn archive(folder: &Path, flags: &str, files: &[(&str, &[u8])]) -> std::path::PathBuf {
        let root = folder.join("root");
        std::fs::create_dir_all(&root).unwrap();
        for (name, content) in files {
            std::fs::write(root.join(name), content).unwrap();
        }
        let path = folder.join("layer");
        let done = Command::new("tar").arg(flags).arg(&path).arg("-C").arg(&root).arg(".").status();
        assert!(done.unwrap().success());
        path
    }

    fn unpacked(layer: &Path) -> io::Result<Option<Vec<u8>>> {
        let output = layer.with_extension("out");
        Ok(if unpack(layer, &output)? { Some(std::fs::read(output)?) } else { None })
    }

    #[test]
    fn the_only_component_in_an_archive_is_found() {
        let mut large = WASM.to_vec();
        large.extend((0..300_000_u32).flat_map(|n| (n % 251).to_le_bytes()));
        for flags in ["-cf", "-czf"] {
            let folder = tempfile::tempdir().unwrap();
            let files: &[(&str, &[u8])] = &[("app.wasm", &large), ("readme", b"text"), ("e", b"")];
            let layer = archive(folder.path(), flags, files);
            assert_eq!(unpacked(&layer).unwrap().unwrap(), large, "{flags}");
        }
    }

    #[test]
    fn an_archive_compressed_with_zstd_is_read_and_a_damaged_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut large = WASM.to_vec();
        large.extend((0..300_000_u32).flat_map(|n| (n % 251).to_le_bytes()));
        let plain = archive(folder.path(), "-cf", &[("app.wasm", &large)]);
        let tar = std::fs::read(&plain).unwrap();
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let layer = folder.path().join("zstd");
        for content in [tar, large.clone()] {
            let whole = ruzstd::encoding::compress_to_vec(content.as_slice(), level);
            std::fs::write(&layer, &whole).unwrap();
            assert_eq!(unpacked(&layer).unwrap().unwrap(), large);
            std::fs::write(&layer, &whole[..whole.len() / 2]).unwrap();
            assert!(unpacked(&layer).is_err());
        }
    }

    #[test]
    fn a_component_alone_is_no_archive_and_others_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        std::fs::write(&plain, WASM).unwrap();
        assert_eq!(unpacked(&plain).unwrap(), None);
        let layer = archive(folder.path(), "-czf", &[("sh", b"#!/bin/sh")]);
        assert!(unpacked(&layer).unwrap_err().to_string().contains("no WebAssembly file"));
        let layer = archive(folder.path(), "-cf", &[("a", WASM), ("b", WASM)]);
        assert!(unpacked(&layer).unwrap_err().to_string().contains("2 WebAssembly files"));
        let cut = std::fs::read(archive(folder.path(), "-czf", &[("a", WASM)])).unwrap();
        std::fs::write(&plain, &cut[..cut.len() / 2]).unwrap();
        assert!(unpacked(&plain).is_err());
    }
}
